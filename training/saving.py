"""Save the checkpoints of a run, synchronously or in the background (`async_save`)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from training.checkpoint import capture_rng, save_checkpoint
from training.hardware import resolve_async_save, synchronize
from training.run import Run
from training.sharded_tensors import gathered_weights, on_cpu
from training_logger import NoLog, TrainingLogger


class CheckpointSaver:
    """Saves the state of a run from the first worker, one checkpoint at a time.

    To save in the background, the state is copied to CPU buffers, which are reused for the next
    checkpoint, and a thread writes them without communication between workers.

        with CheckpointSaver(run, log) as saver:
            for step in ...:
                ...
                saver.save()
                if workers.any(saver.poll()):
                    break

    On exit, the context manager waits for the checkpoint in progress, except after a
    KeyboardInterrupt.

    Args:
        run: The run.
        log: The run's log, which lists the checkpoints.
    """

    def __init__(self, run: Run, log: TrainingLogger | NoLog):
        self._run, self._log = run, log
        self._asynchronous = resolve_async_save(run.settings.training.async_save, run.device)
        self._weights, self._kept = HostBuffers(), HostBuffers()
        self._writing: _Writing | None = None

    def __enter__(self) -> CheckpointSaver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()
        elif self._writing and not isinstance(error, KeyboardInterrupt):
            self._writing.wait()
            if self._writing.error:  # not raised, so as not to hide why the run ends
                self._log.say(
                    f"the checkpoint of step {self._writing.step} was not written: "
                    f"{self._writing.error}"
                )
            else:
                self._log_written()

    def save(self) -> None:
        """Save a checkpoint that `--resume` continues from. All workers must call this together.

        Raises:
            Diverged: If the run cannot be continued.
            UserError: If this checkpoint or the previous one could not be written.
        """
        run = self._run
        run.watch.stop()
        run.guard.stop_if_stuck(run.guard.read())
        self.finish()
        run.saved_at = run.step
        copies = (self._weights, self._kept) if self._asynchronous else (on_cpu, on_cpu)
        weights = gathered_weights(run.network, run.placement.parts, copies[0])
        kept = run.updates.gathered(copies[1])
        with run.workers.together():
            if run.workers.first:
                self._start(self._writer(weights, kept))

    def _writer(self, weights: dict[str, Tensor], kept: dict[str, Tensor]) -> Callable[[], Path]:
        """A function that writes the current state of the run, whenever it is called."""
        run, log = self._run, self._log
        log.sync()  # a checkpoint must not count records that a power failure may lose
        return partial(
            save_checkpoint,
            run.folder / "checkpoints",
            step=run.step,
            weights=weights,
            kept=kept,
            state={"run_id": log.run_id, "log_records": log.records, **run.state()},
            rng=capture_rng(),
            val_loss=run.val_loss if run.evaluated_at == run.step else None,
            plugins={Path(path).name: text for path, text in run.settings.plugins.items()},
            tokenizer_files=run.dataset.tokenizer_files,
            keep=run.settings.training.keep_checkpoints,
        )

    def _start(self, write: Callable[[], Path]) -> None:
        if not self._asynchronous:
            self._log.log_checkpoint(write(), self._run.step)
            return
        synchronize(self._run.device)  # until the buffers are filled
        self._writing = _Writing(write, self._run.step)

    def poll(self) -> bool:
        """Log the checkpoint in progress if it is finished. Returns whether writing failed, in
        which case `finish` raises the error. Does not block or communicate."""
        if self._writing is None or not self._writing.done:
            return False
        if self._writing.error:
            return True
        self._log_written()
        return False

    def finish(self) -> None:
        """Wait for the checkpoint in progress. All workers must call this together.

        Raises:
            UserError: If it could not be written.
        """
        if not self._asynchronous:
            return
        with self._run.workers.together():
            if self._writing:
                self._writing.wait()
                self._log_written()

    def _log_written(self) -> None:
        """Log the finished checkpoint. Raises the exception that writing it raised, if any."""
        assert self._writing
        writing, self._writing = self._writing, None
        self._log.log_checkpoint(writing.result(), writing.step)


class _Writing:
    """A checkpoint that is being written by a thread.

    Args:
        write: Writes the checkpoint and returns its folder.
        step: The step of the checkpoint.
    """

    def __init__(self, write: Callable[[], Path], step: int):
        self.step = step
        self.error: Exception | None = None
        self._path: Path | None = None
        self._write = write
        self._thread = threading.Thread(target=self._run, daemon=True)  # ends with the process
        self._thread.start()

    def _run(self) -> None:
        try:
            self._path = self._write()
        except Exception as error:
            self.error = error

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def wait(self) -> None:
        self._thread.join()

    def result(self) -> Path:
        """The folder of the finished checkpoint. Raises the exception that writing it raised."""
        if self.error:
            raise self.error
        assert self._path
        return self._path


class HostBuffers:
    """Copies named tensors to CPU buffers, which are reused for tensors of the same name.

    A copy from a GPU is complete once the device is synchronized.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self._buffers:
            self._buffers[name] = torch.empty(
                tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda
            )
        return self._buffers[name].copy_(tensor, non_blocking=True)
