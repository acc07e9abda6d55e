"""Whether a verdict holds on new text: how blocks of the validation text widen its interval."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from comparison.exports import document
from comparison.findings import GroupResult, compare
from comparison.new_text import with_text
from comparison.runs import LoggedRun
from comparison.tables import to_text
from errors import UserError
from inference.crossed import crossed
from tests.simulated import simulated_run
from training.text_losses import TEXT_LOSSES_FILE, load_text_losses, save_text_losses

BLOCKS, DF, SEEDS = 30, 3, 5


def runs_of(folder: Path, name: str, losses: np.ndarray, day: int) -> list[LoggedRun]:
    """A run for each row of (seeds, blocks), whose final loss is the mean over the blocks."""
    runs = []
    for seed, row in enumerate(losses, start=1):
        run = simulated_run(
            name, seed, float(row.mean()), model={"arm": name}, start=f"2025-01-{day:02}"
        )
        path = folder / run.run_name / "run.json"
        path.parent.mkdir()
        save_text_losses(path.parent, row)
        runs.append(dataclasses.replace(run, path=path))
    return runs


def judged(
    folder: Path, by_block: float, effect: float = -0.05, ordered: bool = False
) -> GroupResult:
    """An arm whose difference from the baseline varies from block to block by this much (sd), and
    grows along the text if `ordered`."""
    rng = np.random.default_rng(1)
    text = rng.normal(0, 0.3, BLOCKS)
    base = 3 + text + rng.normal(0, 0.01, (SEEDS, 1)) + rng.normal(0, 0.01, (SEEDS, BLOCKS))
    gap = rng.normal(0, 1, BLOCKS)
    gap = np.sort(gap) if ordered else gap
    gap = effect + by_block * (gap - gap.mean()) / gap.std(ddof=1)
    arm = base + gap + rng.normal(0, 0.005, (SEEDS, 1))
    runs = [*runs_of(folder, "base", base, 1), *runs_of(folder, "arm", arm, 2)]
    return compare(runs).rows[1]


def test_a_negligible_variance_of_text_gives_no_result(tmp_path):
    row = judged(tmp_path, by_block=0.0)
    assert row.verdict.word == "better"
    assert row.new_text is None


def test_the_interval_is_that_of_seeds_and_text_together(tmp_path):
    row = judged(tmp_path, by_block=0.05)
    (low, high), (lower, higher) = row.verdict.interval, row.new_text.interval
    assert row.new_text.holds
    assert (row.new_text.blocks, row.new_text.df) == (BLOCKS, DF)
    assert lower < low
    assert high < higher < 0
    found = crossed(differences_of(tmp_path), row.verdict.difference, in_order=True)
    halves = [own.half_width(0.05) for own in (found.rows, found.columns)]
    assert (higher - lower) / 2 == pytest.approx(np.hypot(*halves))
    assert (high - low) / 2 == pytest.approx(halves[0])


def differences_of(folder: Path) -> np.ndarray:
    """Arm minus baseline, (seeds, blocks)."""
    arm, base = (
        np.array([load_text_losses(folder / f"{name}-{seed}") for seed in range(1, SEEDS + 1)])
        for name in ("arm", "base")
    )
    return arm - base


def test_correlated_neighbors_widen_the_interval(tmp_path):
    """The same differences of blocks, in two orders."""
    rows = []
    for ordered in (False, True):
        (tmp_path / str(ordered)).mkdir()
        rows.append(judged(tmp_path / str(ordered), by_block=0.05, ordered=ordered))
    (low, high), (lower, higher) = (row.new_text.interval for row in rows)
    assert rows[0].verdict.interval == pytest.approx(rows[1].verdict.interval)
    assert higher - lower > 2 * (high - low)


def test_seeds_crossed_with_data_orders_give_no_result(tmp_path):
    """Their rows are not independent, as the interval for text takes them to be."""
    rng = np.random.default_rng(2)
    runs = []
    for day, (name, shift) in enumerate((("base", 0.0), ("arm", -0.2)), start=1):
        losses = 3 + shift + rng.normal(0, 0.3, BLOCKS) + rng.normal(0, 0.002, (9, 1))
        for cell, run in enumerate(runs_of(tmp_path, name, losses, day)):
            seeds = {"seed": cell // 3, "data_seed": cell % 3}
            runs.append(dataclasses.replace(run, config=run.config | seeds))
    row = compare(runs).rows[1]
    assert (row.verdict.word, row.verdict.difference.test) == ("better", "crossed t")
    assert row.new_text is None


@pytest.mark.parametrize(("blocks", "told"), [(0, False), (1, False), (20, False), (21, True)])
def test_a_short_text_gives_no_result(tmp_path, blocks, told):
    verdict = judged(tmp_path, by_block=0.3).verdict
    values = differences_of(tmp_path)[:, :blocks]
    assert (with_text(verdict, values) is not None) == told


def test_a_difference_that_a_few_blocks_make_is_not_shown(tmp_path):
    row = judged(tmp_path, by_block=0.3)
    assert row.verdict.word == "better"
    assert not row.new_text.holds
    assert row.new_text.interval[1] > 0


def test_it_is_in_the_line_and_in_the_document(tmp_path):
    rows = judged(tmp_path, by_block=0.3)
    findings = compare([*rows.group.runs, *_baseline_of(tmp_path)], baseline="arch-base")
    low, high = findings.rows[1].new_text.interval
    note = f"not shown to be better on new text, interval [{low:+.4f}, {high:+.4f}]"
    assert note in " ".join(to_text(findings).split())
    found = document(findings)["groups"][1]["new_text"]
    assert found == {"interval": [low, high], "holds": False, "blocks": BLOCKS, "df": DF}


def _baseline_of(folder: Path) -> list[LoggedRun]:
    runs = []
    for seed in range(1, SEEDS + 1):
        path = folder / f"base-{seed}" / "run.json"
        loss = float(load_text_losses(path.parent).mean(dtype=float))
        run = simulated_run("base", seed, loss, model={"arm": "base"}, start="2025-01-01")
        runs.append(dataclasses.replace(run, path=path))
    return runs


@pytest.mark.parametrize("damage", ["missing", "other weights", "cut", "objects", "huge", "text"])
def test_a_run_without_its_losses_has_no_line(tmp_path, damage):
    row = judged(tmp_path, by_block=0.3)
    path = row.group.runs[2].path.with_name(TEXT_LOSSES_FILE)
    if damage == "missing":
        path.unlink()
    elif damage == "other weights":
        save_text_losses(path.parent, 1.1 * load_text_losses(path.parent))
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "huge":  # claims more numbers than there is memory for
        content = path.read_bytes()
        claim = b"(3000000000000,), }"
        path.write_bytes(content.replace(b"(30,), }".ljust(len(claim)), claim))
        assert path.read_bytes() != content
    elif damage == "text":
        path.write_text("losses")
    else:
        np.save(path, np.array([{}]), allow_pickle=True)
    runs = [dataclasses.replace(run) for run in [*row.group.runs, *_baseline_of(tmp_path)]]
    again = compare(runs, baseline="arch-base").rows[1]
    if damage not in ("missing", "other weights"):
        with pytest.raises(UserError, match=f"{TEXT_LOSSES_FILE} is damaged"):
            load_text_losses(path.parent)
    assert again.verdict.word == row.verdict.word
    assert again.new_text is None
