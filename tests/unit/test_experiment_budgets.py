"""Equal budgets: reading them, and the lengths that they give a run."""

from __future__ import annotations

import pytest

import configurator
from experiment.budgets import UNREACHED, Budget, length_flags, parse_budget
from recipe.schedules import learning_rate_at

TINY = ("--batch_size=2", "--block_size=16", "--gradient_accumulation_steps=3")
TOKENS_PER_STEP = 96


@pytest.mark.parametrize(
    ("text", "unit", "amount"),
    [
        ("tokens=20M", "tokens", 20e6),
        ("tokens=1.5k", "tokens", 1500),
        ("tokens=2B", "tokens", 2e9),
        ("flops=1e15", "flops", 1e15),
        ("flops=3T", "flops", 3e12),
        ("minutes=0.5", "minutes", 0.5),
    ],
)
def test_reading(text: str, unit: str, amount: float) -> None:
    assert parse_budget(text) == Budget(unit, amount)


@pytest.mark.parametrize(
    "text",
    ["20M", "tokens", "tokens=", "tokens=M", "hours=1", "tokens=0", "tokens=-1", "minutes=inf"],
)
def test_what_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="write tokens=20M, flops=1e15 or minutes=10"):
        parse_budget(text)


def lengths(budget: Budget, *flags: str, flops_per_token: float = 1000.0) -> dict[str, str]:
    return length_flags(budget, configurator.load([*TINY, *flags]), flops_per_token)


def test_tokens() -> None:
    assert lengths(Budget("tokens", 960.0)) == {"max_iters": "10"}
    assert lengths(Budget("tokens", 1000.0)) == {"max_iters": "10"}
    assert lengths(Budget("tokens", 1.0)) == {"max_iters": "1"}


def test_flops() -> None:
    budget = Budget("flops", 50 * TOKENS_PER_STEP * 1000.0)
    assert lengths(budget) == {"max_iters": "50"}
    assert lengths(budget, flops_per_token=2000.0) == {"max_iters": "25"}


def test_shares_of_a_schedule_are_kept() -> None:
    flags = lengths(
        Budget("tokens", 1000.0 * TOKENS_PER_STEP),
        *("--max_iters=100", "--warmup_iters=7", "--lr_decay_iters=90"),
    )
    assert flags == {"max_iters": "1000", "warmup_iters": "70", "lr_decay_iters": "900"}


def test_a_warm_up_of_a_step_remains() -> None:
    flags = lengths(Budget("tokens", 960.0), "--max_iters=1000", "--warmup_iters=9")
    assert flags == {"max_iters": "10", "warmup_iters": "1"}
    assert lengths(Budget("tokens", 960.0), "--warmup_iters=0")["warmup_iters"] == "0"
    assert "warmup_iters" not in lengths(Budget("tokens", 960.0), "--warmup_iters=none")


def test_minutes() -> None:
    flags = lengths(Budget("minutes", 2.0))
    assert flags == {"max_iters": str(UNREACHED), "max_minutes": "2.0"}


@pytest.mark.parametrize(
    ("flags", "share"), [((), 0.05), (("--max_iters=200", "--warmup_iters=20"), 0.1)]
)
def test_the_warm_up_of_minutes(flags: tuple[str, ...], share: float) -> None:
    """As a run sees it, which puts a share of its minutes for that share of max_iters."""
    made = lengths(Budget("minutes", 2.0), *flags)
    given = [flag for flag in flags if flag.split("=")[0] not in ("--max_iters", "--warmup_iters")]
    texts = [f"--{key}={value}" for key, value in made.items()]
    training = configurator.load([*TINY, *given, *texts]).training
    assert training.warmup_iters == pytest.approx(share * UNREACHED)
    top = learning_rate_at(share * UNREACHED, training)
    assert top == pytest.approx(training.learning_rate)
    assert learning_rate_at(0.5 * share * UNREACHED, training) == pytest.approx(top / 2)


def test_minutes_of_a_config_file_do_not_end_a_budget_of_tokens(tmp_path) -> None:
    file = tmp_path / "timed.py"
    file.write_text("max_minutes = 3\n")
    assert lengths(Budget("tokens", 960.0), str(file))["max_minutes"] == "0.0"
