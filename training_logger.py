"""The log of a run: `TrainingLogger`, which keeps and prints it, and all that reads it.

What the two files hold is told by training/log_files.py; what is printed comes from
training/log_lines.py. Their public names are this module's too.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from errors import UserError
from training.log_files import (
    LIST_OF_KIND,
    METRICS_FILE,
    RUN_FILE,
    SCHEMA_VERSION,
    best_record,
    discard_unfinished_log,
    json_safe,
    last_metrics,
    metrics_line,
    read_metrics,
    read_run,
    records_of,
    refuse_existing_log,
    summarize,
    write_atomically,
)
from training.log_lines import (
    LINE_WIDTH,
    Console,
    format_bytes,
    format_count,
    format_eval,
    format_flops,
    format_number,
    format_start_report,
    format_step,
)
from training.sinks import Beginning, OpenSinks

__all__ = [
    "LINE_WIDTH",
    "METRICS_FILE",
    "RUN_FILE",
    "SCHEMA_VERSION",
    "TrainingLogger",
    "discard_unfinished_log",
    "format_bytes",
    "format_count",
    "format_eval",
    "format_flops",
    "format_number",
    "format_start_report",
    "format_step",
    "json_safe",
    "last_metrics",
    "read_metrics",
    "read_run",
    "records_of",
    "refuse_existing_log",
    "summarize",
]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class TrainingLogger:
    """Keeps and prints the log of a run, from plain numbers that the loop hands over.

    A context manager: entering opens the files and makes the status "running"; leaving makes it
    "completed", or "interrupted" after `interrupted()` or a KeyboardInterrupt, or on any other
    exception its `run_status` where it has one, else "failed".

    Args:
        run_dir: Folder of the run; made where it is missing.
        run_name: What the run is called.
        config: Every key of the run and its value.
        architecture: `name, parameters, flops_per_token, flops_per_token_causal,
            attention_ffn_ratio`.
        environment: `python, torch, cuda, driver, device, commit`, ...
        data: `dataset, fingerprint, train_tokens, val_tokens`, ...
        peak_flops: What the hardware can do, FLOP/s; None where that is unknown.
        max_iters: Optimizer steps of the whole run; None where time may end it before, and then
            progress is shown without a total.
        resume_step: Take up the log of this folder at the step of a checkpoint: records of later
            steps are dropped, since those steps are done again. None starts a new log.
        sinks: Where every line goes besides, of `sinks.SINKS`.

    Raises:
        UserError: On entering: a new log where the folder holds one already, the log to take up
            is damaged, or a sink cannot be opened.
    """

    def __init__(
        self,
        run_dir: Path | str,
        run_name: str,
        *,
        config: Mapping[str, Any],
        architecture: Mapping[str, Any],
        environment: Mapping[str, Any],
        data: Mapping[str, Any],
        peak_flops: float | None,
        max_iters: int | None,
        resume_step: int | None = None,
        sinks: Sequence[str] = (),
    ):
        self.run_dir = Path(run_dir)
        self._peak_flops = peak_flops
        self._max_iters = max_iters
        self._resume_step = resume_step
        self._sink_names = sinks
        self._earlier_seconds = 0.0  # wall time of the sessions before this one
        self._interrupted = False
        self._run: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "run_name": run_name,
            "status": "running",
            "start_time": _now(),
            "end_time": None,
            "config": json_safe(config),
            "architecture": json_safe(architecture),
            "environment": json_safe(environment),
            "data": json_safe(data),
            "training_iterations": [],
            "eval_steps": [],
            "checkpoints": [],
        }

    def __enter__(self) -> TrainingLogger:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._started = time.perf_counter()
        lines: list[dict[str, Any]] = []
        if self._resume_step is None:
            refuse_existing_log(self.run_dir)
        else:
            lines = self._take_up_log(self._resume_step)
        self._sinks = OpenSinks(self._sink_names, self._beginning(lines), self.say)
        self._write_run()
        self._metrics = open(self.run_dir / METRICS_FILE, "a", encoding="utf-8")  # noqa: SIM115
        self._console = Console(self._resume_step or 0, self._max_iters)
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        stopped = exception_type is not None and issubclass(exception_type, KeyboardInterrupt)
        if exception_type is not None and not stopped:
            status = getattr(exception_type, "run_status", "failed")
        else:
            status = "interrupted" if stopped or self._interrupted else "completed"
        self._metrics.close()
        self._run.update(status=status, end_time=_now())
        self._write_run()
        self._sinks.close(failed=status not in ("completed", "interrupted"))
        self.say(f"{status}; the log is in {self.run_dir / RUN_FILE}")
        self._console.close()

    def _beginning(self, lines: Sequence[Mapping[str, Any]]) -> Beginning:
        return Beginning(
            run_dir=self.run_dir,
            run_name=self._run["run_name"],
            start_time=self._run["start_time"],
            config=self._run["config"],
            lines=lines,
        )

    def _take_up_log(self, step: int) -> list[dict[str, Any]]:
        """Keep what the files of this folder tell up to `step`, and note the resumption; returns
        the lines of metrics.jsonl that are kept."""
        metrics_path = self.run_dir / METRICS_FILE
        lines = read_metrics(metrics_path) if metrics_path.exists() else []
        lines = [line for line in lines if line["iter"] <= step]
        earlier = self._read_earlier_run()
        write_atomically(metrics_path, "".join(map(metrics_line, lines)))
        for kind, name in LIST_OF_KIND.items():
            self._run[name] = records_of(lines, kind)
        checkpoints = earlier.get("checkpoints", [])
        self._run["checkpoints"] = [saved for saved in checkpoints if saved["step"] <= step]
        self._run["start_time"] = earlier.get("start_time", self._run["start_time"])
        self._run["resumed"] = [*earlier.get("resumed", []), {"step": step, "time": _now()}]
        self._earlier_seconds = lines[-1]["wall_seconds"] if lines else 0.0
        return lines

    def _read_earlier_run(self) -> dict[str, Any]:
        path = self.run_dir / RUN_FILE
        if not path.exists():
            return {}
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(
                f"{path} is damaged ({error}); restore it, or remove it to go on without the "
                "start time and the list of checkpoints that it held."
            ) from error

    @property
    def summary(self) -> dict[str, Any]:
        """What the run came to so far; see `summarize`."""
        return summarize(
            self._run["training_iterations"],
            self._run["eval_steps"],
            flops_per_token=self._run["architecture"]["flops_per_token"],
            wall_seconds=self._wall_seconds(),
        )

    def say(self, text: str) -> None:
        """Print a line of the loop's own, without disturbing the progress bar."""
        self._console.say(text)

    def advance(self, iter: int) -> None:
        """Move the progress bar to `iter` steps done; cheap enough for every step."""
        self._console.advance(iter)

    def log_step(
        self,
        *,
        iter: int,
        loss: float,
        lr: float,
        time_ms: float,
        tokens_seen: int,
        tokens_per_second: float,
        memory: Mapping[str, float | None],
        gradients: Mapping[str, float],
        bad_steps: int,
    ) -> None:
        """Record and print a log interval that ends with `iter` steps done.

        Args:
            iter: Optimizer steps done.
            loss: Training loss, nats per token.
            lr: Learning rate of the last step.
            time_ms: Milliseconds per step.
            tokens_seen: Training tokens of all steps so far.
            tokens_per_second: Training tokens per second of this interval.
            memory: Bytes: `allocated, peak, reserved`, or `resident, peak`; None where unknown.
            gradients: `norm` of the gradient, and `mean, std` where they were measured.
            bad_steps: Steps skipped so far, for a loss or gradient that was not finite.
        """
        record = {
            "iter": iter,
            "loss": loss,
            "lr": lr,
            "time_ms": time_ms,
            "tokens_seen": tokens_seen,
            "tokens_per_second": tokens_per_second,
            "mfu": self._utilization(tokens_per_second),
            "memory": dict(memory),
            "gradients": dict.fromkeys(("norm", "mean", "std")) | dict(gradients),
            "bad_steps": bad_steps,
        }
        self._append("train", record)
        self.advance(iter)
        self.say(format_step(record, self._max_iters))

    def log_eval(
        self,
        *,
        iter: int,
        val_loss: float,
        val_bits_per_byte: float,
        tokens_seen: int,
        seconds: float,
    ) -> None:
        """Record and print an evaluation after `iter` steps, and bring run.json up to date.

        Args:
            iter: Optimizer steps done.
            val_loss: Nats per token.
            val_bits_per_byte: The same text, in bits per byte of it.
            tokens_seen: Training tokens of all steps so far; the training FLOPs follow from it.
            seconds: Seconds of training so far, as the loop counts them.
        """
        record = {
            "iter": iter,
            "val_loss": val_loss,
            "val_bits_per_byte": val_bits_per_byte,
            "tokens_seen": tokens_seen,
            "flops": tokens_seen * self._run["architecture"]["flops_per_token"],
            "seconds": seconds,
        }
        self._append("eval", record)
        self._write_run()
        self.say(format_eval(record, self._max_iters, best_record(self._run["eval_steps"])))

    def log_checkpoint(self, path: Path | str, step: int) -> None:
        """Record and print that the state after `step` steps was saved.

        run.json lists the checkpoints that there are, by their paths relative to the run's folder,
        which may move.
        """
        relative = Path(os.path.relpath(path, self.run_dir)).as_posix()
        kept = [
            saved
            for saved in self._run["checkpoints"]
            if saved["step"] != step and (self.run_dir / saved["path"]).exists()
        ]
        self._run["checkpoints"] = [*kept, {"step": step, "path": relative}]
        self._write_run()
        self.say(f"checkpoint of step {step} saved in {path}")

    def interrupted(self) -> None:
        """Tell that the run stops early by request, so that it does not count as completed."""
        self._interrupted = True

    def _wall_seconds(self) -> float:
        return round(self._earlier_seconds + time.perf_counter() - self._started, 3)

    def _utilization(self, tokens_per_second: float) -> dict[str, Any]:
        """Model FLOPs utilization, as PaLM (arXiv:2204.02311, appendix B) defines it.

        achieved_tflops = tokens_per_second * flops_per_token / 1e12, with the full T x T square;
        mfu_percent = 100 * achieved_tflops / peak_tflops, None where the peak is unknown.
        """
        architecture = self._run["architecture"]
        achieved = tokens_per_second * architecture["flops_per_token"] / 1e12
        peak = None if self._peak_flops is None else self._peak_flops / 1e12
        return {
            "mfu_percent": None if peak is None else 100 * achieved / peak,
            "achieved_tflops": achieved,
            "peak_tflops": peak,
            "flops_per_token": architecture["flops_per_token"],
            "architecture": architecture["name"],
        }

    def _append(self, kind: str, record: Mapping[str, Any]) -> None:
        safe = json_safe(record)
        line = {"kind": kind, "wall_seconds": self._wall_seconds(), **safe}
        self._metrics.write(metrics_line(line))
        self._metrics.flush()
        self._run[LIST_OF_KIND[kind]].append(safe)
        self._sinks.record(line)

    def _write_run(self) -> None:
        text = json.dumps({**self._run, "summary": self.summary}, indent=1, allow_nan=False)
        write_atomically(self.run_dir / RUN_FILE, text + "\n")
