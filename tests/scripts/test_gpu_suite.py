"""The GPU suite: how it runs its entries, what it reads, what it writes; all of it on a CPU."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

import configurator
from benchmarks import gpu_suite, throughput
from benchmarks.suite import readings, results
from benchmarks.suite.entries import all_entries
from benchmarks.suite.entry import (
    CHECK,
    FAILED,
    NOT_RUN,
    PASSED,
    SKIPPED,
    TIMED_OUT,
    Command,
    Entry,
    Goal,
    NothingToRun,
    Outcome,
    Place,
)
from benchmarks.suite.execution import OUTPUT_LINES, run_entries, run_entry
from errors import UserError
from interop.starting_model import new_settings
from scripts.runs import PROJECT

LIMIT = 60.0


def python(code: str) -> Command:
    return (sys.executable, "-S", "-c", code)


def entry(*commands: Command, **changes: object) -> Entry:
    """A stand-in whose commands run in turn."""
    stages = tuple((command,) for command in commands)
    return dataclasses.replace(Entry("stand-in", CHECK, 1.0, stages), **changes)


def outcome_of(own: Entry, folder: Path, limit: float = LIMIT, *, tiny: bool = False) -> Outcome:
    return run_entry(own, folder / "output", limit, tiny=tiny)


# Running


def test_an_entry_passes_by_its_exit_status(tmp_path: Path) -> None:
    outcome = outcome_of(entry(python("")), tmp_path)
    assert (outcome.status, outcome.reason, outcome.output) == (PASSED, "", "")
    assert outcome.numbers == {"seconds": round(outcome.seconds, 2)}


def test_stages_run_in_turn_and_their_commands_at_once(tmp_path: Path) -> None:
    """Each of two commands waits for a file of the other."""
    wait = "import pathlib, time\n{made!r} and pathlib.Path({made!r}).touch()\n"
    wait += "while not pathlib.Path({wanted!r}).exists(): time.sleep(0.01)"
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    both = tuple(python(wait.format(made=m, wanted=w)) for m, w in ((one, two), (two, one)))
    after = python(f"import os; assert os.path.exists({one!r}) and os.path.exists({two!r})")
    own = dataclasses.replace(entry(), stages=(both, (after,)))
    assert outcome_of(own, tmp_path).status == PASSED


def test_a_failure_keeps_the_last_lines(tmp_path: Path) -> None:
    outcome = outcome_of(
        entry(python("[print(i) for i in range(100)]; raise SystemExit(3)")), tmp_path
    )
    assert (outcome.status, outcome.reason) == (FAILED, "exit status 3")
    assert outcome.output.splitlines() == [str(i) for i in range(100)][-OUTPUT_LINES:]


@pytest.mark.slow
def test_what_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = (
        "import os, pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(pid)!r}).write_text(str(child.pid))\n"
        "print('hangs', flush=True)\n"
        "time.sleep(600)"
    )
    for limit in (2.0, 10.0, 40.0):  # a busy machine may not have started both in two seconds
        outcome = outcome_of(entry(python(code)), tmp_path / str(limit), limit)
        if outcome.output:
            break
    assert (outcome.status, outcome.output) == (TIMED_OUT, "hangs")
    assert outcome.seconds < limit + 30
    assert not is_running(int(pid.read_text()))


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_after_a_failure_the_rest_runs_until_the_time_is_over(tmp_path: Path) -> None:
    entries = [
        entry(python("raise SystemExit(1)")),
        entry(python(""), lacking="no such device"),
        entry(python("")),
        entry(python(""), expected=1000.0),
        entry(python("")),
    ]
    outcomes = list(run_entries(entries, tmp_path, LIMIT, tiny=False))
    assert [own.status for own in outcomes] == [FAILED, SKIPPED, PASSED, NOT_RUN, PASSED]
    assert outcomes[1].reason == "no such device"
    assert outcomes[3].reason.startswith("expected to take 1000 s, but ")
    assert gpu_suite.conclusion(outcomes) == (1, "1 failed, 1 skipped, 2 passed, 1 not run")
    assert gpu_suite.conclusion(outcomes[1:3])[0] == 0


def raising(error: Exception) -> Callable[[], dict[str, float]]:
    def read() -> dict[str, float]:
        raise error

    return read


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (FileNotFoundError("run.json"), FAILED, "cannot be read: FileNotFoundError: run.json"),
        (KeyError("loss"), FAILED, "cannot be read: KeyError: 'loss'"),
        (NothingToRun("no tests"), SKIPPED, "no tests"),
    ],
)
def test_results_that_cannot_be_read(
    error: Exception, status: str, said: str, tmp_path: Path
) -> None:
    outcome = outcome_of(entry(read=raising(error)), tmp_path)
    assert outcome.status == status
    assert said in outcome.reason


# Goals

MFU = Goal("mfu_percent", at_least=50)


@pytest.mark.parametrize(
    ("numbers", "status"),
    [
        ({"mfu_percent": 50}, PASSED),
        ({"mfu_percent": 49.9}, FAILED),
        ({"mfu_percent": None}, FAILED),
    ],
)
def test_a_goal_that_is_missed_or_not_measured_fails(
    numbers: dict[str, float | None], status: str, tmp_path: Path
) -> None:
    outcome = outcome_of(entry(read=lambda: numbers, goals=(MFU,)), tmp_path)
    assert outcome.status == status
    assert outcome.reason == ("" if status == PASSED else "goal missed: mfu_percent >= 50")


@pytest.mark.parametrize(("at_any_size", "status"), [(False, PASSED), (True, FAILED)])
def test_tiny_sizes_have_only_the_goals_of_any_size(
    at_any_size: bool, status: str, tmp_path: Path
) -> None:
    goal = Goal("difference", at_most=0.1, at_any_size=at_any_size)
    own = entry(read=lambda: {"difference": 0.2}, goals=(goal,))
    outcome = outcome_of(own, tmp_path, tiny=True)
    assert outcome.status == status
    [written] = outcome.to_dict(tiny=True)["goals"]
    assert written == {"goal": "difference <= 0.1", "applied": at_any_size, "met": False}


def test_a_time_is_a_number_with_goals(tmp_path: Path) -> None:
    own = entry(python(""), goals=(Goal("seconds", at_most=0),))
    assert outcome_of(own, tmp_path).status == FAILED


# Reading


def write_run(folder: Path, losses: list[float | None], speed: float = 1.0, **keys: object) -> Path:
    folder.mkdir()
    log = {
        "status": "completed",
        "training_iterations": [{"iter": i, "loss": loss} for i, loss in enumerate(losses, 1)],
        "summary": {"median_tokens_per_second": speed},
    }
    (folder / "run.json").write_text(json.dumps(log | keys))
    return folder


def test_losses_are_compared_step_by_step(tmp_path: Path) -> None:
    reference = write_run(tmp_path / "a", [3.0, 2.0, 1.0])
    others = {"b": write_run(tmp_path / "b", [3.0, 2.25, 1.0])}
    learnt = {"first_loss": 3.0, "last_loss": 1.0}
    assert readings.differences(reference, others) == learnt | {"difference": 0.25}
    others["c"] = write_run(tmp_path / "c", [2.5, 2.0, 1.0])
    both = {"difference_b": 0.25, "difference_c": 0.5}
    assert readings.differences(reference, others) == learnt | both


@pytest.mark.parametrize(
    ("losses", "keys", "said"),
    [
        ([3.0], {}, "logged 2 steps, b 1"),
        ([3.0, None], {}, "is not finite"),
        ([3.0, 2.0], {"status": "interrupted"}, "b was interrupted"),
    ],
)
def test_losses_that_cannot_be_compared(
    losses: list[float | None], keys: dict[str, str], said: str, tmp_path: Path
) -> None:
    one = write_run(tmp_path / "a", [3.0, 2.0])
    other = write_run(tmp_path / "b", losses, **keys)
    with pytest.raises(ValueError, match=said):
        readings.largest_difference(one, other)


def test_runs_at_once_are_summed(tmp_path: Path) -> None:
    alone, *several = (
        write_run(tmp_path / str(i), [1.0], speed) for i, speed in enumerate((100.0, 60.0, 90.0))
    )
    assert readings.together(alone, several) == {
        "runs": 2,
        "tokens_per_second_alone": 100.0,
        "tokens_per_second_in_sum": 150.0,
        "ratio": 1.5,
    }


def test_nanogpt_counts_at_its_fastest(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    rows = [
        {"tokens_per_second": speed, "lowest": 1.0, "highest": 9.0, "mfu_percent": None}
        for speed in (3.0, 1.0, 2.0)
    ]
    path.write_text(json.dumps({"results": rows}))
    assert readings.speed(path) == rows[0]
    assert readings.against_nanogpt(path) == {
        "tokens_per_second": 3.0,
        "tokens_per_second_of_nanogpt": 2.0,
        "ratio": 1.5,
    }


def test_tests_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "results.xml"
    suite = '<testsuites><testsuite tests="{}" skipped="{}" failures="0" errors="0"/></testsuites>'
    path.write_text(suite.format(5, 2))
    assert readings.test_counts(path, "cpu") == {"tests_passed": 3, "tests_skipped": 2}
    path.write_text(suite.format(2, 2))
    with pytest.raises(NothingToRun, match="2 tests, all of which need a CUDA device"):
        readings.test_counts(path, "cpu")
    assert readings.test_counts(path, "cuda")["tests_passed"] == 0  # misses its goal


# The list


@pytest.fixture
def full(tmp_path: Path) -> list[Entry]:
    """The entries of an H100."""
    throughput.write_data(tmp_path / "data", 2048)
    return all_entries(Place(tmp_path, tmp_path / "data", "cuda", tiny=False))


def test_every_entry_has_a_name_of_its_own_and_all_fit_into_the_time(full: list[Entry]) -> None:
    assert len({own.name for own in full}) == len(full)
    assert sum(own.expected for own in full) < 9 * 60


def test_the_flags_of_the_full_size_are_settings_that_cuda_can_train(full: list[Entry]) -> None:
    """What a machine without a GPU can check of the commands that only a GPU runs."""
    commands = [command for own in full for stage in own.stages for command in stage]
    checked = 0
    for command in commands:
        flags = flags_of_train(command)
        if flags is None:
            continue
        settings = new_settings(configurator.read(flags))
        dtype = getattr(torch, settings.training.dtype)
        refused = settings.model.backend_refusals("cuda", dtype)
        assert refused == [] or "flash-attn package" in str(refused)
        assert settings.training.device == "cuda"
        checked += 1
    assert checked >= 20


def flags_of_train(command: Command) -> list[str] | None:
    """The config files and flags of train.py in a command; None if there are none to check."""
    if "benchmarks/throughput.py" in command:
        flags = list(command[command.index("benchmarks/throughput.py") + 1 :])
        return throughput.parser().parse_known_args(flags)[1]
    if "train.py" not in command or any(part.startswith("--resume=") for part in command):
        return None
    return list(command[command.index("train.py") + 1 :])


def test_what_this_machine_lacks_is_skipped_with_a_reason(tmp_path: Path) -> None:
    place = Place(tmp_path, tmp_path, "cpu", tiny=True)
    lacking = {own.name: own.lacking for own in all_entries(place) if own.lacking}
    assert lacking == {
        "flash-attn": "flash-attn needs a CUDA device",
        "GPT-2 124M against nanoGPT": "no checkout of nanoGPT: give --against=PATH",
    }
    beside = all_entries(dataclasses.replace(place, against=tmp_path))
    commands = [command for own in beside for stage in own.stages for command in stage]
    assert sum(f"--against={tmp_path}" in command for command in commands) == 1


def test_tests_for_cuda_are_marked(full: list[Entry]) -> None:
    """A test that skips without CUDA has the mark by which the suite finds it."""
    [[command]] = full[0].stages
    for path in (PROJECT / "tests").rglob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        skips = text.count("@pytest.mark.skipif(not torch.cuda")
        if path != Path(__file__):
            assert text.count("@pytest.mark.gpu\n") == skips, path
            assert (str(path) in command) == bool(skips)


# The results file and the document

ENVIRONMENT = {
    **{"device": "NVIDIA H100 80GB HBM3", "torch": "2.13.0", "cuda": "12.9"},
    **{"commit": "0123456789abcdef", "dirty": True},
}


def some_results(finished: str = "2026-01-02T03:04:05+00:00", tiny: bool = False) -> dict:
    own = entry(goals=(MFU,))
    outcomes = [
        Outcome(own, FAILED, 12.3, {"mfu_percent": 41.25, "seconds": 12.3}, "goal missed", "a|b"),
        Outcome(entry(lacking="x"), SKIPPED, reason="no a|b\nhere"),
    ]
    return results.results_of(
        outcomes,
        ENVIRONMENT,
        finished=finished,
        command=["--minutes=9"],
        tiny=tiny,
        nanogpt_commit=None,
    )


def test_a_results_file_is_named_by_device_and_date(tmp_path: Path) -> None:
    first = results.write_results(some_results(), tmp_path)
    second = results.write_results(some_results("2026-01-02T09:00:00+00:00"), tmp_path)
    results.write_results(some_results(tiny=True), tmp_path)
    assert first.name == "nvidia-h100-80gb-hbm3-2026-01-02.json"
    assert second.name == "nvidia-h100-80gb-hbm3-2026-01-02-2.json"
    read = results.read_results(tmp_path)
    assert [own["finished"][11:13] for own in read] == ["09", "03"]
    assert read[0]["environment"] == ENVIRONMENT
    assert read[0]["entries"][0]["output"] == "a|b"


def test_the_table(tmp_path: Path) -> None:
    assert results.section(some_results()).splitlines() == [
        "### NVIDIA H100 80GB HBM3, 2026-01-02",
        "",
        "torch 2.13.0, CUDA 12.9, commit 0123456789ab with changes, 12 s in all.",
        "",
        "| What | Status | Measured | Goal | Seconds |",
        "| --- | --- | --- | --- | ---: |",
        "| stand-in | failed | mfu_percent 41.25; goal missed | mfu_percent >= 50 | 12 |",
        "| stand-in | skipped | no a\\|b here |  | 0 |",
    ]


def test_the_document_is_replaced_between_its_markers(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"before\n\n{results.BEGIN}\nold\n{results.END}\n\nafter\n")
    results.update_document(document, [some_results()])
    text = document.read_text()
    assert text.startswith("before\n\n")
    assert text.endswith("\n\nafter\n")
    assert "mfu_percent 41.25" in text
    assert "old" not in text
    results.update_document(document, [])
    assert results.NOTHING_YET in document.read_text()
    document.write_text("no markers")
    with pytest.raises(UserError, match="needs the lines"):
        results.update_document(document, [])


def test_the_document_has_the_results_that_are_there() -> None:
    """`benchmarks/gpu_suite.sh --table` writes it."""
    text = results.DOCUMENT.read_text(encoding="utf-8")
    assert results.block(results.read_results(results.RESULTS)) in text


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"tiny": true}', '{"schema_version": 0, "tiny": true}']
)
def test_other_files_among_the_results_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json (has no results|has version 0)"):
        results.read_results(tmp_path)


# The command


def test_the_full_size_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device; --tiny runs the suite on any"):
        gpu_suite.main([])
    with pytest.raises(UserError, match="has no model.py; name a checkout of nanoGPT"):
        gpu_suite.main(["--tiny", f"--against={tmp_path}"])


def test_a_run_of_the_suite(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With stand-ins for its entries: what is printed, and the file."""
    entries = [entry(python("")), entry(python("print('why'); raise SystemExit(1)"))]
    monkeypatch.setattr(gpu_suite, "all_entries", lambda place: entries)
    document = results.DOCUMENT.read_text(encoding="utf-8")
    assert gpu_suite.main(["--tiny", f"--results={tmp_path}"]) == 1
    said = capsys.readouterr().out
    assert "exit status 1\nwhy" in said
    assert said.endswith("1 passed, 1 failed\n")
    [path] = tmp_path.glob("*.json")
    written = json.loads(path.read_text())
    assert [own["status"] for own in written["entries"]] == [PASSED, FAILED]
    assert {"device", "torch", "cuda", "commit", "dirty"} <= written["environment"].keys()
    assert results.DOCUMENT.read_text(encoding="utf-8") == document


def test_the_results_are_not_ignored() -> None:
    command = ["git", "check-ignore", "-q", "benchmarks/results/nvidia-h100-2026-01-02.json"]
    found = subprocess.run(command, cwd=PROJECT, capture_output=True, check=False)
    assert found.returncode != 0


@pytest.mark.slow
def test_the_whole_suite_at_tiny_sizes(tmp_path: Path) -> None:
    command = [str(PROJECT / "benchmarks/gpu_suite.sh"), "--tiny", f"--results={tmp_path}"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [file] = tmp_path.glob("*.json")
    entries = json.loads(file.read_text())["entries"]
    assert {own["status"] for own in entries} <= {PASSED, SKIPPED}
    assert all(own["reason"] for own in entries if own["status"] == SKIPPED)
    assert len(entries) == 16
