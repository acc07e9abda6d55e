"""What arms try before their final runs: keys that not all of them have, and equal numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from errors import UserError
from experiment.plan import Plan
from experiment.tuning import outcome
from tests.parametrized import one_in
from tests.tiny_sweep import config_file, tiny_plan

LION = {"optimizer": ("lion",)}
ROPE = {"position_encoding": ("rope",)}


@pytest.fixture
def make(tiny_dataset: Path, tmp_path: Path) -> Any:
    return lambda **asked: tiny_plan(tiny_dataset, tmp_path, **asked)


def choices(plan: Plan) -> dict[str, list[dict[str, str]]]:
    return {name: [dict(trial.choice) for trial in own] for name, own in plan.trials.items()}


def told(make: Any, **asked: Any) -> str:
    with pytest.raises(UserError) as error:
        make(**asked)
    return str(error.value)


def test_arms_are_tuned_over_the_keys_that_they_have(make: Any) -> None:
    """As many trials each."""
    tune = {"beta1": ("0.8", "0.9"), "lion_beta1": ("0.7", "0.95"), "learning_rate": ("1", "2")}
    found = choices(make(vary=LION, tune=tune))
    pairs = [(beta, rate) for beta in (0, 1) for rate in ("1", "2")]
    assert found == {
        "baseline": [{"beta1": tune["beta1"][b], "learning_rate": r} for b, r in pairs],
        "optimizer=lion": [
            {"lion_beta1": tune["lion_beta1"][b], "learning_rate": r} for b, r in pairs
        ],
    }


def test_a_key_of_a_part_that_trials_choose(make: Any) -> None:
    """It takes part where they do; the values of a shared file come back, too."""
    vary = {"normalization": ("rmsnorm",)}
    tune = {"optimizer": ("adamw", "lion"), "lion_beta1": ("0.7", "0.8")}
    flags = {"lion_beta2": "0.5", "beta2": "0.6"}
    plan = make(vary=vary, tune=tune, flags=flags)
    assert choices(plan)["normalization=rmsnorm"] == [
        {"optimizer": "adamw"},
        {"optimizer": "lion", "lion_beta1": "0.7"},
        {"optimizer": "lion", "lion_beta1": "0.8"},
    ]
    adamw, lion, _ = (trial.arm for trial in plan.trials["baseline"])
    assert adamw.settings.training.beta2 == 0.6
    assert lion.settings.training.lion_beta2 == 0.5
    assert not {"lion_beta1", "lion_beta2"} & set(adamw.flags)
    assert not {"beta1", "beta2"} & set(lion.flags)
    assert {"optimizer", "lion_beta1", "lion_beta2", "beta1", "beta2"} <= set(plan.studied)


def test_fewer_trials_are_refused(make: Any) -> None:
    assert told(make, vary=ROPE, tune={"rope_theta": ("500", "1000", "2000")}) == (
        "--tune rope_theta: arm baseline does not use position_encoding=rope, which the key "
        "belongs to, so it would get 1 trial, but arm position_encoding=rope would get 3. Give "
        "every arm the same number: also tune a key that only baseline has, with as many "
        "values, or drop --tune rope_theta."
    )
    refusal = told(
        make,
        vary=LION,
        tune={"beta1": ("0.8", "0.9"), "lion_beta1": ("0.7", "0.8", "0.9"), "beta2": ("0.9",)},
    )
    assert "--tune lion_beta1: arm baseline does not use optimizer=lion" in refusal
    assert "it would get 2 trials, but arm optimizer=lion would get 3." in refusal


def test_a_key_that_no_arm_has(make: Any) -> None:
    refusal = told(make, vary={"normalization": ("rmsnorm",)}, tune={"rope_theta": ("5", "9")})
    assert "rope_theta belongs to position_encoding=rope, which no arm uses; drop it." in refusal


@pytest.mark.parametrize("match", one_in(3, ["params", "active_params", "flops"]))
def test_trials_are_of_equal_size(make: Any, match: str) -> None:
    """Also where a tuned key changes the size, or is a width that would be fitted."""
    for key, values, flags in (
        ("n_experts", ("2", "4"), {"ffn_type": "moe", "n_experts_per_token": "1"}),
        ("ffn_hidden", ("1500", "1700"), {"n_embd": "400", "n_head": "1"}),
    ):
        plan = make(
            vary={"normalization": ("rmsnorm",)}, tune={key: values}, flags=flags, match=match
        )
        counted = {"params": "parameters", "active_params": "active_parameters"}
        count = counted.get(match, "flops_per_token")
        target = getattr(plan.baseline, count)
        for trials in plan.trials.values():
            sizes = [getattr(trial.arm, count) for trial in trials]
            assert sizes == pytest.approx([target] * 2, rel=0.005)
            found = [trial.arm.settings.model.to_dict()[key] for trial in trials]
            assert found == [int(value) for value in values]
            assert [trial.arm.flags[key] for trial in trials] == list(values)


def test_final_runs_have_the_widths_of_their_trial(make: Any) -> None:
    tune = {"n_experts": ("2", "4")}
    plan = make(
        vary={"normalization": ("rmsnorm",)},
        tune=tune,
        flags={"ffn_type": "moe", "n_experts_per_token": "1"},
        match="params",
        seeds=1,
    )
    tuned = {
        name: outcome(trial.arm, trials, [3.1, 3.0])
        for name, trials in plan.trials.items()
        for trial in trials[:1]
    }
    for job in plan.final_jobs(tuned):
        [_, trial] = plan.trials[job.arm]
        assert f"--ffn_hidden={trial.arm.settings.model.ffn_hidden}" in job.arguments
        assert "--n_experts=4" in job.arguments


def test_a_file_of_an_arm_may_have_keys_of_its_own(make: Any, tmp_path: Path) -> None:
    arm = config_file(tmp_path, "turned", position_encoding="rope", rope_fraction=0.5)
    plan = make(
        vary={"normalization": ("rmsnorm",)}, arms=[arm], tune={"learning_rate": ("1", "2")}
    )
    for trial in plan.trials["turned"]:
        assert trial.arm.settings.model.rope_fraction == 0.5
