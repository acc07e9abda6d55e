"""The log of a run: what it prints, and the two files it leaves for the comparison.

`<run_dir>/metrics.jsonl`: one JSON object per line, flushed as it happens. A line is a record of
`run.json` with two more keys: `kind` ("train" or "eval") and `wall_seconds` (the time that the run
has taken so far, over all its sessions).

`<run_dir>/run.json`: the whole run as one object, replaced atomically at the start, at each
evaluation and checkpoint, and at the end, so that a reader never meets half a file.

Units are SI: 1 GB is 1e9 bytes, 1 TFLOP/s is 1e12 FLOP/s. An `iter` is the number of optimizer
steps done. Losses are nats per token. Times of day are UTC, ISO 8601. NaN and infinity, which JSON
does not have, become null.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

SCHEMA_VERSION = 1
LINE_WIDTH = 100
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"

# Where run.json keeps the records of each kind of metrics line.
_LIST_OF_KIND = {"train": "training_iterations", "eval": "eval_steps"}


# --- Numbers, as people read them -----------------------------------------------------------------


def format_number(value: float | None, spec: str) -> str:
    """`value` by a format specification; `-` where there is no finite number."""
    return "-" if value is None or not math.isfinite(value) else format(value, spec)


def _scaled(value: float | None, units: Sequence[str], small_decimals: int = 1) -> str:
    """`value` in the unit (each 1000 times the one before) that leaves it under 1000.

    Below 100 it has `small_decimals` decimals, from there on one; whole numbers of the first unit
    have none. `-` where there is no finite number.
    """
    if value is None or not math.isfinite(value):
        return "-"
    power = 0
    while abs(value) >= 999.95 and power < len(units) - 1:  # 999.95 would print as 1000.0
        value, power = value / 1000, power + 1
    decimals = small_decimals if abs(value) < 99.995 else 1
    if power == 0 and value == int(value):
        decimals = 0
    return f"{value:.{decimals}f}{units[power]}"


def format_count(value: float | None) -> str:
    """`1.23B`, `124.4M`, `12.34K`, `987`; `-` where there is no finite number."""
    return _scaled(value, ("", "K", "M", "B", "T"), small_decimals=2)


def format_flops(value: float | None) -> str:
    """`854.7 MFLOPs`; `-` where there is no finite number."""
    return _scaled(value, [f" {prefix}FLOPs" for prefix in ("", *"kMGTPEZ")])


def format_bytes(value: float | None) -> str:
    """`3.2 GB`, where 1 GB is 1e9 bytes; `-` where there is no finite number."""
    return _scaled(value, [f" {prefix}B" for prefix in ("", *"kMGTP")])


# --- Lines on the console -------------------------------------------------------------------------


def format_start_report(sections: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> str:
    """Titled blocks of `name  value` rows, the values aligned over all blocks and wrapped.

    Args:
        sections: Of each block the title and its rows.

    Returns:
        Lines of at most LINE_WIDTH columns.
    """
    names = [name for _, rows in sections for name, _ in rows]
    column = max(map(len, names), default=0) + 4  # 2 of indentation, 2 between the columns
    lines = []
    for title, rows in sections:
        lines.append(title)
        for name, value in rows:
            lines += textwrap.wrap(
                value,
                LINE_WIDTH,
                initial_indent=f"  {name}".ljust(column),
                subsequent_indent=" " * column,
                break_on_hyphens=False,
            ) or [f"  {name}"]
    return "\n".join(lines)


def _pack(fields: Sequence[str], indent: str = "") -> str:
    """Fields two spaces apart, on as few lines as LINE_WIDTH allows; later lines are indented."""
    lines = [indent + fields[0]]
    for field in fields[1:]:
        if len(lines[-1]) + 2 + len(field) <= LINE_WIDTH:
            lines[-1] += "  " + field
        else:
            lines.append("    " + field)
    return "\n".join(lines)


def _progress(iter: int, max_iters: int | None) -> str:
    return f"{iter:>6}" if max_iters is None else f"{iter:>{len(str(max_iters))}}/{max_iters}"


def _memory_field(memory: Mapping[str, float | None]) -> str:
    """`mem 11.2 peak 133 reserved 134 GB`; mem is what is allocated, on a CPU what is resident."""
    shown = {"allocated": "mem", "resident": "mem", "peak": "peak", "reserved": "reserved"}
    parts = [
        f"{label} {memory[key] / 1e9:.3g}"
        for key, label in shown.items()
        if memory.get(key) is not None
    ]
    return " ".join(parts) + " GB" if parts else "mem -"


def _tflops(value: float | None) -> str:
    """Three digits that matter, without an exponent: `0.0517`, `45.6`, `989`, `2250`."""
    return format_number(value, ".0f" if value is not None and value >= 100 else ".3g")


def format_step(record: Mapping[str, Any], max_iters: int | None) -> str:
    """A record of `training_iterations` as lines: what it learns and how fast, then the rest."""
    mfu, gradients = record["mfu"], record["gradients"]
    percent = mfu["mfu_percent"]
    fields = [
        f"iter {_progress(record['iter'], max_iters)}",
        f"loss {record['loss']:7.4f}",
        f"{record['time_ms']:6.1f} ms",
        f"lr {record['lr']:.2e}",
        f"MFU {'-' if percent is None else f'{percent:.1f}%':>5}",
        f"{format_count(record['tokens_per_second']):>6} tok/s",
        f"{_tflops(mfu['achieved_tflops'])}/{_tflops(mfu['peak_tflops'])} TFLOP/s",
    ]
    details = [
        f"{format_flops(mfu['flops_per_token'])}/token",
        _memory_field(record["memory"]),
        f"grad norm {gradients['norm']:.3g} mean {format_number(gradients['mean'], ' .1e')} "
        f"std {format_number(gradients['std'], '.1e')}",
    ]
    if record["bad_steps"]:
        details.append(f"skipped steps {record['bad_steps']}")
    return _pack(fields) + "\n" + _pack(details, indent="    ")


def format_eval(
    record: Mapping[str, Any], max_iters: int | None, best: Mapping[str, Any] | None
) -> str:
    """A record of `eval_steps` as a line; `best` is the record of the lowest loss so far."""
    best_text = "none finite" if best is None else f"{best['val_loss']:.4f} at {best['iter']}"
    fields = [
        f"eval {_progress(record['iter'], max_iters)}",
        f"val loss {record['val_loss']:.4f}",
        f"{record['val_bits_per_byte']:.4f} bits/byte",
        f"best {best_text}",
        f"{format_count(record['tokens_seen'])} tokens",
        f"{record['seconds']:,.1f} s",
    ]
    return _pack(fields)


class _Console:
    """Lines on standard output and, where that is a terminal, a progress bar beneath them."""

    def __init__(self, done: int, total: int | None):
        self._bar = tqdm(
            total=total,
            initial=done,
            file=sys.stdout,
            unit=" steps",
            dynamic_ncols=True,
            leave=False,
            disable=not sys.stdout.isatty(),
        )

    def say(self, text: str) -> None:
        """Print above the bar; without a bar this is a plain print."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def advance(self, iter: int) -> None:
        self._bar.update(iter - self._bar.n)

    def close(self) -> None:
        self._bar.close()


