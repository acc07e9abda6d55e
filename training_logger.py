"""The log of a run: `TrainingLogger`, which writes and prints it, and functions that read it.

training/log_files.py defines the two files of a log, training/earlier_log.py continues an existing
log, training/log_summary.py computes the summary, and training/log_text.py formats console output.
Their public names are also available here.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import time
import types
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from errors import UserError, file_errors
from recipe.log_sinks import Beginning, OpenSinks
from safe_files import write_atomically
from training.console import Console
from training.earlier_log import (
    ResumePoint,
    earlier_run,
    kept_of_earlier_run,
    lines_to_resume,
    refuse_existing_log,
    set_aside_unfinished_log,
)
from training.log_files import (
    METRICS_FILE,
    RUN_FILE,
    SCHEMA_VERSION,
    MetricsFile,
    json_safe,
    last_metrics,
    metrics_line,
    read_log,
    read_metrics,
    read_run,
    records_of,
    write_run,
)
from training.log_summary import RunSummary, TimeLeft, summarize
from training.log_text import (
    CONSOLE_WIDTH,
    LINE_WIDTH,
    UNBROKEN_SPACE,
    format_byte_sum,
    format_bytes,
    format_clock,
    format_count,
    format_duration,
    format_eval,
    format_flop_rate,
    format_flops,
    format_number,
    format_rows,
    format_sample,
    format_start_report,
    format_step,
    format_step_briefly,
)
from training.machine_load import OtherLoad
from training.run_page.page import RunPage

__all__ = [
    "CONSOLE_WIDTH",
    "LINE_WIDTH",
    "METRICS_FILE",
    "RUN_FILE",
    "SCHEMA_VERSION",
    "ResumePoint",
    "UNBROKEN_SPACE",
    "TrainingLogger",
    "format_byte_sum",
    "format_bytes",
    "format_count",
    "format_duration",
    "format_eval",
    "format_flop_rate",
    "format_flops",
    "format_number",
    "format_rows",
    "format_start_report",
    "format_step",
    "json_safe",
    "last_metrics",
    "read_log",
    "read_metrics",
    "read_run",
    "records_of",
    "refuse_existing_log",
    "set_aside_unfinished_log",
    "summarize",
]


SILENT_SECONDS = 5.0
"""Work outside training that takes longer than this is announced on the console."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class NoLog:
    """A log that does nothing, for workers other than the first."""

    def __enter__(self) -> NoLog:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        """See `TrainingLogger` for this and the other methods."""

    def pause(self, work: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def advance(self, iter: int) -> None:
        pass

    def log_step(self, **record: Any) -> None:
        pass

    def log_eval(self, **record: Any) -> None:
        pass

    def log_sample(self, **record: Any) -> None:
        pass

    def interrupted(self) -> None:
        pass


class TrainingLogger:
    """Writes and prints the log of a run, given the values that the training loop passes.

    Use as a context manager: entering opens the files and sets the status to "running"; leaving
    sets it to "completed", or to "interrupted" after `interrupted()` or a KeyboardInterrupt. After
    any other exception it is the exception's `run_status`, "failed" by default.

    Args:
        run_dir: The run directory; created if it does not exist.
        run_name: The name of the run.
        config: All config keys and values.
        architecture: `name, parameters, flops_per_token, flops_per_token_causal,
            attention_ffn_ratio`, ...
        environment: `python, torch, cuda, driver, device, commit, source_sha256`, ...
        data: `dataset, fingerprint, train_tokens, val_tokens`, ...
        plugins: SHA-256 of each plugin, by file name.
        roles: The role of each config key; see `options.Role`.
        defaults: Options of parts that have their default values; a comparison omits them if only
            one of two architectures has the part.
        peak_flops: Peak of the hardware in FLOP/s; None if unknown.
        max_iters: Optimizer steps of the whole run; None if a time limit may end it earlier, in
            which case progress is shown without a total.
        resume: The checkpoint that the run continues from. Records after it are removed, because
            those steps are repeated. None starts a new log.
        sinks: Additional outputs for every record, by name in `LOG_SINKS`.
        console: The console to print to. Defaults to a new one.
        brief: Whether to print a single line for each log step.
        one_of_several: Whether other processes with the same parent train the model too.

    Raises:
        UserError: On entering, if a new log would overwrite an existing one, the log is damaged or
            belongs to a different run than the checkpoint, or a sink cannot be opened. Later, if a
            file cannot be written.
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
        plugins: Mapping[str, str] = types.MappingProxyType({}),
        roles: Mapping[str, str] = types.MappingProxyType({}),
        defaults: Sequence[str] = (),
        resume: ResumePoint | None = None,
        sinks: Sequence[str] = (),
        console: Console | None = None,
        brief: bool = False,
        one_of_several: bool = False,
    ):
        self._one_of_several = one_of_several
        self.run_dir = Path(run_dir)
        self._peak_flops = peak_flops
        self._max_iters = max_iters
        self._resume = resume
        self._sink_names = sinks
        self._console = console or Console()
        self._format_step = format_step_briefly if brief else format_step
        self._time_left = TimeLeft()
        self._earlier_seconds = 0.0  # wall time before this start
        self._interrupted = False
        self._pauses: dict[str, float] = {}
        self._records = 0
        self._page = RunPage(self.run_dir, self.say)
        self._summary = RunSummary(architecture["flops_per_token"])
        start = {"step": resume.step if resume else 0, "time": _now()}
        self._run: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "run_id": (resume and resume.run_id) or uuid.uuid4().hex,
            "run_name": run_name,
            "status": "running",
            "start_time": start["time"],
            "end_time": None,
            "config": json_safe(config),
            "architecture": json_safe(architecture),
            "environment": json_safe(environment),
            "starts": [start | {"environment": json_safe(environment)}],
            "data": json_safe(data),
            "plugins": dict(plugins),
            "roles": dict(roles),
            "defaults": list(defaults),
            "training_iterations": [],
            "eval_steps": [],
            "samples": [],
            "checkpoints": [],
        }

    def __enter__(self) -> TrainingLogger:
        with file_errors(f"write the log in {self.run_dir}"):
            self.run_dir.mkdir(parents=True, exist_ok=True)
        self._started = time.perf_counter()
        self._load = OtherLoad(of_parent=self._one_of_several)
        lines: list[dict[str, Any]] = []
        if self._resume is None:
            refuse_existing_log(self.run_dir)
        else:
            lines = self._take_up_log(self._resume)
        self._sinks = OpenSinks(self._sink_names, self._beginning(lines), self.say)
        with file_errors(f"write the log in {self.run_dir}"):
            self._write_run()
            self._metrics = MetricsFile(self.run_dir / METRICS_FILE)
        self._refresh_page()
        done = self._resume.step if self._resume else 0
        self._console.open_bar(done, self._max_iters, unit=" steps")
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
        problem = self._end(status)
        self._sinks.close(failed=status not in ("completed", "interrupted"))
        self.say(problem or self._closing_lines(status))
        self._console.close()
        if problem and exception_type is None:
            raise UserError(problem)

    def _closing_lines(self, status: str) -> str:
        """The final message: how the run ended, where its log is, and which commands come next."""
        took = format_clock(self._wall_seconds())
        best = self._summary.best
        loss = f", best val loss {best['val_loss']:.4f} (step {best['iter']})" if best else ""
        lines = [f"{status} in {took}{loss}", f"  log:      {self.run_dir / RUN_FILE}"]
        if status == "completed":
            folder, runs = (shlex.quote(str(path)) for path in (self.run_dir, self.run_dir.parent))
            lines.append(f"  report:   {self._page.path}")
            if self._run["checkpoints"]:
                parts = " --plugins=saved" if self._run["plugins"] else ""
                lines.append(f"  sample:   python sample.py --run={folder}{parts}")
            lines.append(f"  compare:  python compare_architectures.py {runs}")
        return "\n".join(lines)

    def _end(self, status: str) -> str | None:
        """Write the complete run.json; returns an error message, or None."""
        try:
            self._metrics.close()
            ended = {"status": status, "end_time": _now()}
            self._refresh_page(**ended)
            self._write_run(**ended, records=True)
        except OSError as error:
            with contextlib.suppress(OSError):  # at least the status, which needs less space
                self._write_run(status="failed", end_time=_now())
            return f"cannot write {self.run_dir / RUN_FILE}: {error.strerror or error}."
        return None

    def _beginning(self, lines: Sequence[Mapping[str, Any]]) -> Beginning:
        return Beginning(
            run_dir=self.run_dir,
            run_name=self._run["run_name"],
            start_time=self._run["start_time"],
            config=self._run["config"],
            lines=[line for line in lines if line["kind"] != "sample"],
        )

    def _take_up_log(self, resume: ResumePoint) -> list[dict[str, Any]]:
        """Truncate the log to a checkpoint and add this start to it; returns the records."""
        earlier = earlier_run(self.run_dir, resume)
        lines: list[dict[str, Any]] = []
        if earlier is None and not (self.run_dir / METRICS_FILE).exists():
            self.say(f"{self.run_dir} has no log; a new one starts at step {resume.step}.")
        else:
            lines = lines_to_resume(self.run_dir, resume.step, resume.logged)
        with file_errors(f"write the log in {self.run_dir}"):
            write_atomically(self.run_dir / METRICS_FILE, map(metrics_line, lines))
        for line in lines:
            self._summary.add(line)
            self._page.add(line)
        self._records = len(lines)
        self._earlier_seconds = lines[-1]["wall_seconds"] if lines else 0.0
        if earlier:
            self._run |= kept_of_earlier_run(earlier, self._run, resume.step)
        return lines

    @property
    def run_id(self) -> str:
        """Unique ID of the run, which does not change if its directory is moved."""
        return self._run["run_id"]

    @property
    def records(self) -> int:
        """Number of records logged so far."""
        return self._records

    @property
    def summary(self) -> dict[str, Any]:
        """Summary of the run so far; see `RunSummary`."""
        return self._summary.to_dict(self._wall_seconds())

    def sync(self) -> None:
        """Flush all records to disk."""
        with file_errors(f"write {self.run_dir / METRICS_FILE}"):
            self._metrics.sync()

    def say(self, text: str) -> None:
        """Print a line without disturbing the progress bar."""
        self._console.say(text)

    @contextlib.contextmanager
    def pause(self, work: str) -> Iterator[None]:
        """A context for work between two steps. The work is announced the first time, and again
        whenever it took more than SILENT_SECONDS the last time."""
        if self._pauses.get(work, math.inf) > SILENT_SECONDS:
            self.say(f"{work} ...")
        began = time.perf_counter()
        yield
        self._pauses[work] = time.perf_counter() - began

    def advance(self, iter: int) -> None:
        """Move the progress bar to `iter` steps; cheap enough to call every step."""
        self._console.advance(iter)

    def log_step(
        self,
        *,
        iter: int,
        loss: float,
        terms: Mapping[str, float] = types.MappingProxyType({}),
        metrics: Mapping[str, list[Any]] = types.MappingProxyType({}),
        lr: float,
        time_ms: float,
        tokens_seen: int,
        tokens_per_second: float,
        memory: Mapping[str, float | None],
        gradients: Mapping[str, float],
        bad_steps: int,
        share_done: float,
    ) -> None:
        """Record and print a log interval.

        Args:
            iter: Optimizer steps done.
            loss: The training objective, in nats per token.
            terms: The terms of the objective by name. Unless cross-entropy is the only one, the
                terms and the objective are recorded, and the recorded `loss` is the cross-entropy
                if there is one, so that runs with different objectives can be compared.
            metrics: Metrics of the model's parts by name, one value per layer, None if absent.
            lr: Learning rate of the last step.
            time_ms: Milliseconds per step.
            tokens_seen: Training tokens so far.
            tokens_per_second: Training tokens per second in this interval.
            memory: Bytes: `allocated, peak, reserved`, or `resident, peak`; None if unknown.
            gradients: `norm` of the gradient, and `mean, std` if measured.
            bad_steps: Steps skipped so far because of a non-finite loss or gradient.
            share_done: Fraction of the run that is done, by its step or time limit.
        """
        plain = set(terms) <= {"cross_entropy"}
        several = {} if plain else {"objective": loss, "terms": dict(terms)}
        record = {
            "iter": iter,
            "loss": terms.get("cross_entropy", loss) if several else loss,
            **several,
            **({"metrics": dict(metrics)} if metrics else {}),
            "lr": lr,
            "time_ms": time_ms,
            "tokens_seen": tokens_seen,
            "tokens_per_second": tokens_per_second,
            "mfu": self._utilization(tokens_per_second),
            "memory": dict(memory),
            "gradients": dict.fromkeys(("norm", "mean", "std")) | dict(gradients),
            "bad_steps": bad_steps,
        }
        self._time_left.update(share_done, self._wall_seconds(), iter * time_ms / 1000)
        self._append("train", record)
        self.advance(iter)
        self.say(self._format_step(record, self._max_iters, self._time_left.seconds))

    def log_eval(
        self,
        *,
        iter: int,
        val_loss: float,
        val_bits_per_byte: float,
        tokens_seen: int,
        seconds: float,
    ) -> None:
        """Record and print an evaluation, and update run.json.

        Args:
            iter: Optimizer steps done.
            val_loss: Validation loss in nats per token.
            val_bits_per_byte: Validation loss in bits per byte of the text.
            tokens_seen: Training tokens so far, which determine the training FLOPs.
            seconds: Training time so far in seconds, as counted by the training loop.
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
        self._update_run()
        self.say(format_eval(record, self._max_iters, self._summary.best))

    def log_sample(self, *, iter: int, tokens_seen: int, prompt: str, text: str) -> None:
        """Record and print generated text.

        Args:
            iter: Optimizer steps done.
            tokens_seen: Training tokens so far.
            prompt: The prompt.
            text: The continuation.
        """
        record = {"iter": iter, "tokens_seen": tokens_seen, "prompt": prompt, "text": text}
        self._append("sample", record)
        self.say(format_sample(record))

    def log_checkpoint(self, path: Path | str, step: int) -> None:
        """Record and print that the checkpoint of a step was saved.

        run.json lists the existing checkpoints with paths relative to the run directory, so that
        the directory can be moved.
        """
        relative = Path(os.path.relpath(path, self.run_dir)).as_posix()
        kept = [
            saved
            for saved in self._run["checkpoints"]
            if saved["step"] != step and (self.run_dir / saved["path"]).exists()
        ]
        self._run["checkpoints"] = [*kept, {"step": step, "path": relative}]
        self._update_run()
        self.say(f"checkpoint of step {step} saved in {relative}")

    def interrupted(self) -> None:
        """Mark the run as stopped early on request, so that it does not count as completed."""
        self._interrupted = True

    def _wall_seconds(self) -> float:
        return round(self._earlier_seconds + time.perf_counter() - self._started, 3)

    def _utilization(self, tokens_per_second: float) -> dict[str, Any]:
        """Model FLOPs utilization, as defined by PaLM (arXiv:2204.02311, appendix B).

        achieved_tflops = tokens_per_second * flops_per_token / 1e12, with the full T x T square;
        mfu_percent = 100 * achieved_tflops / peak_tflops, None if the peak is unknown.
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
        line = {"kind": kind, "wall_seconds": self._wall_seconds(), **json_safe(record)}
        with file_errors(f"write {self.run_dir / METRICS_FILE}"):
            self._metrics.append(line)
        self._records += 1
        self._summary.add(line)
        if kind != "sample":
            self._sinks.record(line)
        self._page.add(line)
        self._refresh_page()

    def _refresh_page(self, **changes: Any) -> None:
        run = {**self._run, **changes, "summary": self.summary}
        self._page.refresh(run, self._max_iters, self._time_left.seconds)

    def _update_run(self) -> None:
        with file_errors(f"write {self.run_dir / RUN_FILE}"):
            self._write_run()

    def _write_run(self, *, records: bool = False, **changes: Any) -> None:
        self._run["starts"][-1]["other_cpu_share"] = round(self._load.share(), 4)
        run = {**self._run, **changes, "summary": self.summary}
        write_run(self.run_dir, run, records=records)
