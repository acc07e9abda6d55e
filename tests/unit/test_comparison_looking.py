"""A sweep that goes on until it is sure: looks taken again from its runs."""

from __future__ import annotations

import dataclasses
import random

import pytest

from comparison.design import Design
from comparison.findings import Findings, compare
from comparison.tables import to_markdown
from inference.looks import scheduled_looks
from inference.rules import DeclaredSeeds
from inference.verdicts import Results, judge
from tests.simulated import simulated_arm, simulated_run

ORDER = tuple((seed, seed) for seed in range(1, 21))


def arm(name: str, day: int, losses: list[float]) -> list:
    return simulated_arm(name, losses, model={"arm": name}, start=f"2025-01-{day:02}")


def drawn(seed: int, n: int, shift: float = 0.0, sd: float = 0.02) -> list[float]:
    rng = random.Random(seed)
    return [3.0 + shift + rng.gauss(0, sd) for _ in range(n)]


def looked_at(runs: list, most: int = 20, **changes: object) -> Findings:
    design = Design(schedule=tuple(scheduled_looks(most)), seed_order=ORDER[:most])
    return compare(runs, design=dataclasses.replace(design, **changes))


def row(findings: Findings, name: str):
    return next(row for row in findings.rows if row.group.name == f"arch-{name}")


def test_a_clear_arm_stops_at_the_first_look_and_the_other_goes_on():
    runs = [
        *arm("base", 1, drawn(1, 5)),
        *arm("good", 2, drawn(2, 5, shift=-0.5)),
        *arm("same", 3, drawn(3, 5)),
    ]
    findings = looked_at(runs)
    assert row(findings, "good").verdict.word == "better"
    assert row(findings, "same").verdict.word == "inconclusive"
    assert findings.next_looks == {"arch-same": 10}


def test_a_look_is_judged_at_its_share_of_alpha():
    base, good = drawn(1, 5), drawn(2, 5, shift=-0.5)
    findings = looked_at([*arm("base", 1, base), *arm("good", 2, good)])
    numbered = [Results(dict(zip(ORDER, losses, strict=False))) for losses in (base, good)]
    [expected] = judge(numbered[0], numbered[1:], DeclaredSeeds(1, 0.025))
    assert row(findings, "good").verdict.interval == expected.interval


def test_a_decided_arm_keeps_its_interval_whatever_comes_later():
    early = [*arm("base", 1, drawn(1, 5)), *arm("good", 2, drawn(2, 5, shift=-0.5))]
    before = row(looked_at([*early, *arm("same", 3, drawn(3, 5))]), "good").verdict
    late = [*arm("base", 1, drawn(1, 10)), *arm("good", 2, drawn(2, 10, shift=-0.5))]
    findings = looked_at([*late, *arm("same", 3, drawn(3, 10))])
    assert row(findings, "good").verdict == before
    assert row(findings, "same").verdict.difference.n == 10


def test_differences_of_fewer_seeds_than_the_means_are_noted():
    note = "A difference is the mean over the n seeds of its verdict"
    early = [*arm("good", 2, drawn(2, 5, shift=-0.5)), *arm("same", 3, drawn(3, 10))]
    assert note in to_markdown(looked_at([*arm("base", 1, drawn(1, 10)), *early]))
    alike = [*arm("base", 1, drawn(1, 5)), *arm("good", 2, drawn(2, 5, shift=-0.5))]
    assert note not in to_markdown(looked_at(alike))


@pytest.mark.parametrize("seeds", [3, 7])
def test_there_is_no_verdict_between_looks(seeds):
    runs = [*arm("base", 1, drawn(1, seeds)), *arm("same", 2, drawn(2, seeds))]
    findings = looked_at(runs)
    verdict = row(findings, "same").verdict
    if seeds == 3:
        assert verdict.reason == "the first look is at 5 seeds"
    else:
        first = looked_at([*arm("base", 1, drawn(1, 5)), *arm("same", 2, drawn(2, 5))])
        assert verdict == row(first, "same").verdict
        assert verdict.difference.n == 5


def test_a_run_that_failed_has_finished():
    failed = simulated_run("same", 5, model={"arm": "same"}, start="2025-01-02", status="diverged")
    runs = [*arm("base", 1, drawn(1, 5)), *arm("same", 2, drawn(2, 4)), failed]
    findings = looked_at(runs)
    assert row(findings, "same").verdict.difference.n == 4
    assert findings.next_looks == {"arch-same": 10}


def test_a_hopeless_arm_stops():
    """Its noise is far larger than the margin, and there is no difference."""
    loud = [3.1, 2.9, 3.1, 2.9, 3.0] * 2
    findings = looked_at([*arm("base", 1, drawn(1, 10, sd=0.001)), *arm("loud", 2, loud)])
    verdict = row(findings, "loud").verdict
    assert verdict.difference.n == 10
    assert verdict.reason == "stopped: unlikely to be conclusive with 20 seeds"
    assert findings.next_looks == {}


def test_the_last_look_ends_it():
    runs = [*arm("base", 1, drawn(1, 7)), *arm("same", 2, drawn(2, 7, shift=0.005))]
    findings = looked_at(runs, most=7)
    assert row(findings, "same").verdict.difference.n == 7
    assert findings.next_looks == {}


def test_nothing_is_judged_between_looks():
    """Readings, speed-ups and effects of 7 seeds after a look at 5 that was not sure."""
    runs = [*arm("base", 1, drawn(1, 7)), *arm("same", 3, drawn(3, 7))]
    found = row(looked_at(runs), "same")
    assert found.verdict.difference.n == 5
    assert found.at_equal["tokens"].verdict == found.verdict
    dearer = simulated_arm("same", drawn(3, 7), model={"arm": "same"}, flops_per_token=1_003_000)
    reading = row(looked_at([*runs[:7], *dearer]), "same").at_equal["flops"]
    assert reading.verdict is None
    assert reading.descriptive.startswith("sequential testing")
    assert found.speedups["tokens"].n == 5


def test_an_undecided_arm_with_more_seeds_is_looked_at_again():
    """Seeds that were trained count, such as one that blew up, although five had seemed enough."""
    base, same = drawn(1, 10), [*drawn(3, 9), 3.9]
    five, ten = (
        row(looked_at([*arm("base", 1, base), *arm("same", 2, same[:n])], most=10), "same").verdict
        for n in (5, 10)
    )
    assert (five.word, five.difference.n) == ("inconclusive", 5)
    assert five.reason == "stopped: unlikely to be conclusive with 10 seeds"
    assert (ten.word, ten.difference.n) == ("inconclusive", 10)
    assert ten.difference.value > five.difference.value + 0.05