# --- Records and files ----------------------------------------------------------------------------


def json_safe(value: Any) -> Any:
    """`value` with every NaN and infinity in it as None, and tuples as lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return value


def write_atomically(path: Path, text: str) -> None:
    """Replace the file; a kill at any moment leaves the old one or the new one, whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _metrics_line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


def _parse_metrics_line(text: str) -> dict[str, Any] | None:
    """The object that a line of metrics.jsonl holds; None where the line is damaged."""
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return None
    whole = isinstance(line, dict) and line.get("kind") in _LIST_OF_KIND
    return line if whole and {"iter", "wall_seconds"} <= line.keys() else None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, oldest first, without a last one that a kill cut short.

    Raises:
        ValueError: A line before the last is damaged.
    """
    texts = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    lines = [_parse_metrics_line(text) for text in texts]
    if lines[-1] is None:
        lines.pop()
    if None in lines:
        raise ValueError(
            f"{path}: line {lines.index(None) + 1} of {len(texts)} is damaged; "
            "restore the file or remove that line."
        )
    return lines


def last_metrics(path: Path) -> dict[str, Any] | None:
    """The last whole line of a metrics.jsonl, without reading what is before; None before any."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        texts = file.read().decode("utf-8", errors="replace").split("\n")[:-1]
    return _parse_metrics_line(texts[-1]) if texts else None


def read_run(path: Path) -> Any:
    """What a run.json holds, without parsing its log lines: `training_iterations` is left empty.

    Those lines are nine tenths of the file, and `summary` tells what they came to. `_write_run`
    indents by one space, so a line that starts with ` ]` can only end a list of the top level; a
    file that is laid out otherwise is parsed whole.

    Raises:
        ValueError: The file is no JSON.
    """
    text = path.read_bytes()
    before, key, lines = text.partition(b'\n "training_iterations": [\n')
    _, end, after = lines.partition(b"\n ]")
    return json.loads(before + key + end + after if end else text)


