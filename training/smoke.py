"""Smoke-test custom parts before a run starts: shapes, backward pass, finite gradients."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from components.part import own_stream
from components.registry import is_users_own
from configurator import Settings
from errors import ConfigError, UserError
from model_builder import GPT
from model_config import ModelArchitectureConfig
from model_keys import architecture_keys
from part_keys import parts_of
from recipe.optimizers import OPTIMIZERS, make_optimizer
from training.hardware import autocast
from training.step_guard import StepGuard

KEEP_SHAPE = ("normalization", "activation", "ffn_type", "mixer")
"""Keys of parts whose output must have the shape of their input."""

TOKENS = 8
VOCABULARY = 64


def check_own_parts(
    config: ModelArchitectureConfig, device: torch.device, dtype: torch.dtype
) -> None:
    """Train a small model for one step with the custom parts that a config uses.

    Does nothing if there are none. A part may need a certain width (such as groups of channels), so
    if it fails in a small model, it is tried at the config's widths. Exceptions raised there
    propagate, with a note that says which parts were checked.

    Raises:
        UserError: If the output of a part has the wrong shape, the loss or a gradient is not
            finite, or the part's parameters get no gradient.
    """
    own = {
        part: f"{key}={getattr(layer, key)!r} ({part.__name__} in {inspect.getfile(part)})"
        for layer in config.kinds
        for key, part in parts_of(layer, architecture_keys())
        if is_users_own(part)
    }
    if not own:
        return
    failed: BaseException | None = None
    for model_config in _few_layers(config):
        try:
            with own_stream("smoke check"):
                _train_a_step(model_config, own, device, dtype)
            return
        except (Exception, SystemExit) as error:
            failed = error
    assert failed is not None
    if not isinstance(failed, UserError):
        checked = ", ".join(own.values())
        failed.add_note(f"Raised while checking {checked} in a small model.")
    raise failed


def _few_layers(config: ModelArchitectureConfig) -> Iterator[ModelArchitectureConfig]:
    """Yield the config with few layers: first with few heads and tokens, then at its own widths.

    The first one is omitted if the parts cannot be combined at that size.
    """
    layers = {"n_layer": min(config.n_layer, max(2, config.fewest_layers))}
    with contextlib.suppress(ConfigError):
        yield config.adapted(**layers, **_small_sizes(config))
    yield config.adapted(**layers, vocab_size=VOCABULARY)


def _small_sizes(config: ModelArchitectureConfig) -> dict[str, Any]:
    """Small sizes for a config; widths do not change if layers differ in the shape of heads."""
    windows = [w + 1 for w in (layer.get("sliding_window") for layer in config.kinds) if w]
    length = min(config.block_size, max([*windows, 2 * TOKENS]))
    sizes = {"block_size": length, "vocab_size": VOCABULARY}
    shapes = {(layer.get("n_kv_head"), layer.get("head_dim")) for layer in config.kinds}
    ((key_heads, head_dim), *others) = shapes
    if others or key_heads is None:
        return sizes
    groups = config.n_head // key_heads
    return sizes | {
        "n_head": 2 * groups,
        "n_kv_head": 2,
        "head_dim": head_dim,
        "n_embd": 2 * groups * max(1, config.n_embd // config.n_head),
        "ffn_hidden": None,
        "ffn_multiplier": None,
    }


def _train_a_step(
    config: ModelArchitectureConfig,
    own: dict[type, str],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    model = GPT(config).to(device)
    modules = {
        part: [module for module in model.modules() if isinstance(module, part)] for part in own
    }
    for part, instances in modules.items():
        key = own[part].partition("=")[0]
        for module in instances if key in KEEP_SHAPE else ():
            module.register_forward_hook(_shape_check(own[part]))
    logits, loss = _outputs(model, device, dtype)
    everyone = ", ".join(own.values())
    expected = (2, min(TOKENS, config.block_size), config.vocab_size)
    if logits.shape != expected:
        raise UserError(f"{everyone}: the logits must be {expected}, not {tuple(logits.shape)}.")
    if not math.isfinite(loss.item()):
        raise UserError(f"{everyone}: the loss of a new model must be finite, not {loss.item()}.")
    loss.backward()
    for part, instances in modules.items():
        _check_gradients(own[part], nn.ModuleList(instances))


def _outputs(model: GPT, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits and loss of two sequences."""
    length = min(TOKENS, model.config.block_size)
    idx = torch.arange(2 * length, device=device).view(2, length) % model.config.vocab_size
    with autocast(device, dtype):
        return model(idx, idx.roll(1, dims=1))


def _shape_check(words: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        expected = tuple(args[0].shape)
        if not isinstance(output, Tensor):
            raise UserError(
                f"{words}: forward must return a tensor with the shape of its input, {expected}, "
                f"not {type(output).__name__}."
            )
        if tuple(output.shape) != expected:
            raise UserError(
                f"{words}: forward must keep the shape of its input, {expected}; it returned "
                f"{tuple(output.shape)}."
            )

    return hook


def _check_gradients(words: str, instances: nn.ModuleList) -> None:
    """Check that some parameter gets a gradient, and that gradients are finite. Not all parameters
    need one: an expert may get no token, or a part may do nothing in some layers."""
    trained = [(name, p) for name, p in instances.named_parameters() if p.requires_grad]
    names = list(dict.fromkeys(name.partition(".")[2] for name, _ in trained))
    if trained and all(parameter.grad is None for _, parameter in trained):
        raise UserError(
            f"{words}: none of its {len(names)} parameters ({', '.join(names[:3])}) gets a "
            "gradient; use them in forward, without detach() or no_grad()."
        )
    for name, parameter in trained:
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            own_name = name.partition(".")[2]
            raise UserError(f"{words}: the gradient of its parameter {own_name} is not finite.")


def check_own_optimizer(settings: Settings, device: torch.device, dtype: torch.dtype) -> None:
    """Smoke-test a custom optimizer on a small model, including a step that must be skipped.

    Does nothing if the optimizer is not custom. Exceptions that it raises propagate.

    Raises:
        UserError: If the optimizer omits a parameter, has state that cannot be undone and saved
            (see `refuse_hidden_state`), or makes weights non-finite.
    """
    own = OPTIMIZERS[settings.training.optimizer]
    if not is_users_own(own):
        return
    with own_stream("smoke check"):
        model = GPT(next(_few_layers(settings.model))).to(device)
        optimizer = make_optimizer(model, settings.training)
        guard = StepGuard(optimizer, max_bad_steps=1)
        for factor in (1.0, 1.0, math.nan):
            loss = _outputs(model, device, dtype)[1] * factor
            loss.backward()
            guard.check(loss)
            if guard.allows_update():
                optimizer.step()
            optimizer.zero_grad()
            for name, parameter in model.named_parameters():
                if not parameter.isfinite().all():
                    what = "skipped step, which must change nothing," if factor != 1 else "step"
                    raise UserError(
                        f"optimizer={settings.training.optimizer!r} ({own.__name__} in "
                        f"{inspect.getfile(own)}): a {what} makes {name} of a small model "
                        "non-finite."
                    )
