"""Configs that earlier versions saved mean the same models today."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from configurator import read
from errors import ConfigError
from model_builder import GPT
from model_config import ModelArchitectureConfig
from model_keys import REPLACED
from saved_configs import upgraded
from tests.saved_run import change_config, overwrite, save_run
from tests.tiny import ROPE, SIZES, some_variants, tiny_config, tokens
from training.resume import find_start, load_settings

ALWAYS_SAVED = {
    "sliding_window": None,
    "window_pattern": "S",
    "rope_theta": 10000.0,
    "rope_fraction": 1.0,
    "rope_local_theta": None,
    "rope_pattern": "R",
    "rope_scaling": "none",
    "rope_scaling_factor": 1.0,
    "rope_original_block_size": 1024,
    "rope_beta_fast": 32.0,
    "rope_beta_slow": 1.0,
    "rope_low_freq_factor": 1.0,
    "rope_high_freq_factor": 4.0,
}
"""Keys of parts, which were saved whatever the parts."""

STRETCHED = {**ROPE, "rope_scaling": "linear", "rope_scaling_factor": 4.0}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[float]]] = {
    "nothing": ({}, {}, [2.74487, 2.40535, 1.82556, -3.62515]),
    "a window": ({"sliding_window": 5}, {"sliding_window": 5}, [2.31369, 0.765, 3.60684, -1.88079]),
    "window_pattern": (
        {"sliding_window": 5, "window_pattern": "SSL", "n_layer": 4},
        {"sliding_window": "5*2+none", "n_layer": 4},
        [-1.36253, 2.93397, 2.50016, -3.22155],
    ),
    "window_pattern that starts with all": (
        {"sliding_window": 5, "window_pattern": "LS"},
        {"sliding_window": "none+5"},
        [0.9965, 1.61389, 2.28311, -3.66979],
    ),
    "window_pattern with alibi": (
        {"position_encoding": "alibi", "sliding_window": 5, "window_pattern": "SL"},
        {"position_encoding": "alibi", "sliding_window": "5+none"},
        [0.32926, 0.16429, 2.20195, -3.35601],
    ),
    "rope_pattern": (
        {**ROPE, "rope_pattern": "RRN", "n_layer": 4},
        {"position_encoding": "rope*2+none", "n_layer": 4},
        [-1.56644, 0.00328, 4.07083, 0.98329],
    ),
    "rope_local_theta": (
        {
            **STRETCHED,
            "sliding_window": 5,
            "window_pattern": "SL",
            "rope_local_theta": 50.0,
            "rope_theta": 1e3,
        },
        {
            **STRETCHED,
            "sliding_window": "5+none",
            "rope_theta": "50+1e3",
            "rope_scaling": "none+linear",
        },
        [2.92548, 1.64429, 3.18944, -2.32607],
    ),
    "rope_local_theta in every layer": (
        {**STRETCHED, "sliding_window": 5, "rope_local_theta": 50.0},
        {**ROPE, "sliding_window": 5, "rope_theta": 50.0},
        [2.78912, 1.7575, 1.92077, -1.34477],
    ),
    "rope_local_theta with a window over everything": (
        {**STRETCHED, "sliding_window": 99, "window_pattern": "SL", "rope_local_theta": 50.0},
        {**STRETCHED, "rope_theta": "50+1e4", "rope_scaling": "none+linear"},
        [-1.14066, -2.61266, 4.79293, 0.06125],
    ),
    "a pattern longer than the model": (
        {**ROPE, "sliding_window": 5, "window_pattern": "SSSL", "rope_local_theta": 50.0},
        {**ROPE, "sliding_window": 5, "rope_theta": 50.0},
        [2.78912, 1.7575, 1.92077, -1.34477],
    ),
    "all of them": (
        {
            **ROPE,
            "rope_pattern": "RNR",
            "sliding_window": 5,
            "window_pattern": "SL",
            "rope_local_theta": 50.0,
            "n_layer": 6,
        },
        {
            "position_encoding": "rope+none+rope",
            "sliding_window": "5+none",
            "rope_theta": "50+1e4",
            "n_layer": 6,
        },
        [1.1091, 5.26401, 2.01631, -0.80148],
    ),
}
"""What was saved, the patterns that it means, and logits that the version that saved it computed
(seed 0, init_std=0.5)."""

every_case = pytest.mark.parametrize(("saved", "meant", "logits"), CASES.values(), ids=CASES)


def logits_of(config: ModelArchitectureConfig) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return GPT(config).eval()(tokens(16))


def upgraded_config(saved: dict[str, Any]) -> ModelArchitectureConfig:
    keys = {**SIZES, **ALWAYS_SAVED, **saved, "init_std": 0.5}
    return ModelArchitectureConfig.from_dict(upgraded(keys))


@every_case
def test_the_layers_are_those_of_the_patterns(saved, meant, logits):
    expected = tiny_config(**meant, init_std=0.5)
    config = upgraded_config(saved)
    assert list(config.layers) == list(expected.layers)
    assert torch.equal(logits_of(config), logits_of(expected))


@every_case
def test_the_logits_are_those_of_the_version_that_saved_it(saved, meant, logits):
    found = logits_of(upgraded_config(saved))[1, -1, :4]
    assert torch.allclose(found, torch.tensor(logits), atol=1e-4)


def test_keys_of_gated_deltanet_have_the_names_of_linear_mixers():
    saved = tiny_config(mixer="gated_deltanet", linear_n_head=4, linear_chunk=5)
    earlier = {key.replace("linear_", "gdn_"): value for key, value in saved.to_dict().items()}
    assert "gdn_value_dim" in earlier
    assert ModelArchitectureConfig.from_dict(upgraded(earlier)) == saved


def test_replaced_keys_are_gone():
    for saved, _, _ in CASES.values():
        assert not upgraded({**SIZES, **ALWAYS_SAVED, **saved}).keys() & REPLACED.keys()


@some_variants(1)
def test_a_config_of_today_comes_back_as_it_is(keys):
    saved = tiny_config(**keys).to_dict()
    assert upgraded(saved) == saved


# In a checkpoint

OLD = {
    **ALWAYS_SAVED,
    **ROPE,
    "sliding_window": 4,
    "window_pattern": "SL",
    "rope_local_theta": 50.0,
}


def test_a_run_of_an_earlier_version_loads_and_goes_on(tmp_path):
    path = save_run(tmp_path / "run", flags=["--n_layer=4", "--position_encoding=rope"])
    change_config(path, **OLD)
    windows = [layer.sliding_window for layer in load_settings(path).model.layers]
    assert windows == [4, None, 4, None]
    where = [f"--out_dir={tmp_path}", "--resume=run"]
    for flags in ([], ["--sliding_window=4+none", "--rope_theta=50+1e4"]):
        settings = find_start(read([*where, *flags])).settings
        assert [layer.sliding_window for layer in settings.model.layers] == windows
        assert settings.model.to_dict()["rope_theta"] == "50+10000"


@pytest.mark.parametrize(
    ("flags", "before"),
    [
        ([], {"wsd_decay_fraction": 0.2}),
        (["--lr_schedule=wsd", "--beta2=0.9"], {}),
        (
            ["--lr_schedule=constant"],
            {"wsd_decay_fraction": 0.2, "min_lr": None, "lr_decay_iters": None},
        ),
    ],
)
def test_a_run_of_a_version_with_adamw_alone_loads_and_goes_on(tmp_path, flags, before):
    """Every schedule had the keys of all then, and nothing chose an optimizer or an objective."""
    path = save_run(tmp_path / "run", flags=flags)
    today = load_settings(path).training
    change_config(path, **before)
    state = json.loads((path / "state.json").read_text())
    for key in ("optimizer", "objective", "z_loss_coef"):
        del state["config"][key]
    overwrite(path, "state.json", json.dumps(state).encode())
    assert load_settings(path).training == today
    where = [f"--out_dir={tmp_path}", "--resume=run"]
    for again in ([], ["--optimizer=adamw"], flags):
        start = find_start(read([*where, *again]))
        assert start.settings.training.changed(out_dir="out", resume="none") == today.changed(
            run_name="run"
        )
        assert not [note for note in start.notes if " -> " in note]
    with pytest.raises(ConfigError, match="optimizer='lion', but the run to resume has .*'adamw'"):
        find_start(read([*where, "--optimizer=lion"]))