def records_of(lines: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The lines of one kind as the records that run.json holds."""
    own = ("kind", "wall_seconds")
    return [
        {key: value for key, value in line.items() if key not in own}
        for line in lines
        if line["kind"] == kind
    ]


def _best(eval_steps: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    finite = [record for record in eval_steps if record["val_loss"] is not None]
    return min(finite, key=lambda record: record["val_loss"], default=None)


def _median(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return statistics.median(numbers) if numbers else None


def summarize(
    training_iterations: Sequence[Mapping[str, Any]],
    eval_steps: Sequence[Mapping[str, Any]],
    *,
    flops_per_token: int,
    wall_seconds: float,
) -> dict[str, Any]:
    """What a run came to, so far; null where there is nothing to tell it from.

    The medians leave out the first log interval, which pays for warming up and compiling, unless
    it is the only one. `total_flops` counts training, by the full (not the causal) convention.
    """
    final = eval_steps[-1] if eval_steps else {}
    best = _best(eval_steps) or {}
    steady = training_iterations[1:] or training_iterations
    seen = [record["tokens_seen"] for record in (*training_iterations, *eval_steps)]
    peaks = [record["memory"].get("peak") for record in training_iterations]
    total_tokens = max(seen, default=0)
    return {
        "final_val_loss": final.get("val_loss"),
        "final_val_bits_per_byte": final.get("val_bits_per_byte"),
        "best_val_loss": best.get("val_loss"),
        "best_val_bits_per_byte": best.get("val_bits_per_byte"),
        "best_val_iter": best.get("iter"),
        "total_tokens": total_tokens,
        "total_flops": total_tokens * flops_per_token,
        "wall_seconds": wall_seconds,
        "median_tokens_per_second": _median([r["tokens_per_second"] for r in steady]),
        "median_mfu_percent": _median([r["mfu"]["mfu_percent"] for r in steady]),
        "peak_memory_bytes": max((peak for peak in peaks if peak is not None), default=None),
        "bad_steps": training_iterations[-1]["bad_steps"] if training_iterations else 0,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def refuse_existing_log(run_dir: Path) -> None:
    """Raise ValueError where a folder holds the log of a run already."""
    present = [name for name in (RUN_FILE, METRICS_FILE) if (run_dir / name).exists()]
    if present:
        raise ValueError(
            f"{run_dir} already holds a run ({', '.join(present)}); "
            "choose another --run_name, continue it with --resume, or remove the folder."
        )


def discard_unfinished_log(run_dir: Path) -> None:
    """Delete the log that a folder holds, unless it is of a run that completed."""
    run_file = run_dir / RUN_FILE
    if run_file.exists():
        status = json.loads(run_file.read_text(encoding="utf-8")).get("status")
        if status != "completed":
            run_file.unlink()
            (run_dir / METRICS_FILE).unlink(missing_ok=True)


class TrainingLogger:
    """Keeps and prints the log of a run, from plain numbers that the loop hands over.

    A context manager: entering opens the files and makes the status "running"; leaving makes it
    "completed", or "interrupted" after `interrupted()` or a KeyboardInterrupt, or "failed" on any
    other exception.

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

    Raises:
        ValueError: On entering: a new log where the folder holds one already, or the log to take
            up is damaged.
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
    ):
        self.run_dir = Path(run_dir)
        self._peak_flops = peak_flops
        self._max_iters = max_iters
        self._resume_step = resume_step
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
        if self._resume_step is None:
            refuse_existing_log(self.run_dir)
        else:
            self._take_up_log(self._resume_step)
        self._write_run()
        self._metrics = open(self.run_dir / METRICS_FILE, "a", encoding="utf-8")  # noqa: SIM115
        self._console = _Console(self._resume_step or 0, self._max_iters)
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        stopped = exception_type is not None and issubclass(exception_type, KeyboardInterrupt)
        if exception_type is not None and not stopped:
            status = "failed"
        else:
            status = "interrupted" if stopped or self._interrupted else "completed"
        self._metrics.close()
        self._run.update(status=status, end_time=_now())
        self._write_run()
        self.say(f"{status}; the log is in {self.run_dir / RUN_FILE}")
        self._console.close()

    def _take_up_log(self, step: int) -> None:
        """Keep what the files of this folder tell up to `step`, and note the resumption."""
        metrics_path = self.run_dir / METRICS_FILE
        lines = read_metrics(metrics_path) if metrics_path.exists() else []
        lines = [line for line in lines if line["iter"] <= step]
        earlier = self._read_earlier_run()
        write_atomically(metrics_path, "".join(map(_metrics_line, lines)))
        for kind, name in _LIST_OF_KIND.items():
            self._run[name] = records_of(lines, kind)
        checkpoints = earlier.get("checkpoints", [])
        self._run["checkpoints"] = [saved for saved in checkpoints if saved["step"] <= step]
        self._run["start_time"] = earlier.get("start_time", self._run["start_time"])
        self._run["resumed"] = [*earlier.get("resumed", []), {"step": step, "time": _now()}]
        self._earlier_seconds = lines[-1]["wall_seconds"] if lines else 0.0

    def _read_earlier_run(self) -> dict[str, Any]:
        path = self.run_dir / RUN_FILE
        if not path.exists():
            return {}
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
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
        self.say(format_eval(record, self._max_iters, _best(self._run["eval_steps"])))

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
        self._metrics.write(_metrics_line(line))
        self._metrics.flush()
        self._run[_LIST_OF_KIND[kind]].append(safe)

    def _write_run(self) -> None:
        text = json.dumps({**self._run, "summary": self.summary}, indent=1, allow_nan=False)
        write_atomically(self.run_dir / RUN_FILE, text + "\n")
