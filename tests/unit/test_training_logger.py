"""The log of a run: numbers, lines, files, and taking a log up again."""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys

import pytest

import training_logger
from errors import UserError
from training.log_text import CONSOLE_WIDTH, format_note
from training_logger import (
    ResumePoint,
    TrainingLogger,
    format_byte_sum,
    format_bytes,
    format_count,
    format_flops,
    format_number,
    format_start_report,
    read_metrics,
)

ARCHITECTURE = {
    "name": "12L-12H-768D-RoPE-RMS-SwiGLU-PreNorm",
    "parameters": 162_220_800,
    "flops_per_token": 854_654_976,
    "flops_per_token_causal": 798_087_168,
    "attention_ffn_ratio": 0.45,
}
RUN_FIELDS = {
    *("schema_version", "run_name", "status", "start_time", "end_time", "config"),
    *("architecture", "environment", "data", "training_iterations", "eval_steps", "samples"),
    *("checkpoints", "summary", "run_id", "starts", "plugins", "roles", "defaults"),
}


def make_logger(run_dir, **changes) -> TrainingLogger:
    settings = {
        "config": {"learning_rate": 1e-3, "n_layer": 12},
        "architecture": ARCHITECTURE,
        "environment": {"python": "3.11", "device": "a CPU"},
        "data": {"dataset": "tiny", "fingerprint": "abc", "train_tokens": 900, "val_tokens": 100},
        "peak_flops": 123.4e9,
        "max_iters": 100,
    }
    return TrainingLogger(run_dir, "tiny-run", **(settings | changes))


def log_step(logger, iter, **changes) -> None:
    record = {
        "iter": iter,
        "loss": 10 / (iter + 1),
        "lr": 1e-3,
        "time_ms": 125.0,
        "tokens_seen": iter * 1024,
        "tokens_per_second": 71.3,
        "memory": {"resident": 612_000_000, "peak": 700_000_000 + iter},
        "gradients": {"norm": 1.234, "mean": -1.2e-8, "std": 3.4e-4},
        "bad_steps": 0,
        "share_done": iter / 100,
    }
    logger.log_step(**(record | changes))


def log_eval(logger, iter, val_loss=None) -> None:
    val_loss = 8 / (iter + 1) if val_loss is None else val_loss
    logger.log_eval(
        iter=iter,
        val_loss=val_loss,
        val_bits_per_byte=val_loss / math.log(2),
        tokens_seen=iter * 1024,
        seconds=iter * 0.125,
    )


def train(logger, first: int, last: int) -> None:
    """What a loop logs from `first` to `last` steps done: each 5th, evaluated each 10th."""
    for iter in range(first, last + 1, 5):
        log_step(logger, iter)
        if iter % 10 == 0:
            log_eval(logger, iter)
            path = logger.run_dir / "checkpoints" / f"step_{iter}"
            path.mkdir(parents=True, exist_ok=True)
            logger.log_checkpoint(path, iter)


def train_and_raise(run_dir, last: int, error: type[BaseException]) -> None:
    with make_logger(run_dir) as logger:
        train(logger, 5, last)
        raise error


