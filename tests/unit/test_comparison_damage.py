"""Logs and manifests that are damaged in any way never end a comparison: they are named, or used
where what is left of them makes sense, and the other runs are compared in every view."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from comparison.exports import to_csv, to_json
from comparison.findings import Findings
from comparison.report.page import to_html
from comparison.tables import to_markdown, to_text
from experiment.selection import select
from tests.unit.test_compare_architectures import ARCHITECTURE, make_arm, make_run, make_sweep

SEED = 20240607
MUTATIONS = 25  # of each file; more find nothing more, and take longer

VIEWS: dict[str, Callable[[Findings], str]] = {
    "text": lambda findings: to_text(findings, ratio=True, colour=False),
    "json": to_json,
    "csv": to_csv,
    "markdown": lambda findings: to_markdown(findings, ratio=True),
    "html": to_html,
}
DEEP = json.loads("[" * 300 + "]" * 300)
VALUES = [
    *(None, True, False, 0, 1, -1, 0.5, -1e308, 1e308, 1e-320, 10**40, -(10**400), 2**64),
    *(float("nan"), float("inf"), "", "text", "-1", "1e3", "\x1b[31m\x00\r\n", "\ud800"),
    "x" * 200_000,
    *([], {}, [None], ["x"], {"x": 1}, {"": None}, DEEP),
]


# Mutations


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where there is something in a JSON value: the path of every key and item."""
    if not isinstance(value, dict | list):
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        yield from places(item, (*path, key))


def mutations(document: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each change of one place of a document (deleted, renamed, nested, another value): what it is,
    and what makes the changed document."""

    def changed(path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
        new = copy.deepcopy(document)
        parent = new
        for key in path[:-1]:
            parent = parent[key]
        change(parent, path[-1])
        return new

    def rename(parent: Any, key: Any) -> None:
        parent.update({"\x1b]0;\ud800": parent.pop(key)})

    def nest(parent: Any, key: Any) -> None:
        parent[key] = [parent[key]]

    def wrap(parent: Any, key: Any) -> None:
        parent[key] = {"x": parent[key]}

    for path in places(document):
        yield f"{path} deleted", lambda p=path: changed(p, lambda parent, key: parent.pop(key))
        yield f"{path} in a list", lambda p=path: changed(p, nest)
        yield f"{path} in an object", lambda p=path: changed(p, wrap)
        if isinstance(path[-1], str):
            yield f"{path} renamed", lambda p=path: changed(p, rename)
        for value in VALUES:
            told = f"{path} is {str(value)[:20]!r}" if value is not DEEP else f"{path} is deep"
            yield told, lambda p=path, v=value: changed(p, lambda o, key: o.__setitem__(key, v))


def some(document: Any) -> Iterator[tuple[str, Any]]:
    """MUTATIONS changed documents, drawn by SEED, and what was changed."""
    chosen = random.Random(SEED).sample(list(mutations(document)), MUTATIONS)
    yield from ((told, make()) for told, make in chosen)


# The runs


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two arms of three seeds, one that is still running, and everything that a log may have."""
    out = tmp_path / "out"
    environment = {
        **{"device": "a CPU", "dtype": "float32", "threads": 1, "torch": "2.0", "commit": "c0ffee"},
        **{"dirty": False, "source_sha256": "5eed"},
    }
    config = {"warmup_iters": 5, "lr_decay_iters": None, "max_minutes": 0.0, "compile": False}
    for arm, losses in (("plain", [2.50, 2.52, 2.49]), ("fast", [2.31, 2.30, 2.33])):
        make_arm(out, arm, losses, environment=environment)
    for path in out.glob("*/run.json"):
        log = json.loads(path.read_text())
        log["config"] |= config
        starts = [{"step": 0, "time": "2025", "environment": environment}]
        log |= {"run_id": "1d", "plugins": {"part.py": "d1"}, "starts": starts}
        path.write_text(json.dumps(log))
    running = {"seed": 9, "data_seed": 9, "arm": "fast", **config}
    make_run(out / "running", crash=True, config=running, environment=environment)
    return out


class Comparison:
    """Compares in every view, and knows what was looked at already.

    Args:
        words: What to compare.
        still: Names that must be in every view.
    """

    def __init__(self, words: Sequence[Path], still: Sequence[str]):
        self.words, self.still = [str(word) for word in words], still
        self.skipped = 0
        self._seen: set[frozenset[Path]] = set()

    def check(self, what: str) -> None:
        """Compare; a failure says what was changed."""
        try:
            chosen = select(self.words, None, Path("nowhere"), baseline_given=True)
            runs = frozenset(run.path for run in chosen.runs)
            if chosen.problems:
                self.skipped += 1
                if runs in self._seen:
                    return  # the runs that are left are the same as before
                self._seen.add(runs)
            self._view(chosen.findings())
        except Exception as error:
            raise AssertionError(what) from error

    def _view(self, findings: Findings) -> None:
        for name, view in VIEWS.items():
            shown = view(findings)
            shown.encode()  # no lone surrogate
            assert "\x1b" not in shown, name
            assert all(text in shown for text in self.still), name


def check_mutations(path: Path, document: Any, comparison: Comparison) -> None:
    """Write each mutation of a JSON document to a file, and compare."""
    for told, mutated in some(document):
        path.write_text(json.dumps(mutated, indent=1))
        comparison.check(told)
    assert comparison.skipped > 0


@pytest.mark.parametrize("name", ["plain-1", "fast-2"])
def test_a_damaged_run_file_never_ends_the_comparison(runs: Path, name: str) -> None:
    path = runs / name / "run.json"
    document = json.loads(path.read_text())
    document["training_iterations"] = document["training_iterations"][:1]
    check_mutations(path, document, Comparison([runs], ["-plain", "-fast"]))


def test_damaged_metrics_of_a_running_run_never_end_the_comparison(
    runs: Path,
) -> None:
    path = runs / "running" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    comparison = Comparison([runs], ["-plain", "-fast"])
    for told, mutated in some(lines):
        path.write_text("\n".join(map(json.dumps, mutated)) + "\n")
        comparison.check(told)
    assert comparison.skipped > 0


def test_a_damaged_manifest_never_ends_the_comparison(runs: Path, tmp_path: Path) -> None:
    folder = make_sweep(tmp_path / "sweep")
    path = folder / "sweep.json"
    document = json.loads(path.read_text())
    document |= {"varied": ["arm"], "identity": {"design": "ablation", "arms": {"a": {"x": 1}}}}
    check_mutations(path, document, Comparison([folder, runs], [ARCHITECTURE["name"]]))
