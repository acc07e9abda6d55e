"""Prefetch batches in a background thread."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from queue import SimpleQueue

import torch

from data.batches import TrainingBatches
from data.windows import Batch

PREFETCH_DEPTH = 4
"""Number of batches to prefetch."""


class Prefetcher:
    """Iterates over batches in a background thread, a few ahead of the reader.

    For CUDA, the thread puts batches in pinned memory, so that they are copied to the device
    asynchronously. Exceptions in the thread are raised in the reader. Leaving the `with` block ends
    the thread.

    Args:
        batches: The batches; only the thread uses them.
        device: The device to which batches are moved.
        depth: Number of batches to prefetch.
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
                torch.cuda.set_device(self._device)  # threads start with device 0
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
        """End the thread after the current batch; may be called repeatedly."""
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
    """Prefetch the batches of the steps [first_step, end_step) to `device`."""
    return Prefetcher(map(batches.batch, range(first_step, end_step)), device)