def strict_json(text: str):
    """The parsed text; fails on the NaN and Infinity that Python would let pass."""

    def refuse(constant):
        pytest.fail(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def read_run(run_dir) -> dict:
    return strict_json((run_dir / "run.json").read_text())


def metrics_lines(run_dir) -> list[dict]:
    return [strict_json(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


# --- Numbers ---


@pytest.mark.parametrize(
    ("formatter", "value", "text"),
    [
        (format_count, 0, "0"),
        (format_count, 987, "987"),
        (format_count, 71.34, "71.34"),
        (format_count, 999.96, "1.00K"),
        (format_count, 12_340, "12.34K"),
        (format_count, 99_999, "100.0K"),
        (format_count, 124_439_808, "124.4M"),
        (format_count, 999_999_999, "1.00B"),
        (format_count, 1_230_000_000, "1.23B"),
        (format_count, 5e15, "5000.0T"),
        (format_flops, 854_654_976, "854.7 MFLOPs"),
        (format_flops, 512, "512 FLOPs"),
        (format_flops, 3.1e21, "3.1 ZFLOPs"),
        (format_bytes, 3.2e9, "3.2 GB"),
        (format_bytes, 999_960, "1.0 MB"),
        (format_bytes, 80, "80 B"),
        (lambda value: format_number(value, ".3f"), 2, "2.000"),
    ],
)
def test_numbers_are_readable(formatter, value, text):
    assert formatter(value) == text


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_missing_number_is_a_dash(value):
    formatters = (format_count, format_flops, format_bytes, lambda x: format_number(x, ".1f"))
    assert [formatter(value) for formatter in formatters] == ["-"] * 4


# --- Console ---


def test_start_report_aligns_and_wraps():
    long_value = " ".join(f"choice_{i}=value" for i in range(12))
    report = format_start_report(
        [
            ("Architecture", [("name", "llama"), ("every choice", long_value)]),
            ("Hardware", [("peak", "989 TFLOP/s"), ("", "dense"), ("commit", "")]),
        ]
    )
    lines = report.splitlines()
    assert lines[0] == "Architecture"
    assert lines[1] == "  name          llama"
    assert lines[2].startswith("  every choice  choice_0=value choice_1=value")
    assert lines[3].startswith(" " * 16 + "choice_")
    assert lines[-4:-1] == ["Hardware", "  peak          989 TFLOP/s", " " * 16 + "dense"]
    assert lines[-1] == "  commit"
    assert max(map(len, lines)) <= CONSOLE_WIDTH
    assert [word for line in lines[2:-4] for word in line.split()][2:] == long_value.split()


def test_messages_are_wrapped_and_paths_kept_whole():
    path = "/a" * 50
    lines = format_note(f"{'word ' * 30}\n  saved in {path}").splitlines()
    assert [len(line) for line in lines[:2]] == [79, 69]
    assert lines[-1] == path


def test_plain_lines_tell_everything_that_was_measured(tmp_path, capsys):
    with make_logger(tmp_path / "run") as logger:
        log_step(logger, 10)
        log_eval(logger, 10)
        logger.log_checkpoint(tmp_path / "run" / "checkpoints" / "step_10", 10)
        logger.say("a line of the loop's own")
    out = capsys.readouterr().out
    assert "\r" not in out
    step, speed, details, evaluation, checkpoint, own, end, log, *_ = out.splitlines()
    assert step == "step  10/100 | loss 0.9091 | lr 1.00e-03 | 125.0 ms | ETA 0:11"  # 90 x 0.125
    # 71.3 tok/s x 854.654976 MFLOPs = 0.06094 TFLOP/s, of 0.1234: 49.4 %.
    assert speed == "  MFU 49.4%, 0.0609 of 0.123 TFLOP/s | 71.30 tok/s | 854.7 MFLOPs/token"
    assert details == "  mem 0.612 peak 0.7 GB | grads: norm 1.23, mean -1e-08, std 3e-04"
    assert evaluation == (
        "step  10/100 | val loss 0.7273 | 1.0492 bits/byte | best 0.7273 (step 10)"
    )
    assert checkpoint == "checkpoint of step 10 saved in checkpoints/step_10"
    assert own == "a line of the loop's own"
    assert re.fullmatch(r"completed in 0:0\d, best val loss 0.7273 \(step 10\)", end)
    assert log == f"  log:      {tmp_path / 'run' / 'run.json'}"


def test_brief_lines(tmp_path, capsys):
    with make_logger(tmp_path / "run", brief=True) as logger:
        log_step(logger, 10)
    brief = capsys.readouterr().out.splitlines()[0]
    assert brief == "step  10/100 | loss 0.9091 | lr 1.0e-03 | 71.30 tok/s | MFU 49% | ETA 0:11"
    with make_logger(tmp_path / "other", brief=True, peak_flops=None, max_iters=None) as logger:
        log_step(logger, 10)
    brief = capsys.readouterr().out.splitlines()[0]
    assert brief == "step 10 | loss 0.9091 | lr 1.0e-03 | 71.30 tok/s | ETA 0:11"


def test_a_sample_is_shown_beside_a_bar(tmp_path, capsys):
    with make_logger(tmp_path / "run") as logger:
        text = "tab\there, bell\a\n\n" + "word " * 30
        logger.log_sample(iter=10, tokens_seen=10_240, prompt="Once ", text=text)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["sample after step 10:", "  | Once tab    here, bell.", "  | "]
    assert max(map(len, lines[:5])) <= CONSOLE_WIDTH
    assert "".join(line.removeprefix("  | ") for line in lines[3:5]) == "word " * 30
    [sample] = read_run(tmp_path / "run")["samples"]
    assert (sample["prompt"], sample["text"]) == ("Once ", text)


def test_long_work_is_announced(tmp_path, capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr(training_logger.time, "perf_counter", lambda: now)
    with make_logger(tmp_path / "run") as logger:
        for seconds in (1.0, 6.0, 7.0):
            with logger.pause("validating"):
                now += seconds
            logger.say(f"{seconds:.0f} s")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == ["validating ...", "1 s", "6 s", "validating ...", "7 s"]


def test_lines_keep_to_the_width_and_do_not_jump(tmp_path, capsys):
    memory = {"allocated": 11.2e9, "peak": 133.4e9, "reserved": 134.5e9}
    with make_logger(tmp_path / "run", peak_flops=2250e12, max_iters=600_000) as logger:
        for iter, loss in ((10, 10.8249), (599_990, 2.1)):
            log_step(logger, iter, loss=loss, memory=memory, tokens_per_second=1_234_567.8)
        huge = {"norm": 1.23e30, "mean": -1e-30, "std": 1e30}
        log_step(logger, 600_000, loss=1e9, time_ms=9e9, gradients=huge, bad_steps=1234)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-4])) <= CONSOLE_WIDTH
    assert "1055 of 2250 TFLOP/s" in lines[1]
    assert "mem 11.2 peak 133 reserved 134 GB" in lines[2]
    assert lines[0].index("loss") == lines[3].index("loss")
    assert lines[3].startswith("step 599990/600000 | loss 2.1000")
    assert any("skipped steps 1234" in line for line in lines)


def test_what_is_unknown_is_a_dash_on_the_console(tmp_path, capsys):
    nan = {"norm": math.nan, "mean": math.nan, "std": math.nan}
    with make_logger(tmp_path / "run", peak_flops=None) as logger:
        log_step(logger, 10, loss=math.nan, gradients=nan, memory={"resident": None})
        log_eval(logger, 10, val_loss=math.inf)
    step, speed, details, evaluation, *_ = capsys.readouterr().out.splitlines()
    assert "loss nan" in step
    assert "MFU -, " in speed
    assert "of - TFLOP/s" in speed
    assert "mem -" in details
    assert "val loss inf" in evaluation
    assert "best none finite" in evaluation


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar_beneath_whole_lines(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with make_logger(tmp_path / "run", resume=ResumePoint(40)) as logger:
        logger.advance(45)
        log_step(logger, 50)
        log_eval(logger, 50)
    shown = terminal.getvalue()
    assert "40/100" in shown  # the bar starts where the run was taken up
    assert "50/100 [" in shown
    lines = [part for line in shown.split("\n") for part in line.split("\r")]
    assert sum(part.startswith("step  50/100 | loss") for part in lines) == 1
    assert sum(part.startswith("step  50/100 | val loss") for part in lines) == 1


# --- Files ---


def test_run_json_has_exactly_the_documented_fields(tmp_path):
    with make_logger(tmp_path) as logger:
        log_step(logger, 10)
        log_eval(logger, 10)
        logger.log_checkpoint(tmp_path / "checkpoints" / "step_10", 10)
    run = read_run(tmp_path)
    assert set(run) == RUN_FIELDS
    assert run["schema_version"] == training_logger.SCHEMA_VERSION
    assert run["run_name"] == "tiny-run"
    assert run["config"] == {"learning_rate": 1e-3, "n_layer": 12}
    assert run["architecture"] == ARCHITECTURE
    assert run["data"]["fingerprint"] == "abc"
    assert run["environment"]["device"] == "a CPU"
    assert run["start_time"] <= run["end_time"]
    assert run["training_iterations"] == [
        {
            "iter": 10,
            "loss": 10 / 11,
            "lr": 1e-3,
            "time_ms": 125.0,
            "tokens_seen": 10240,
            "tokens_per_second": 71.3,
            "mfu": run["training_iterations"][0]["mfu"],
            "memory": {"resident": 612_000_000, "peak": 700_000_010},
            "gradients": {"norm": 1.234, "mean": -1.2e-8, "std": 3.4e-4},
            "bad_steps": 0,
            "kind": "train",
            "wall_seconds": run["training_iterations"][0]["wall_seconds"],
        }
    ]
    (evaluation,) = run["eval_steps"]
    assert evaluation.keys() == {
        *("iter", "val_loss", "val_bits_per_byte", "tokens_seen", "flops", "seconds"),
        *("kind", "wall_seconds"),
    }
    assert evaluation["flops"] == 10240 * ARCHITECTURE["flops_per_token"]
    assert run["checkpoints"] == [{"step": 10, "path": "checkpoints/step_10"}]


def test_utilization_identities_hold_to_the_last_digit(tmp_path):
    with make_logger(tmp_path) as logger:
        for iter in range(1, 30):
            log_step(logger, iter, tokens_per_second=1e5 / (iter * 7.3))
    for record in read_run(tmp_path)["training_iterations"]:
        mfu = record["mfu"]
        assert mfu["flops_per_token"] == ARCHITECTURE["flops_per_token"]
        assert mfu["architecture"] == ARCHITECTURE["name"]
        assert mfu["peak_tflops"] == 123.4e9 / 1e12
        achieved = record["tokens_per_second"] * mfu["flops_per_token"] / 1e12
        assert mfu["achieved_tflops"] == achieved
        assert mfu["mfu_percent"] == 100 * mfu["achieved_tflops"] / mfu["peak_tflops"]


def test_an_unknown_peak_gives_null_utilization(tmp_path):
    with make_logger(tmp_path, peak_flops=None) as logger:
        log_step(logger, 10)
    mfu = read_run(tmp_path)["training_iterations"][0]["mfu"]
    assert mfu["peak_tflops"] is None
    assert mfu["mfu_percent"] is None
    assert mfu["achieved_tflops"] == 71.3 * ARCHITECTURE["flops_per_token"] / 1e12


def test_nan_and_infinity_become_null_everywhere(tmp_path):
    changes = {
        "config": {"grad_clip": math.inf, "betas": (0.9, math.nan)},
        "architecture": ARCHITECTURE | {"attention_ffn_ratio": math.inf},
        "environment": {"load": -math.inf},
    }
    with make_logger(tmp_path, **changes) as logger:
        log_step(logger, 10, loss=math.nan, gradients={"norm": math.inf, "mean": 0.0, "std": 0.0})
        log_eval(logger, 10, val_loss=math.nan)
    run = read_run(tmp_path)
    assert run["config"] == {"grad_clip": None, "betas": [0.9, None]}
    assert run["architecture"]["attention_ffn_ratio"] is None
    assert run["environment"] == {"load": None}
    assert run["training_iterations"][0]["loss"] is None
    assert run["training_iterations"][0]["gradients"]["norm"] is None
    assert run["eval_steps"][0]["val_loss"] is None
    assert run["summary"]["best_val_loss"] is None
    assert [line.get("loss", line.get("val_loss")) for line in metrics_lines(tmp_path)] == [
        None
    ] * 2


def test_each_line_is_on_disk_before_the_next_step(tmp_path):
    with make_logger(tmp_path) as logger:
        assert metrics_lines(tmp_path) == []
        log_step(logger, 10)
        assert [line["iter"] for line in metrics_lines(tmp_path)] == [10]
        log_eval(logger, 10)
        log_step(logger, 20)
        lines = metrics_lines(tmp_path)
    assert [(line["kind"], line["iter"]) for line in lines] == [
        ("train", 10),
        ("eval", 10),
        ("train", 20),
    ]
    seconds = [line["wall_seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert lines[2] == read_run(tmp_path)["training_iterations"][1]


def test_while_a_run_lasts_its_records_are_in_metrics_alone(tmp_path):
    with make_logger(tmp_path) as logger:
        assert read_run(tmp_path)["status"] == "running"
        log_step(logger, 10)
        log_eval(logger, 10)
        run = read_run(tmp_path)
        assert run["status"] == "running"
        assert run["end_time"] is None
        assert run["summary"]["final_val_loss"] == 8 / 11
        assert (run["training_iterations"], run["eval_steps"]) == ([], [])
        log = training_logger.read_log(tmp_path)
        assert [record["iter"] for record in log["training_iterations"]] == [10]
        assert [record["val_loss"] for record in log["eval_steps"]] == [8 / 11]
    assert training_logger.read_log(tmp_path) == read_run(tmp_path)


def test_a_write_that_dies_leaves_the_old_file_whole(tmp_path, monkeypatch):
    with make_logger(tmp_path) as logger:
        log_eval(logger, 0)
        before = (tmp_path / "run.json").read_text()

        def die(descriptor):
            raise OSError("no space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", die)
            with pytest.raises(UserError, match="cannot write .*run.json: no space left"):
                log_eval(logger, 10)
        assert (tmp_path / "run.json").read_text() == before
    assert len(read_run(tmp_path)["eval_steps"]) == 2


def test_the_content_is_on_disk_before_it_replaces_the_old(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(b.name), replace(a, b)))
    with make_logger(tmp_path):
        pass
    page = "report.html"  # which nobody misses after a power cut
    assert calls == ["fsync", "run.json", page, page, "fsync", "run.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", page, "run.json"]


# --- Status ---


def test_status_is_completed_or_interrupted_as_told(tmp_path):
    with make_logger(tmp_path / "a"):
        pass
    with make_logger(tmp_path / "b") as logger:
        logger.interrupted()
    assert read_run(tmp_path / "a")["status"] == "completed"
    assert read_run(tmp_path / "b")["status"] == "interrupted"


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError, "failed"), (KeyboardInterrupt, "interrupted")]
)
def test_an_exception_is_noted_and_passed_on(tmp_path, capsys, error, status):
    with pytest.raises(error):
        train_and_raise(tmp_path, 10, error)
    run = read_run(tmp_path)
    assert run["status"] == status
    assert run["end_time"] is not None
    assert [record["iter"] for record in run["training_iterations"]] == [5, 10]
    assert capsys.readouterr().out.splitlines()[-2].startswith(status)


