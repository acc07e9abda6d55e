"""Batches made ahead of their use, on a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from queue import SimpleQueue

import torch

from data.batches import TrainingBatches
from data.windows import Batch

PREFETCH_DEPTH = 4
"""Batches made ahead of their use."""


class Prefetcher:
    """Goes through batches a few ahead of its reader, on a thread of its own.

    For CUDA the thread puts batches into pinned memory, so that the copy to the device waits for
    nothing. What the thread raises, the reader gets raised. Leaving the `with` ends the thread.

    Args:
        batches: What to go through; only the thread touches it.
        device: Where the reader gets the tensors.
        depth: Batches made ahead.
    """

    def __init__(
        self, batches: Iterable[Batch], device: torch.device | str, depth: int = PREFETCH_DEPTH
    ):
        self._batches = batches
        self._device = torch.device(device)
        if self._device.type == "cuda" and self._device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._ready: SimpleQueue[Batch | BaseException] = SimpleQueue()
        self._room = threading.Semaphore(depth - 1)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        end: BaseException = StopIteration()
        try:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)  # a thread starts at device 0
            for batch in self._batches:
                self._ready.put(self._pinned(batch))
                self._room.acquire()
                if self._closed.is_set():
                    return
        except BaseException as error:
            end = error
        self._ready.put(end)

    def _pinned(self, batch: Batch) -> Batch:
        if self._device.type != "cuda":
            return batch
        inputs, targets = batch
        return inputs.pin_memory(), targets.pin_memory()

    def __iter__(self) -> Prefetcher:
        return self

    def __next__(self) -> Batch:
        if self._closed.is_set():
            raise StopIteration
        item = self._ready.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        self._room.release()
        inputs, targets = item
        return (
            inputs.to(self._device, non_blocking=True),
            targets.to(self._device, non_blocking=True),
        )

    def close(self) -> None:
        """End the thread, after the batch it is making; may be called again."""
        self._closed.set()
        self._room.release()
        self._thread.join()

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prefetch(
    batches: TrainingBatches, first_step: int, end_step: int, device: torch.device | str
) -> Prefetcher:
    """The batches of the steps [first_step, end_step), on `device`, made ahead of their use."""
    return Prefetcher(map(batches.batch, range(first_step, end_step)), device)
