"""Logs and manifests that are damaged in any way never end a comparison: they are named, or used
where what is left of them makes sense, and the other runs are compared in every view."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from comparison.design import TuningCurve
from comparison.exports import to_csv, to_json
from comparison.findings import Findings
from comparison.report.page import to_html
from comparison.runs import LoggedRun
from comparison.tables import to_markdown, to_text
from comparison.tuning_plot import write_tuning_plot
from experiment.selection import select
from inference.looks import Look
from inference.planning import Plan
from tests.simulated import simulated_run

VIEWS: dict[str, Callable[[Findings], str]] = {
    "text": lambda findings: to_text(findings, ratio=True, colour=False),
    "json": to_json,
    "csv": to_csv,
    "markdown": lambda findings: to_markdown(findings, ratio=True),
    "html": to_html,
}

VALUES = (None, [1], {"x": "y"}, "\x1b[31m\ud800\n", -1, 0, float("nan"), 1e36, 10**40)
"""What each value is replaced by."""

CONFIG = {
    **{"arch_preset": "gpt2", "dataset": "tiny", "eval_tokens": 100, "eval_interval": 50},
    **{"max_iters": 100, "max_minutes": 0.0, "warmup_iters": 5, "lr_decay_iters": 100},
    **{"compile": False, "lr_schedule": "cosine"},
    # of an earlier version, see `saved_configs.upgraded`
    **{"position_encoding": "rope", "rope_theta": 1e4, "sliding_window": 5, "mixer": "attention"},
    **{"window_pattern": "SL", "rope_pattern": "RN", "rope_local_theta": 1e3},
}
ENVIRONMENT = {
    **{"device": "a CPU", "device_count": 1, "cpu_count": 2, "threads": 1, "host": "h"},
    **{"dtype": "float32", "torch": "2", "commit": "c0", "dirty": False, "source_sha256": "5eed"},
}


# Mutations


def mutations(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every change of one place of a JSON value: what it is, and the changed value."""
    if not isinstance(value, dict | list):
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        place = f"{path}.{key}"
        shallow = copy.copy(value)
        del shallow[key]
        yield f"{place} deleted", shallow
        changed = [(f"{place} is {new!r}", new) for new in VALUES]
        for told, new in (*changed, *mutations(item, place)):
            shallow = copy.copy(value)
            shallow[key] = new
            yield told, shallow


# A sweep


def log_of(run: LoggedRun) -> dict[str, Any]:
    """A log with all that a comparison reads."""
    config = {key: run.config[key] for key in ("normalization", "seed", "data_seed")}
    return {
        "schema_version": 1,
        "run_name": run.run_name,
        "status": "completed",
        "start_time": run.start_time,
        "config": config | CONFIG,
        "architecture": {
            **run.architecture,
            **{"active_parameters": 900_000, "flops_per_token_causal": 900_000},
        },
        "environment": {key: ENVIRONMENT[key] for key in ("device", "cpu_count", "dtype")},
        "starts": [{"environment": ENVIRONMENT, "other_cpu_share": 0.0}],
        "data": run.data,
        "plugins": {"part.py": "d1"},
        "roles": {"normalization": "architecture"},
        "defaults": ["bias"],
        "eval_steps": [run.eval_steps[0], run.eval_steps[-1]],
        "summary": run.summary,
        "training_iterations": [],
    }


def manifest(seeds: int, **more: Any) -> dict[str, Any]:
    """A manifest with all that a comparison reads."""
    curve = {"key": "rate", "tried": ["1e-3", "2e-3"], "losses": [3.1, 3.0], "at_edge": True}
    return {
        "schema_version": 1,
        "command": "python sweep.py",
        "match": "params",
        "budget": {"unit": "tokens", "amount": 1e5},
        "margin": 0.01,
        "varied": ["normalization"],
        "studied": ["rate"],
        "factors": ["normalization"],
        "arms": [
            {"name": arm, "tuned": {"rate": "2e-3"}, "tuning": curve, "allowance": 0.001}
            for arm in LOSSES
        ],
        "runs": [
            {"arm": arm, "folder": f"runs/{arm}-{seed}", "tuning": False}
            for arm in LOSSES
            for seed in range(1, seeds + 1)
        ],
        "seeds": [[seed, seed] for seed in range(1, seeds + 1)],
        "identity": {"design": "ablation"},
        **more,
    }


