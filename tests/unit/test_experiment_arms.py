"""The arms of a sweep: what is asked becomes what, and what no sweep can be made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sweep
from errors import ConfigError
from experiment import matching
from experiment.arms import studied_keys
from experiment.budgets import Budget
from experiment.matching import TOLERANCE
from tests.tiny_data import write_tiny_dataset
from tests.tiny_sweep import config_file, tiny_arms, tiny_plan, tiny_request

NORMS = {"normalization": ("layernorm_nobias", "rmsnorm")}
FACTORS = {"normalization": ("rmsnorm",), "bias": ("True",), "weight_tying": ("True", "False")}


def names(dataset: Path, **asked: Any) -> list[str]:
    return [arm.name for arm in tiny_arms(dataset, match="none", **asked)]


def refusal(dataset: Path, **asked: Any) -> str:
    with pytest.raises(ValueError, match=".") as error:
        tiny_arms(dataset, **asked)
    return str(error.value)


# Designs


def test_an_ablation_changes_one_thing_at_a_time(tiny_dataset: Path) -> None:
    assert names(tiny_dataset, vary=FACTORS) == [
        *("baseline", "normalization=rmsnorm", "bias=True", "weight_tying=False")
    ]


def test_a_factorial_combines_all(tiny_dataset: Path) -> None:
    vary = {"normalization": ("rmsnorm",), "ffn_type": ("standard", "swiglu")}
    assert names(tiny_dataset, vary=vary, design="factorial") == [
        *("baseline", "ffn_type=swiglu"),
        *("normalization=rmsnorm", "normalization=rmsnorm, ffn_type=swiglu"),
    ]


def test_arms_have_the_keys_that_were_asked(tiny_dataset: Path) -> None:
    baseline, arm = tiny_arms(tiny_dataset, vary=NORMS)
    assert baseline.settings.model.normalization == "layernorm_nobias"
    assert arm.settings.model.normalization == "rmsnorm"
    assert arm.settings.model.vocab_size == 8  # the data's


def test_files_make_arms_the_first_of_them_the_baseline(tiny_dataset: Path, tmp_path: Path) -> None:
    files = [config_file(tmp_path, name, arch_preset=name) for name in ("gpt2", "llama")]
    assert names(tiny_dataset, arms=files) == ["gpt2", "llama"]


def test_a_preset_of_the_config_is_the_baseline(tiny_dataset: Path, tmp_path: Path) -> None:
    given = config_file(tmp_path, "hybrid", arch_preset="hybrid")
    arms = [config_file(tmp_path, "llama", arch_preset="llama")]
    assert names(tiny_dataset, files=[given], arms=arms) == ["baseline", "llama"]


def test_so_is_the_config_beside_what_is_varied(tiny_dataset: Path, tmp_path: Path) -> None:
    arms = [config_file(tmp_path, "llama", arch_preset="llama")]
    assert names(tiny_dataset, vary=NORMS, arms=arms) == [
        *("baseline", "normalization=rmsnorm", "llama")
    ]


# Refusals


def test_values_that_the_config_has(tiny_dataset: Path) -> None:
    told = refusal(tiny_dataset, vary={"bias": ("False",)})
    assert told == "--vary bias=False: the config already has that value; list another one."


def test_twins(tiny_dataset: Path, tmp_path: Path) -> None:
    arms = [config_file(tmp_path, name, arch_preset="llama") for name in ("one", "other")]
    assert refusal(tiny_dataset, arms=arms) == "other and one have the same config; drop one."
    arms = [arms[0], config_file(tmp_path, "team", arch_preset="team")]
    assert "team and one have the same config" in refusal(tiny_dataset, arms=arms)


def test_arms_of_one_folder(tiny_dataset: Path, tmp_path: Path) -> None:
    arms = [config_file(tmp_path, f"a{mark}b", arch_preset="gpt2") for mark in " -"]
    arms[1].write_text("arch_preset = 'llama'\n")
    told = refusal(tiny_dataset, arms=arms)
    assert told.startswith("the runs of the arms a b and a-b would both be named a-b; rename")


def test_a_single_file(tiny_dataset: Path, tmp_path: Path) -> None:
    arms = [config_file(tmp_path, "llama", arch_preset="llama")]
    told = refusal(tiny_dataset, arms=arms)
    assert told == "there is nothing to compare llama with; name another arm in --arms."


def test_the_problems_of_every_arm_are_told(tiny_dataset: Path, tmp_path: Path) -> None:
    arms = [config_file(tmp_path, "wrong", n_hed=3), tmp_path / "absent.py"]
    with pytest.raises(ConfigError) as error:
        tiny_arms(tiny_dataset, vary={"ffn_hidden": ("7",), **NORMS}, arms=arms)
    told = [problem.message for problem in error.value.problems]
    assert len(told) == 2
    assert told[0].startswith("arm wrong: ")
    assert "'n_hed'" in told[0]
    assert told[1].startswith("arm absent: no file")


def test_the_problems_of_the_baseline_are_told_with_those_of_the_arms(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    """Once, though every arm has them, too."""
    arms = [config_file(tmp_path, "wrong", n_hed=3)]
    vary = {"sliding_window": ("24+none",)}
    with pytest.raises(ConfigError) as error:
        tiny_arms(tiny_dataset, flags={"n_head": "0"}, vary=vary, arms=arms)
    told = [problem.message for problem in error.value.problems]
    assert told[0] == "--n_head: n_head=0 must be at least 1."
    assert [message.split(": ")[0] for message in told[1:]] == [
        "arm wrong",
    ]


def test_what_the_machine_cannot_do_is_told_of_every_arm(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    flags, vary = {"attention_backend": "flash"}, {"tf32": ("True",)}
    plan = tiny_plan(tiny_dataset, tmp_path, flags=flags, vary=vary, match="none")
    with pytest.raises(ConfigError) as error:
        sweep.refuse_this_machine(plan)
    baseline, arm = (problem.message for problem in error.value.problems)
    assert baseline.startswith("attention_backend='flash' ")
    assert arm.startswith("arm tf32=True: tf32=True has no effect")


def test_a_part_that_there_is_not(tiny_dataset: Path) -> None:
    with pytest.raises(ConfigError, match="--vary: unknown normalization 'rms'; did you mean"):
        tiny_arms(tiny_dataset, vary={"normalization": ("rms",)})


def test_a_combination_that_cannot_be(tiny_dataset: Path) -> None:
    vary = {"rope_theta": ("500",), **NORMS}
    with pytest.raises(ConfigError, match="arm rope_theta=500: .*belongs to position_encoding=ro"):
        tiny_arms(tiny_dataset, vary=vary)


OWN = {"sequence_length": 16, "eval_tokens": 64, "device": "cpu"}


@pytest.mark.parametrize(
    ("key", "value", "advice"),
    [
        ("learning_rate", 0.5, "set it for all arms, or study it with --vary or --tune."),
        ("sequence_length", 8, "set it for all arms."),
        ("eval_tokens", 32, "set it for all arms."),
        ("device", "auto", "set it for all arms."),
    ],
)
def test_another_recipe(
    tiny_dataset: Path, tmp_path: Path, key: str, value: Any, advice: str
) -> None:
    given = config_file(tmp_path, "given", **{key: OWN.get(key, 1e-3)})
    arm = config_file(tmp_path, "arm", **{key: value})
    told = refusal(tiny_dataset, flags={key: None}, files=[given], vary=NORMS, arms=[arm])
    assert told.startswith(f"arm arm has {key}={value} (from {arm}:1), but the baseline has ")
    assert told.endswith(f"they would not be comparable; {advice}")


def test_other_data(tiny_dataset: Path, tmp_path: Path) -> None:
    other = write_tiny_dataset(tmp_path / "other")
    given = config_file(tmp_path, "given", dataset=str(tiny_dataset))
    arm = config_file(tmp_path, "arm", dataset=str(other))
    told = refusal(tiny_dataset, flags={"dataset": None}, files=[given], vary=NORMS, arms=[arm])
    assert told.startswith(f"arm arm has dataset={other}")


def test_another_schedule(tiny_dataset: Path, tmp_path: Path) -> None:
    arm = config_file(tmp_path, "arm", warmup_iters=20)
    told = refusal(tiny_dataset, flags={"warmup_iters": None}, vary=NORMS, arms=[arm])
    assert told == (
        "arm arm has warmup_iters at 20.0% of its steps (from --warmup_iters), but the baseline "
        "has 5.0%, so they would not be comparable; set it for all arms."
    )


def test_budgets_that_whole_steps_cannot_meet(tiny_dataset: Path) -> None:
    told = refusal(tiny_dataset, vary={"batch_size": ("3",)}, budget=Budget("tokens", 700))
    assert told == (
        "arm batch_size=3 would spend 720 tokens, not 700: a step is too large a part of "
        "the budget; raise it, or lower batch_size."
    )


def test_a_key_that_follows_is_no_arms_own(tiny_dataset: Path, tmp_path: Path) -> None:
    """One arm would decay to nothing, the other to a tenth."""
    arm = config_file(tmp_path, "arm", min_lr=0.0, normalization="rmsnorm")
    told = refusal(
        tiny_dataset, flags={"arch_preset": "gpt2"}, arms=[arm], tune={"learning_rate": ("1", "2")}
    )
    assert told.startswith("arm arm has min_lr=0.0 (from ")


@pytest.mark.parametrize("origin", ["file", "flag"])
def test_minutes_without_a_budget(tiny_dataset: Path, tmp_path: Path, origin: str) -> None:
    file = config_file(tmp_path, "timed", max_minutes=2)
    given = {"files": [file]} if origin == "file" else {"flags": {"max_minutes": "2"}}
    where = f"{file}:1" if origin == "file" else "--max_minutes"
    told = refusal(tiny_dataset, vary=NORMS, **given)
    assert told == (
        f"max_minutes=2 (from {where}) cannot be used in a sweep; use --budget minutes=2, which "
        "gives every run the same time, or --budget tokens=N."
    )


def test_a_size_that_cannot_be_met(tiny_dataset: Path, tmp_path: Path) -> None:
    arm = config_file(tmp_path, "small", ffn_hidden=9, n_embd=16)
    told = refusal(tiny_dataset, flags={"n_embd": None}, vary=NORMS, arms=[arm])
    assert told.startswith("arm small, active parameters: no width brings its")


# Equal sizes and budgets


@pytest.mark.parametrize(
    ("match", "count"),
    [
        ("active_params", "active_parameters"),
        ("params", "parameters"),
        ("flops", "flops_per_token"),
    ],
)
def test_sizes_are_equal(tiny_dataset: Path, match: str, count: str) -> None:
    vary = {"n_kv_head": ("1",), "ffn_type": ("swiglu",), "n_embd": ("48",)}
    flags = {"n_embd": "64"}
    baseline, *arms = tiny_arms(tiny_dataset, flags=flags, vary=vary, match=match)
    target = getattr(baseline, count)
    for arm in arms:
        assert abs(getattr(arm, count) - target) <= TOLERANCE * target
    one_head, swiglu, narrow = arms
    assert list(one_head.solved) == ["ffn_hidden"]
    assert one_head.settings.model.ffn_hidden == one_head.solved["ffn_hidden"]
    assert not swiglu.solved
    assert narrow.settings.model.n_embd == 48  # what makes it an arm
    assert list(narrow.solved) == ["ffn_hidden"]


@pytest.mark.parametrize("match", ["active_params", "params", "flops"])
def test_experts_become_narrower_rather_than_the_model(tiny_dataset: Path, match: str) -> None:
    """An eighth of a network each, where eight of them are to have its parameters."""
    arms = tiny_arms(tiny_dataset, flags={"n_embd": "64"}, vary={"ffn_type": ("moe",)}, match=match)
    assert list(arms[1].solved) == ["ffn_hidden"]
    shares = {"active_params": 1 / 2, "flops": 1 / 2, "params": 1 / 8}
    gated = 8 / 3 * 64  # as many parameters as the baseline's network
    assert arms[1].solved["ffn_hidden"] == pytest.approx(shares[match] * gated, rel=0.1)


def test_sizes_stay_where_they_are_not_to_match(tiny_dataset: Path) -> None:
    baseline, arm = tiny_arms(tiny_dataset, vary={"n_kv_head": ("1",)}, match="none")
    assert arm.parameters < 0.98 * baseline.parameters
    assert not arm.solved


@pytest.mark.parametrize("budget", [None, Budget("tokens", 6400), Budget("flops", 3e9)])
def test_budgets_are_equal(tiny_dataset: Path, budget: Budget | None) -> None:
    """Also of arms whose tokens cost less."""
    arms = tiny_arms(tiny_dataset, vary={"n_layer": ("2",)}, match="none", budget=budget)
    unit = budget.unit if budget else "tokens"
    spent = [getattr(arm, unit) for arm in arms]
    assert spent == pytest.approx([budget.amount if budget else 3200] * 2, rel=0.01)
    steps = [arm.settings.training.max_iters for arm in arms]
    assert (steps[0] > steps[1]) == (unit == "flops")
    shares = [arm.settings.training.warmup_iters / arm.settings.training.max_iters for arm in arms]
    assert shares == pytest.approx([0.05, 0.05], abs=0.005)


@pytest.mark.parametrize("asked", ["20", "30"])
def test_a_file_s_warm_up_is_scaled_to_another_max_iters(
    tiny_dataset: Path, tmp_path: Path, asked: str
) -> None:
    """As train.py does; every arm, and the command line of its runs, has the scaled one."""
    files = [config_file(tmp_path, "warm", max_iters=600, warmup_iters=30)]
    flags = {"max_iters": asked, "warmup_iters": None}
    expected = max(1, round(int(asked) * 30 / 600))
    for arm in tiny_arms(tiny_dataset, files=files, flags=flags, vary=NORMS, match="none"):
        assert arm.settings.training.warmup_iters == expected
        assert arm.flags["warmup_iters"] == str(expected)


def test_minutes(tiny_dataset: Path) -> None:
    for arm in tiny_arms(tiny_dataset, vary=NORMS, budget=Budget("minutes", 2)):
        assert arm.settings.training.max_minutes == 2


def test_a_run_keeps_one_checkpoint_unless_told(tiny_dataset: Path) -> None:
    for flags, kept in (({}, 1), ({"keep_checkpoints": "2"}, 2)):
        for arm in tiny_arms(tiny_dataset, flags=flags, vary=NORMS):
            assert arm.settings.training.keep_checkpoints == kept


@pytest.mark.parametrize(
    ("asked", "studied"),
    [
        ({"vary": NORMS}, set()),
        ({"vary": {"batch_size": ("4",)}}, {"batch_size"}),
        ({"vary": NORMS, "tune": {"learning_rate": ("1", "2")}}, {"learning_rate", "min_lr"}),
        (
            {"vary": {"learning_rate": ("1e-2",)}, "flags": {"min_lr": "1e-4"}},
            {"learning_rate"},
        ),
        (
            {"vary": {"lr_schedule": ("constant",)}},
            {"lr_schedule", "min_lr", "lr_decay_iters"},
        ),
        (
            {"vary": {"lr_schedule": ("wsd", "constant")}, "flags": {"min_lr": "1e-4"}},
            {"lr_schedule", "min_lr", "lr_decay_iters", "wsd_decay_fraction"},
        ),
        (
            {"vary": {"lr_schedule": ("wsd",)}, "flags": {"min_lr": "1e-4"}},
            {"lr_schedule", "lr_decay_iters", "wsd_decay_fraction"},
        ),
        (
            {"vary": {"optimizer": ("lion",)}, "flags": {"beta1": "0.8", "weight_decay": "0.2"}},
            {"optimizer", "beta1", "beta2", "adam_eps", "lion_beta1", "lion_beta2"},
        ),
    ],
)
def test_what_is_studied(tiny_dataset: Path, asked: dict[str, Any], studied: set[str]) -> None:
    arms = tiny_arms(tiny_dataset, **asked)
    assert studied_keys(tiny_request(tiny_dataset, **asked), arms) == studied


# What is too much for a sweep


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"vary": {"n_layer": ("20000",)}},
            "n_layer=20000 exceeds the 10,000 layers",
        ),
        ({"vary": {"n_embd": ("1000000000",)}}, "give more than the 1e+15 weights"),
        (
            {"vary": NORMS, "flags": {"seed": str(2**32 - 2)}},
            f"the runs need seeds from seed={2**32 - 2} up: seed={2**32 + 2} must be below {2**32}",
        ),
        (
            {"vary": NORMS, "flags": {"seed": str(2**32 - 9000)}, "tune": {"beta1": ("0.8",)}},
            f"seed={2**32 + 1000} must be below {2**32}",
        ),
    ],
)
def test_what_no_run_could_do_is_refused_before_anything_is_counted(
    tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(matching, "GPT", None)  # no model is made
    assert message in refusal(tiny_dataset, **asked)


def test_too_many_arms_are_refused(tiny_dataset: Path) -> None:
    """One value of each key may be the config's own, so a request alone does not tell."""
    vary = dict.fromkeys(("bias", "weight_tying"), ("True", "False"))
    vary |= {"n_head": ("1", "4"), "normalization": ("rmsnorm", "layernorm_nobias")}
    asked = {"vary": vary, "design": "factorial", "seeds": 500}
    assert "24 arms with 500 seeds make 12,000 runs" in refusal(tiny_dataset, **asked)


def test_a_file_that_exits_is_a_config_error(tiny_dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "leaving.py"
    path.write_text("raise SystemExit('bye')\n")
    told = refusal(tiny_dataset, vary=NORMS, arms=[path], flags={"seed": str(2**32 - 1)})
    assert told.startswith("2 config errors")
    assert f"arm leaving: {path}:1: SystemExit: bye" in told