def test_a_new_log_never_overwrites_one(tmp_path):
    with make_logger(tmp_path) as logger:
        log_eval(logger, 10)
    before = (tmp_path / "run.json").read_text()
    with pytest.raises(
        ValueError, match=r"already contains a run \(run.json, metrics.jsonl\).*--res"
    ):
        make_logger(tmp_path).__enter__()
    assert (tmp_path / "run.json").read_text() == before


def test_only_checkpoints_that_are_there_are_listed_each_once(tmp_path):
    with make_logger(tmp_path) as logger:
        train(logger, 5, 30)
        (tmp_path / "checkpoints/step_10").rmdir()
        logger.log_checkpoint(tmp_path / "checkpoints/step_30", 30)
    assert [saved["step"] for saved in read_run(tmp_path)["checkpoints"]] == [20, 30]


# --- Resume ---


def history(run_dir) -> tuple:
    run = read_run(run_dir)
    lines = [(line["kind"], line["iter"]) for line in metrics_lines(run_dir)]
    records = [
        [{key: value for key, value in record.items() if key != "wall_seconds"} for record in found]
        for found in (run["training_iterations"], run["eval_steps"])
    ]
    return records, run["checkpoints"], lines


def test_a_resumed_log_equals_that_of_one_go(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with make_logger(whole) as logger:
        train(logger, 5, 40)
    # The first session dies past its checkpoint of step 20, in the middle of a line.
    with pytest.raises(RuntimeError):
        train_and_raise(parts, 35, RuntimeError)
    first = read_run(parts)
    assert first["status"] == "failed"
    with open(parts / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"kind": "train", "wall_sec')
    with make_logger(parts, resume=ResumePoint(20)) as logger:
        assert [line["iter"] for line in metrics_lines(parts)] == [5, 10, 10, 15, 20, 20]
        train(logger, 25, 40)

    assert history(parts) == history(whole)
    run = read_run(parts)
    assert run["start_time"] == first["start_time"]
    assert run["status"] == "completed"
    assert [start["step"] for start in run["starts"]] == [0, 20]
    assert run["run_id"] == first["run_id"]
    assert set(run) == RUN_FIELDS
    seconds = [line["wall_seconds"] for line in metrics_lines(parts)]
    assert seconds == sorted(seconds)
    assert run["summary"]["wall_seconds"] >= seconds[-1]


def test_every_resumption_is_listed(tmp_path):
    with make_logger(tmp_path) as logger:
        train(logger, 5, 10)
    for step in (10, 20):
        with make_logger(tmp_path, resume=ResumePoint(step)) as logger:
            train(logger, step + 5, step + 10)
    run = read_run(tmp_path)
    assert [start["step"] for start in run["starts"]] == [0, 10, 20]
    assert [record["iter"] for record in run["eval_steps"]] == [10, 20, 30]


def test_resuming_into_a_new_folder_starts_its_log(tmp_path):
    with make_logger(tmp_path / "new", resume=ResumePoint(20)) as logger:
        log_step(logger, 25)
    run = read_run(tmp_path / "new")
    assert [record["iter"] for record in run["training_iterations"]] == [25]
    assert run["starts"][0]["step"] == 20


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    with make_logger(tmp_path) as logger:
        train(logger, 5, 10)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + "{]\n" + lines[2])
    with pytest.raises(ValueError, match=r"metrics.jsonl: line 2 is damaged; restore"):
        make_logger(tmp_path, resume=ResumePoint(10)).__enter__()


def test_a_damaged_run_json_is_named_on_resume(tmp_path):
    with make_logger(tmp_path) as logger:
        train(logger, 5, 10)
    (tmp_path / "run.json").write_text('{"run_name": ')
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match=r"run.json is damaged .*restore it, or remove it"):
        make_logger(tmp_path, resume=ResumePoint(5)).__enter__()
    assert (tmp_path / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("tail", ["", '{"kind"', "\0\0\0\n", "12\n", '{"kind": "other"}\n'])
def test_a_last_line_cut_short_is_left_out(tmp_path, tail):
    with make_logger(tmp_path) as logger:
        log_step(logger, 10)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + tail)
    assert [line["iter"] for line in read_metrics(path)] == [10]


