"""The settings of a run: each rule raises, and what is derived."""

from __future__ import annotations

import pytest

from errors import ConfigError
from recipe.schedules import LR_SCHEDULES
from training_config import TrainingConfig


def problems(**values) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(**values)
    return [problem.message for problem in caught.value.problems]


def derived(**values) -> TrainingConfig:
    config = TrainingConfig(**values)
    return config if config.sequence_length else config.completed(256)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"warmup_iters": 11, "max_iters": 10},
            "warmup_iters=11 is longer than the schedule of 10 steps (lr_decay_iters, or "
            "max_iters); make it shorter.",
        ),
        (
            {"warmup_iters": 11, "lr_decay_iters": 10},
            "warmup_iters=11 is longer than the schedule of 10 steps (lr_decay_iters, or "
            "max_iters); make it shorter.",
        ),
        (
            {"min_lr": 0.01, "learning_rate": 0.001},
            "min_lr=0.01 is above learning_rate=0.001; lower min_lr.",
        ),
        (
            {"min_lr": 0.0001, "lr_schedule": "constant"},
            "min_lr=0.0001 belongs to lr_schedule=cosine, linear or wsd, which is not "
            "selected; drop it, or select that component.",
        ),
        (
            {"lr_decay_iters": 500, "lr_schedule": "constant"},
            "lr_decay_iters=500 belongs to lr_schedule=cosine, linear or wsd, which is not "
            "selected; drop it, or select that component.",
        ),
        (
            {"wsd_decay_fraction": 0.5},
            "wsd_decay_fraction=0.5 belongs to lr_schedule=wsd, which is not selected; drop it, "
            "or select that component.",
        ),
        (
            {"sample_interval": 5, "sample_tokens": 0},
            "sample_interval=5 has no effect with sample_tokens=0; drop it, or set sample_tokens "
            "to at least 1.",
        ),
        (
            {"run_name": "a/b"},
            "run_name='a/b' must be a single folder name; set its location with out_dir.",
        ),
        (
            {"log_to": "csv,tensorbord"},
            "unknown log_to 'tensorbord'; did you mean 'tensorboard'? "
            "Choices: csv, tensorboard, wandb.",
        ),
        ({"log_to": "csv,wandb, csv"}, "log_to='csv,wandb, csv' names csv more than once."),
        ({"run_name": "  "}, "run_name='  ' starts or ends with a space; remove it."),
        ({"run_name": "mine "}, "run_name='mine ' starts or ends with a space; remove it."),
        (
            {"run_name": "nul.txt"},
            "run_name='nul.txt' is not a valid folder name on Windows; choose another.",
        ),
        (
            {"run_name": "a."},
            "run_name='a.' is not a valid folder name on Windows; choose another.",
        ),
        (
            {"run_name": "é" * 101},
            f"run_name='{'é' * 37}...{'é' * 37}' (103 characters) is 202 bytes long, but at "
            "most 200 are allowed; shorten it.",
        ),
        (
            {"out_dir": ""},
            "out_dir='' does not name a folder; drop it, or use '.' for the current folder.",
        ),
        (
            {"out_dir": " "},
            "out_dir=' ' does not name a folder; drop it, or use '.' for the current folder.",
        ),
        (
            {"out_dir": "a/" + 300 * "b"},
            f"out_dir='a/{'b' * 35}...{'b' * 37}' (304 characters) contains a name of 300 bytes, "
            "but at most 255 are allowed; shorten it.",
        ),
        ({"run_name": "a\tb"}, r"run_name='a\tb' contains unprintable characters."),
        ({"dataset": "a\udcff"}, r"dataset='a\udcff' contains unprintable characters."),
        (
            {"seed": "-" * 5000},
            f"seed takes int, not '{'-' * 37}...{'-' * 37}' (5002 characters) (str).",
        ),
        (
            {"batch_size": 2**63},
            "batch_size=9223372036854775808 must be at most 9223372036854775807.",
        ),
        (
            {"run_name": ".."},
            "run_name='..' must be a single folder name; set its location with out_dir.",
        ),
        (
            {"run_name": ""},
            "run_name='' must be a single folder name; set its location with out_dir.",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused(values, message):
    assert problems(**values) == [message]


def test_problems_are_collected():
    assert len(problems(batch_size=0, dtype="float61", seed=True)) == 3
    assert len(problems(min_lr=1.0, wsd_decay_fraction=0.5)) == 2


def test_a_run_name_may_hold_an_equals_sign():
    assert TrainingConfig(run_name="a=b").run_name == "a=b"


def test_the_places_of_the_log_are_separated_by_commas():
    assert TrainingConfig().log_sinks == ()
    assert TrainingConfig(log_to="wandb, csv").log_sinks == ("wandb", "csv")


def test_none_is_derived_from_the_rest():
    config = derived(max_iters=1000, learning_rate=6e-4)
    assert config.sequence_length == 256
    assert config.warmup_iters == 50
    assert config.lr_decay_iters == 1000
    assert config.min_lr == pytest.approx(6e-5)


def test_warm_up_is_at_most_2000_steps():
    assert derived(max_iters=600_000).warmup_iters == 2000


def test_warm_up_is_a_20th_of_the_time_however_high_max_iters_is():
    assert derived(max_iters=600_000, max_minutes=10).warmup_iters == 30_000


def test_what_is_set_is_not_derived():
    config = derived(sequence_length=64, warmup_iters=0, lr_decay_iters=500, min_lr=0.0)
    assert (config.sequence_length, config.warmup_iters) == (64, 0)
    assert (config.lr_decay_iters, config.min_lr) == (500, 0.0)


@pytest.mark.parametrize("schedule", LR_SCHEDULES.names)
@pytest.mark.parametrize("max_iters", [0, 1, 19, 2000])
@pytest.mark.parametrize("lr_decay_iters", [None, 1, 100])
def test_derived_values_are_sound_and_final(schedule, max_iters, lr_decay_iters):
    if schedule == "constant":
        lr_decay_iters = None  # it has no use for one
    config = derived(lr_schedule=schedule, max_iters=max_iters, lr_decay_iters=lr_decay_iters)
    assert None not in config.to_dict().values()
    assert TrainingConfig(**config.to_dict()) == config
    assert ("min_lr" in config) == ("lr_decay_iters" in config) == (schedule != "constant")


def test_tokens_per_step_counts_micro_batches():
    config = derived(batch_size=3, gradient_accumulation_steps=5)
    assert config.tokens_per_step == 3 * 5 * 256


def test_it_is_frozen_and_its_dict_makes_it_again():
    config = derived(max_iters=7, compile=False)
    with pytest.raises(AttributeError, match="immutable"):
        config.max_iters = 8
    assert TrainingConfig(**config.to_dict()) == config
