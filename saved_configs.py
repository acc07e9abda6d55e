"""Upgrade configs saved by earlier versions to the current keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from patterns import repeating

_WINDOWED = "S"
_ROTATED = "R"

_ROPE = ("position_encoding", ("rope",))
_STRETCHED = ("rope_scaling", ("linear", "ntk", "yarn", "llama3"))
_BY_LENGTH = ("rope_scaling", ("yarn", "llama3"))
_YARN = ("rope_scaling", ("yarn",))
_LLAMA3 = ("rope_scaling", ("llama3",))

_OWNERS = {
    "rope_theta": _ROPE,
    "rope_fraction": _ROPE,
    "rope_scaling": _ROPE,
    "rope_scaling_factor": _STRETCHED,
    "rope_original_block_size": _BY_LENGTH,
    "rope_beta_fast": _YARN,
    "rope_beta_slow": _YARN,
    "rope_low_freq_factor": _LLAMA3,
    "rope_high_freq_factor": _LLAMA3,
}
"""Keys that every config had before they became options of components, with the key that chooses
the component and the components that have them. They are removed in this order if a config uses
another component."""


_ADDED = {"mixer": "attention", "residual": "plain", "value_residual": "none"}
"""Keys that older model configs lack, with the value that every model had at the time."""

_ADDED_LATER = {
    "parametrization": "standard",
    "logit_scale": 1.0,
    "logit_gain": False,
    "sphere_weights": False,
    "mtp": "none",
}
"""The same for model configs of a later version."""

_ADDED_TO_TRAINING = {"optimizer": "adamw", "objective": "cross_entropy", "z_loss_coef": 0.0}
"""The same for training configs."""

_ADDED_FOR_WORKERS = {
    "parallelism": "auto",
    "shard_size": 0,
    "tensor_parallel": 1,
    "activation_checkpointing": "none",
    "async_save": "auto",
    "sample_interval": 0,
    "sample_tokens": 200,
    "console": "full",
    "verbose": False,
    "adapter": "none",
    "qk_clip": 0.0,
    "log_attention_logits": False,
}
"""The same for training configs of a later version."""

_RENAMED = {
    f"gdn_{name}": f"linear_{name}"
    for name in ("n_head", "n_value_head", "key_dim", "value_dim", "kernel", "chunk")
}
"""Keys that had another name."""

_SCHEDULED = {
    "lr_decay_iters": ("cosine", "linear", "wsd"),
    "min_lr": ("cosine", "linear", "wsd"),
    "wsd_decay_fraction": ("wsd",),
}
"""Keys that every config had before they became options of schedules, with those schedules."""


def upgraded(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a saved config to the current keys; a current config is returned unchanged.

    `window_pattern` (S: sliding, L: full) and `rope_pattern` (R: with RoPE, N: without) repeated
    over the layers; `rope_local_theta` was the base in windowed layers, whose RoPE was not scaled.
    They become patterns of other keys. Options of components that the config does not select are
    removed. Keys that did not exist are added with the value that the code implied at the time.
    """
    saved = {current_name(key): value for key, value in saved.items()}
    keys = {**_ADDED, **saved} if "mixer" not in saved and "n_layer" in saved else saved
    if "n_layer" in keys:
        keys = {**_ADDED_LATER, **keys}
    if "lr_schedule" in keys and "optimizer" not in keys:
        keys |= _ADDED_TO_TRAINING
        for key, schedules in _SCHEDULED.items():
            if keys["lr_schedule"] not in schedules:
                keys.pop(key, None)
    if "lr_schedule" in keys:
        keys |= {key: v for key, v in _ADDED_FOR_WORKERS.items() if key not in keys}
    if "window_pattern" not in keys and "rope_pattern" not in keys:
        return keys
    for key, (chooser, parts) in _OWNERS.items():
        if keys.get(chooser) not in parts:
            keys.pop(key, None)
    if keys.get("activation") == "leaky_relu":
        keys["leaky_relu_slope"] = 0.01
    windows, turns = keys.pop("window_pattern", None), keys.pop("rope_pattern", None)
    local = keys.pop("rope_local_theta", None)
    if windows and keys.get("sliding_window") is not None:
        if keys.get("position_encoding") == "rope" and local is not None:
            for key, inside in (("rope_theta", local), ("rope_scaling", "none")):
                keys[key] = _by_letters(windows, inside, keys.get(key))
        keys["sliding_window"] = _by_letters(windows, _effective_window(keys), None)
    if turns and keys.get("position_encoding") == "rope":
        kinds = repeating(["rope" if turn == _ROTATED else "none" for turn in turns])
        keys["position_encoding"] = str(kinds)
    return keys


def current_name(key: str) -> str:
    """The current name of a key of an earlier version."""
    return _RENAMED.get(key, key)


def _by_letters(letters: str, windowed: Any, other: Any) -> Any:
    """The value, or the pattern as text, for a pattern of letters."""
    values = repeating([windowed if letter == _WINDOWED else other for letter in letters])
    return str(values) if len(set(letters)) > 1 and windowed != other else values


def _effective_window(keys: Mapping[str, Any]) -> int | None:
    """The window; None if it covers the longest sequence and has no effect."""
    window, longest = keys["sliding_window"], keys.get("block_size")
    both = isinstance(window, int) and isinstance(longest, int)
    return None if both and window >= longest else window