def test_a_last_line_that_lacks_only_its_end_counts(tmp_path):
    with make_logger(tmp_path) as logger:
        log_step(logger, 10)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().removesuffix("\n"))
    assert [line["iter"] for line in read_metrics(path)] == [10]


def test_an_empty_file_has_no_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("")
    assert read_metrics(path) == []


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_run_is_read_without_its_lines(tmp_path, steps):
    """The rest is exactly what parsing the whole file gives."""
    with make_logger(tmp_path) as logger:
        train(logger, 1, steps)
        log_eval(logger, steps)
    assert training_logger.read_run(tmp_path / "run.json") == read_run(tmp_path) | {
        "training_iterations": []
    }


def test_a_run_that_is_laid_out_otherwise_is_read_whole(tmp_path):
    with make_logger(tmp_path) as logger:
        train(logger, 1, 3)
    path = tmp_path / "run.json"
    for indent in (None, 2):
        path.write_text(json.dumps(read_run(tmp_path), indent=indent))
        assert training_logger.read_run(path) == read_run(tmp_path)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match="Expecting|Unterminated"):
        training_logger.read_run(path)


@pytest.mark.parametrize(
    ("parts", "shown"),
    [
        ([1.364e9, 1.074e9], ["2.43 GB", "1.36 GB", "1.07 GB"]),
        ([449.96e6, 0.04e6], ["450.0 MB", "450.0 MB", "0.0 MB"]),
        ([80, 7], ["87 B", "80 B", "7 B"]),
    ],
)
def test_the_parts_of_a_sum_of_bytes_add_up(parts, shown):
    assert format_byte_sum(parts) == shown