SCHEDULE = [{"n": 2, "alpha": 0.025}, {"n": 3, "alpha": 0.025}]
LOSSES = {"plain": (3.00, 3.02, 2.99), "fast": (2.90, 2.93, 2.88)}


def write_runs(folder: Path, seeds: int = 2) -> Path:
    """Runs of both arms; returns the folder of one."""
    for arm, losses in LOSSES.items():
        for seed, loss in enumerate(losses[:seeds], start=1):
            run = simulated_run(arm, seed, loss, model={"normalization": arm})
            own = folder / "runs" / f"{arm}-{seed}"
            own.mkdir(parents=True)
            (own / "run.json").write_text(json.dumps(log_of(run)))
    return own


@pytest.fixture(autouse=True)
def _plans_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of seeds that a verdict takes is the slowest part of a comparison."""
    for name in ("seeds_needed", "detectable"):
        monkeypatch.setattr(Plan, name, functools.cache(getattr(Plan, name)))


class Comparison:
    """Compares in every view, and counts what it met.

    Args:
        folder: What to compare.
        damaged: The file that is changed; if it cannot be used, one line names it.
        still: What must be in every view.
    """

    def __init__(self, folder: Path, damaged: Path, still: Iterable[str] = LOSSES):
        self._folder, self.damaged, self._still = folder, damaged, still
        self.used = self.named = 0

    def check(self, what: str) -> None:
        """Compare; a failure says what was changed."""
        try:
            self._compare()
        except Exception as error:
            raise AssertionError(what) from error

    def _compare(self) -> None:
        chosen = select([str(self._folder)], None, Path("nowhere"), baseline_given=True)
        for problem in chosen.problems:
            assert problem.isprintable()
        if any(problem.startswith(f"{self.damaged}: ") for problem in chosen.problems):
            self.named += 1
            if self.named > 1:  # the runs that are left are the same as before
                return
        else:
            self.used += 1
        if chosen.runs:
            self._view(chosen.findings())

    def _view(self, findings: Findings) -> None:
        for name, view in VIEWS.items():
            shown = view(findings)
            shown.encode()  # no lone surrogate
            assert "\x1b" not in shown, name
            assert all(text in shown for text in self._still), name


def check_mutations(comparison: Comparison, document: Any, written: Callable[[Any], str]) -> None:
    """Write each mutation of a JSON document to the damaged file, and compare."""
    for told, mutated in mutations(document):
        comparison.damaged.write_text(written(mutated))
        comparison.check(told)
    assert comparison.used > 0
    assert comparison.named > 0


@pytest.mark.slow
def test_a_damaged_run_file_never_ends_the_comparison(tmp_path: Path) -> None:
    path = write_runs(tmp_path) / "run.json"
    check_mutations(Comparison(tmp_path, path), json.loads(path.read_text()), json.dumps)


def test_damaged_metrics_of_a_running_run_never_end_the_comparison(tmp_path: Path) -> None:
    folder = write_runs(tmp_path)
    log = json.loads((folder / "run.json").read_text())
    evaluated = log["eval_steps"][-1]
    log |= {"status": "running", "eval_steps": []}
    (folder / "run.json").write_text(json.dumps(log))
    step = {
        **{"kind": "train", "iter": 100, "wall_seconds": 9.0, "tokens_seen": 100_000},
        **{"tokens_per_second": 5.0, "mfu": {"mfu_percent": 3.0}, "memory": {"peak": 5}},
        "bad_steps": 0,
    }
    lines = [step, {"kind": "eval", "wall_seconds": 9.0, **evaluated}]
    check_mutations(
        Comparison(tmp_path, folder / "metrics.jsonl"),
        lines,
        lambda mutated: "".join(f"{json.dumps(line)}\n" for line in mutated),
    )


@pytest.mark.parametrize(
    "declared",
    [{"schedule": SCHEDULE}, {"looks": [2, 3]}],
    ids=["a schedule", "looks"],
)
def test_a_damaged_manifest_never_ends_the_comparison(tmp_path: Path, declared: dict) -> None:
    write_runs(tmp_path, seeds=3)
    path = tmp_path / "sweep.json"
    check_mutations(Comparison(tmp_path, path, ()), manifest(3, **declared), json.dumps)


# What is said


def changed(document: Any, place: str, value: Any) -> Any:
    """A JSON value with another value at a place such as `arms.0.name`."""
    key, _, rest = place.partition(".")
    new = copy.copy(document)
    index = int(key) if isinstance(new, list) else key
    new[index] = changed(new[index], rest, value) if rest else value
    return new


def problem_of(folder: Path, path: Path, document: Any) -> str:
    """The message about a file with this document, without its path."""
    path.write_text(json.dumps(document), encoding="utf-8")
    (problem,) = select([str(folder)], None, Path("nowhere"), baseline_given=True).problems
    assert problem.startswith(f"{path}: ")
    assert problem.isprintable()
    return problem.removeprefix(f"{path}: ")


@pytest.mark.parametrize("key", ["cpu_count", "source_sha256", "commit", "torch", "dirty"])
@pytest.mark.parametrize("value", [[1], {"a": 1}])
def test_an_environment_of_lists_or_objects_is_named(tmp_path: Path, key: str, value: Any) -> None:
    path = write_runs(tmp_path) / "run.json"
    log = changed(json.loads(path.read_text()), f"starts.0.environment.{key}", value)
    what = "a list" if isinstance(value, list) else "an object"
    said = f"(starts[0].environment.{key} is {what}, not a single value)."
    assert problem_of(tmp_path, path, log) == f"not the log of a run {said}"


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("schedule.0.alpha", 1, "schedule[0].alpha is 1, not a number between 0 and 1"),
        ("schedule.0.alpha", 0, "schedule[0].alpha is 0, not a number between 0 and 1"),
        ("schedule.1.n", 2, "schedule has looks whose n does not increase"),
        (
            "arms.0.tuned",
            {"rate": "none"},
            "arms[0] has a tuning curve, but no fitted number",
        ),
        (
            "arms.0.tuned",
            {},
            "arms[0] has a tuning curve, but no fitted number",
        ),
        (
            "arms.0.tuning.losses",
            [3.1, 3.0, 2.9],
            "arms[0].tuning does not have as many losses as tried values",
        ),
        ("arms.0.tuning.tried.1", "none", "arms[0].tuning.tried[1] is 'none', not a number"),
        (
            "arms.0.tuning.tried.1",
            "-1",
            "arms[0].tuning.tried[1] is -1.0, not a number from 1e-30 to 1e+36",
        ),
        ("arms.0.tuning.tried.1", 1, "arms[0].tuning.tried[1] is 1, not text"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_named(
    tmp_path: Path, place: str, value: Any, said: str
) -> None:
    write_runs(tmp_path, seeds=3)
    document = changed(manifest(3, schedule=SCHEDULE), place, value)
    problem = problem_of(tmp_path, tmp_path / "sweep.json", document)
    assert problem == f"not the manifest of a sweep ({said})."


def test_keys_that_a_manifest_need_not_have_are_ignored(tmp_path: Path) -> None:
    write_runs(tmp_path, seeds=3)
    schedule = [look | {"note": "of a later version"} for look in SCHEDULE]
    (tmp_path / "sweep.json").write_text(json.dumps(manifest(3, schedule=schedule)))
    chosen = select([str(tmp_path)], None, Path("nowhere"))
    assert not chosen.problems
    assert chosen.design.schedule == (Look(2, 0.025), Look(3, 0.025))


def test_curves_of_extreme_values_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="see requirements-dev.txt")
    curves = [
        TuningCurve("a", "rate", (1e-30, 1e36), (1e9, 0.0), 1e36, 1e36),
        TuningCurve("b", "rate", (1.0, 1.0, 1.0), (None, 0.0, None), 1e-30, 0.0),
        TuningCurve("c", "rate", (), (), 1.0, 0.0),
        TuningCurve("d", "rate", (1.0, 2.0), (None, None), 1.0, 0.0),
    ]
    write_tuning_plot(curves, tmp_path / "tuning.svg")
    assert (tmp_path / "tuning.svg").stat().st_size > 0
