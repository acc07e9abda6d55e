"""What is said in words, and when."""

from __future__ import annotations

import json

import pytest

from comparison.exports import to_json
from comparison.findings import compare
from comparison.tables import to_text
from comparison.verdicts import judge
from tests.simulated import simulated_arm
from training_logger import LINE_WIDTH

BASE = {seed: 3 + shift / 100 for seed, shift in enumerate([1, -1, 2, -2, 0])}


def arm(shift: float, noise: float = 0.001) -> dict[int, float]:
    """BASE, shifted by about so much seed by seed."""
    wobble = [1, -1, -1, 1, 0.5]
    return {seed: loss + shift + noise * wobble[seed] for seed, loss in BASE.items()}


def words(*arms, **settings) -> list[str]:
    return [verdict.words for verdict in judge(BASE, arms, **settings)]


def test_better_and_worse_come_with_their_size():
    better, worse = judge(BASE, [arm(-0.1), arm(0.1)])
    assert (better.verdict, worse.verdict) == ("better", "worse")
    assert better.words == "better by 0.0999 (0.0986 to 0.1012)"
    assert worse.words == "worse by 0.1001 (0.0988 to 0.1014)"


def test_a_difference_below_the_noise_floor_is_called_that():
    assert words(arm(-0.005)) == ["better by 0.0049 (0.0036 to 0.0062), though less than 0.0158"]


def test_equal_is_within_the_noise_floor_or_the_margin():
    near = arm(0.0, noise=0.002)
    assert words(near) == ["equal within 0.0158"]
    assert words(near, margin=0.01) == ["equal within 0.0100"]
    assert words(near, margin=0.001)[0].startswith("cannot tell: needs about ")


def test_equality_is_claimed_for_all_arms_together():
    """Each interval is widened for the number of arms, so that more arms need closer ones."""
    near, margin = arm(0.0, noise=0.002), 0.003
    assert words(near, margin=margin) == ["equal within 0.0030"]
    assert words(*[near] * 10, margin=margin)[0].startswith("cannot tell")


def test_more_arms_need_stronger_evidence():
    some = arm(-0.003, noise=0.002)
    alone, *family = (verdicts[0] for verdicts in (judge(BASE, [some]), judge(BASE, [some] * 20)))
    assert alone.verdict == "better"
    assert family[0].verdict != "better"
    assert family[0].p_adjusted == pytest.approx(20 * alone.p_adjusted)


def test_the_plan_is_for_the_margin_and_not_for_what_was_seen():
    noisy = [arm(0.004, noise=0.02), arm(0.011, noise=0.02)]
    verdicts = judge(BASE, noisy, margin=0.02)
    assert verdicts[0].seeds_needed == verdicts[1].seeds_needed > 5
    assert (
        verdicts[0].words
        == f"cannot tell: needs about {verdicts[0].seeds_needed} seeds to see 0.0200"
    )


def test_seeds_that_would_have_shown_it_are_not_asked_for():
    (verdict,) = judge(BASE, [arm(0.0065, noise=0.008)], margin=0.0155)
    assert (verdict.verdict, verdict.seeds_needed) == ("cannot_tell", 5)
    assert verdict.words == "cannot tell: 5 seeds would likely show 0.0155, and show none"


def test_a_margin_beyond_reach_gives_what_the_seeds_can_show():
    (verdict,) = judge(BASE, [arm(0.004, noise=0.02)], margin=1e-6)
    assert verdict.words == f"cannot tell: 5 seeds show differences from {verdict.detectable:.4f}"


@pytest.mark.parametrize(
    ("base", "other", "why"),
    [
        (BASE, {0: 1.0}, "n=1"),
        (BASE, {}, "n=0"),
        ({0: 3.0}, BASE, "n=1 of the baseline"),
        (BASE, {0: 1.0, 1: 1.0}, "seeds changed nothing, so that chance is not known"),
    ],
)
def test_why_nothing_can_be_told(base, other, why):
    (verdict,) = judge(base, [other])
    assert (verdict.verdict, verdict.words) == ("cannot_tell", f"cannot tell: {why}")
    assert (verdict.estimate, verdict.seeds_needed, verdict.detectable) == (None, None, None)


def test_arms_that_cannot_be_judged_do_not_count_in_the_correction():
    some = arm(-0.003, noise=0.002)
    (alone,) = judge(BASE, [some])
    among = judge(BASE, [{0: 1.0}, some, {}])
    assert among[1] == alone


def test_a_factorial_sweep_shows_its_effects():
    runs = []
    for i, (norm, ffn) in enumerate([("a", "x"), ("b", "x"), ("a", "y"), ("b", "y")]):
        losses = [loss + 0.1 * i + 0.001 * (seed * i % 3) for seed, loss in BASE.items()]
        model = {"normalization": norm, "ffn_type": ffn}
        runs += simulated_arm(norm + ffn, losses, model=model, start=f"2025-01-0{i + 1}")
    findings = compare(runs)
    document = json.loads(to_json(findings))
    assert [effect["changes"] for effect in document["effects"]] == [
        ["normalization=b"],
        ["ffn_type=y"],
        ["normalization=b", "ffn_type=y"],
    ]
    assert document["effects"][0]["effect"] == pytest.approx(0.1, abs=0.002)
    assert "  e3  normalization=b x ffn_type=y" in to_text(findings).splitlines()


def test_a_table_that_is_too_wide_goes_on_below():
    runs = simulated_arm("a", [1e15, 1.1e15]) + simulated_arm("b", [2e15, 3e15], start="2025-01-02")
    lines = to_text(compare(runs)).splitlines()
    assert max(map(len, lines)) <= LINE_WIDTH
    start = lines.index("Final validation loss, nats per token")
    labels = [line.split()[0] for line in lines[start + 1 : start + 7]]
    assert labels[1:3] == labels[4:6] == ["1", "2"]
