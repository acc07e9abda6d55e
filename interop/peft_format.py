"""Adapters in the format of Hugging Face PEFT: adapter_config.json and adapter_model.safetensors.

PEFT adapts the modules of transformers. Where a family stacks matrices that are sections here, such
as GPT-2's c_attn, their adapters become one of the sum of their ranks, whose B is block diagonal.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from components.adapted_linear import AdaptedLinear, Adapter, add_adapters
from components.layer_config import LayerConfig
from errors import UserError, quoted
from interop.family import Family, Weights
from interop.layouts import CONV1D, HEAD_MAJOR, NEIGHBOUR_PAIRS, PLAIN
from model_builder import GPT
from recipe.adapters import ADAPTERS, DoRA, adaptable
from safe_files import read_json, usual_permissions
from training.checkpoint import is_number

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_MAGNITUDE = "lora_magnitude_vector"
_BY_ROWS = (PLAIN, CONV1D, HEAD_MAJOR, NEIGHBOUR_PAIRS)
"""Layouts that only order the outputs of a layer."""

_SWITCHES = {"lora": (False, False), "rslora": (True, False), "dora": (False, True)}
"""`use_rslora` and `use_dora` of each adapter."""

_INITIALIZATIONS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the weights of the base unchanged."""

_UNSUPPORTED = {
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "lora_bias": (False, None),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "megatron_config": (None,),
    "init_lora_weights": _INITIALIZATIONS,
    "alora_invocation_tokens": (None,),
    "use_qalora": (False, None),
    "use_bdlora": (False, None),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
}
"""Fields of adapter_config.json that change what is computed, with their supported values."""


@dataclasses.dataclass(frozen=True)
class _Low:
    """The adapter of one module: the product of b (out, r) and a (r, in), and its magnitude."""

    a: Tensor
    b: Tensor
    scale: float
    m: Tensor | None = None


# Writing


def save_adapter(model: GPT, family: Family, folder: Path, training: Any) -> None:
    """Write the adapters of a model as PEFT does.

    Args:
        model: A model with adapters.
        family: The family of its base.
        folder: Output folder; must be new or empty.
        training: The training config of the adapters; `init_from` is the base.

    Raises:
        UserError: If the folder is not empty, or PEFT has no such adapters; naming the layers.
    """
    if training.adapter not in _SWITCHES:
        raise UserError(
            f"adapter={quoted(training.adapter)} has no equivalent in PEFT; drop --peft to export "
            "the merged model."
        )
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name another folder, or empty it.")
    adapters = dict(_their_adapters(model, family))
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(adapters, training, any(_is_conv1d(model, family)))
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    tensors = {}
    for name, own in adapters.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = own.a
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = own.b
        if own.m is not None:
            tensors[f"{_PREFIX}{name}.{_MAGNITUDE}"] = own.m
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    with usual_permissions(folder / WEIGHTS):
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _config(adapters: dict[str, _Low], training: Any, conv1d: bool) -> dict[str, Any]:
    rslora, dora = _SWITCHES[training.adapter]
    rank, alpha = training.adapter_rank, training.adapter_alpha
    ranks = {name: len(own.a) for name, own in adapters.items() if len(own.a) != rank}
    growth = {name: own / rank for name, own in ranks.items()}
    alphas = {name: alpha * (math.sqrt(k) if rslora else k) for name, k in growth.items()}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": training.init_from,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _plain(alpha),
        "lora_dropout": training.adapter_dropout,
        "target_modules": sorted(adapters),
        "rank_pattern": ranks,
        "alpha_pattern": {name: _plain(own) for name, own in alphas.items()},
        "use_rslora": rslora,
        "use_dora": dora,
        "fan_in_fan_out": conv1d,
        "bias": "none",
        "modules_to_save": None,
    }


def _plain(number: float) -> float:
    """An int where it is one, as PEFT writes it."""
    return int(number) if number == int(number) else number


def _is_conv1d(model: GPT, family: Family) -> Iterator[bool]:
    """For each adapted layer, whether transformers has a Conv1D for it."""
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            yield _weights_of(family, model, name)[0].layout is CONV1D


def _their_adapters(model: GPT, family: Family) -> Iterator[tuple[str, _Low]]:
    """The adapters by the names of their modules in transformers."""
    for name, linear in model.named_modules():
        if not isinstance(linear, AdaptedLinear):
            continue
        weights, layer = _weights_of(family, model, name)
        whole, blocks = _stacked(linear)
        bs = _their_rows(weights, whole.b, layer)
        ms = [None] * len(bs) if whole.m is None else _their_rows(weights, whole.m, layer)
        names = _module_names(family, name)
        if len(names) == 1:
            yield names[0], _Low(whole.a, bs[0], whole.scale, ms[0])
            continue
        for section, module, b, m in zip(linear.rows, names, bs, ms, strict=True):
            if section in blocks:
                own = blocks[section]
                yield module, _Low(whole.a[own], b[:, own], whole.scale, m)


def _stacked(linear: AdaptedLinear) -> tuple[_Low, dict[str, slice]]:
    """The adapters of all sections as one, and the part of its rank that each section uses."""
    bs, magnitudes, blocks, start = [], [], {}, 0
    total = sum(own.a.shape[0] for own in linear.adapters.values())
    for name, weight in zip(linear.rows, linear.weight.split([*linear.rows.values()]), strict=True):
        b = weight.new_zeros(len(weight), total)
        magnitude = weight.norm(dim=1)
        if name in linear.adapters:
            own = linear.adapters[name]
            blocks[name] = slice(start, start + own.a.shape[0])
            start = blocks[name].stop
            b[:, blocks[name]] = own.b.detach()
            magnitude = own.m if isinstance(own, DoRA) else magnitude
        bs.append(b)
        magnitudes.append(magnitude.detach())
    first = next(iter(linear.adapters.values()))
    a = torch.cat([own.a.detach() for own in linear.adapters.values()])
    m = torch.cat(magnitudes) if isinstance(first, DoRA) else None
    return _Low(a, torch.cat(bs), first.scale, m), blocks


def _their_rows(weights: Weights, x: Tensor, layer: LayerConfig) -> tuple[Tensor, ...]:
    """The rows of b or of the magnitude in each of their modules."""
    return (x,) if weights.layout is CONV1D else tuple(weights.theirs_of(x, layer))


# Reading


def load_adapter(model: GPT, family: Family, folder: Path) -> None:
    """Add the adapters in a folder that PEFT wrote to a model.

    Args:
        model: The base, without adapters. Afterwards only the adapters require gradients.
        family: Its family, as which its modules have the names in the folder.
        folder: The folder.

    Raises:
        UserError: If a file is missing or damaged, a field changes what is computed in a way that
            is not supported, or a tensor belongs to no layer here; naming it.
    """
    fields = _fields(folder)
    kind = _kind(folder, fields)
    theirs = dict(_read_adapters(folder, fields, kind))
    model.requires_grad_(False)
    model.adapted = True
    for name, rows in adaptable(model).items():
        names = _module_names(family, name)
        parts = [theirs.pop(module, None) for module in names]
        if any(parts):
            linear = model.get_submodule(name)
            weights, layer = _weights_of(family, model, name)
            _refuse_other_shapes(linear, rows, dict(zip(names, parts, strict=True)))
            made = _our_adapters(linear, rows, parts, weights, layer)
            add_adapters(linear, rows, {own: _adapter(kind, made[own]) for own in made})
    if theirs:
        raise UserError(
            f"{folder} adapts {', '.join(sorted(theirs)[:8])}, which cannot be adapted."
        )


def _fields(folder: Path) -> dict[str, Any]:
    """What adapter_config.json holds."""
    try:
        fields = read_json(folder / CONFIG, follow_links=True)
    except OSError as error:
        raise UserError(f"{folder / CONFIG} cannot be read: {error.strerror}.") from error
    if not isinstance(fields, dict):
        raise UserError(f"{folder / CONFIG} has no fields: {quoted(fields)}.")
    return fields


def _refuse_other_shapes(
    linear: nn.Linear, rows: dict[str, int], parts: dict[str, _Low | None]
) -> None:
    """Raise UserError if their adapters are not those of modules of these sizes."""
    sizes = [linear.out_features] if len(parts) == 1 else list(rows.values())
    for (module, part), size in zip(parts.items(), sizes, strict=True):
        if part is not None and (len(part.b), part.a.shape[1]) != (size, linear.in_features):
            raise UserError(
                f"the adapter of {module} maps {part.a.shape[1]} inputs to {len(part.b)} outputs, "
                f"but the layer {linear.in_features} to {size}; load it on its own base."
            )


def _our_adapters(
    linear: nn.Linear,
    rows: dict[str, int],
    parts: list[_Low | None],
    weights: Weights,
    layer: LayerConfig,
) -> dict[str, _Low]:
    """The adapter of each section, of those of their modules."""
    sizes = [linear.out_features] if len(parts) == 1 else list(rows.values())
    total, start = sum(len(part.a) for part in parts if part), 0
    bs, ms, blocks = [], [], []
    for part, size in zip(parts, sizes, strict=True):
        b, m = linear.weight.new_zeros(size, total), linear.weight.new_ones(size)
        blocks.append(slice(start, start + (len(part.a) if part else 0)))
        start = blocks[-1].stop
        if part is not None:
            b[:, blocks[-1]] = part.b
            m = m if part.m is None else part.m
        bs.append(b)
        ms.append(m)
    conv1d = weights.layout is CONV1D
    b, m = (own[0] if conv1d else weights.ours_of(own, layer) for own in (bs, ms))
    of_section = blocks * len(rows) if len(parts) == 1 else blocks
    given = parts * len(rows) if len(parts) == 1 else parts
    sections = zip(rows, b.split([*rows.values()]), m.split([*rows.values()]), strict=True)
    return {
        name: _Low(part.a, own_b[:, block], part.scale, own_m if part.m is not None else None)
        for (name, own_b, own_m), block, part in zip(sections, of_section, given, strict=True)
        if part is not None
    }


def _kind(folder: Path, fields: dict[str, Any]) -> str:
    """The name of the adapter in a folder."""
    if fields.get("peft_type") != "LORA":
        raise UserError(
            f"{folder / CONFIG}: peft_type={quoted(fields.get('peft_type'))} is not supported; "
            "only 'LORA' is."
        )
    for name, allowed in _UNSUPPORTED.items():
        if name in fields and fields[name] not in allowed:
            raise UserError(
                f"{folder / CONFIG}: {name}={quoted(fields[name])} is not supported; only "
                f"{' or '.join(map(repr, allowed))} is."
            )
    switches = (bool(fields.get("use_rslora")), bool(fields.get("use_dora")))
    for name, own in _SWITCHES.items():
        if own == switches:
            return name
    raise UserError(f"{folder / CONFIG}: use_rslora together with use_dora is not supported.")


def _read_adapters(folder: Path, fields: dict[str, Any], kind: str) -> Iterator[tuple[str, _Low]]:
    """The adapters in a folder by the names of their modules in transformers."""
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read: {error}.") from error
    modules = {
        name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")
    }
    for module in sorted(modules):
        name = module.removeprefix(_PREFIX)
        try:
            a, b = (tensors.pop(f"{module}.lora_{own}.weight") for own in "AB")
            m = tensors.pop(f"{module}.{_MAGNITUDE}") if kind == "dora" else None
        except KeyError as error:
            raise UserError(f"{folder / WEIGHTS} has no {error}.") from error
        if not _fit_together(a, b, m):
            shapes = ", ".join(str(tuple(own.shape)) for own in (a, b, m) if own is not None)
            raise UserError(
                f"{folder / WEIGHTS} is damaged: the tensors {shapes} of {name} are no adapter; "
                "download it again."
            )
        alpha = _alpha_of(folder, fields, name)
        yield name, _Low(a, b, ADAPTERS[kind].scale_of(alpha, len(a)), m)
    if tensors:
        raise UserError(f"{folder / WEIGHTS} has {min(tensors)!r}, which is not supported.")


def _fit_together(a: Tensor, b: Tensor, m: Tensor | None) -> bool:
    """Whether tensors have the shapes (r, in), (out, r) and (out,), and hold floats."""
    if not (a.ndim == b.ndim == 2 and len(a) == b.shape[1] > 0):
        return False
    tensors = (a, b) if m is None else (a, b, m)
    shaped = m is None or m.shape == (len(b),)
    return shaped and all(tensor.is_floating_point() for tensor in tensors)


def _alpha_of(folder: Path, fields: dict[str, Any], module: str) -> float:
    """The alpha of a module: that of the first form in `alpha_pattern` that matches its name, as
    PEFT finds it, else `lora_alpha`."""
    key, alpha, pattern = "lora_alpha", fields.get("lora_alpha", 8), fields.get("alpha_pattern")
    try:
        for form, value in (pattern or {}).items():
            if re.fullmatch(rf"(.*\.)?({form})", module):
                key, alpha = "alpha_pattern", value
                break
    except (AttributeError, re.error) as error:
        raise UserError(
            f"{folder / CONFIG}: alpha_pattern={quoted(pattern)} is not a map of regular "
            "expressions to numbers."
        ) from error
    if not is_number(alpha):
        raise UserError(f"{folder / CONFIG}: {key} has {quoted(alpha)}, which is not a number.")
    return alpha


def _adapter(kind: str, low: _Low) -> Adapter:
    """An adapter with given values."""
    rank = len(low.a)
    options = {"adapter_rank": rank, "adapter_alpha": 1.0, "adapter_dropout": 0.0}
    weight = low.a.new_zeros(len(low.b), low.a.shape[1])
    adapter = ADAPTERS[kind](weight, SimpleNamespace(**options))
    adapter.scale = low.scale
    with torch.no_grad():
        adapter.a.copy_(low.a)
        adapter.b.copy_(low.b)
        if low.m is not None:
            adapter.m.copy_(low.m)
    return adapter


# Names


def _weights_of(family: Family, model: GPT, name: str) -> tuple[Weights, LayerConfig]:
    """What a family says of our layer. Raises UserError if PEFT cannot have its adapters."""
    layer, weights = _entry(family, name)
    if weights is None or weights.layout not in _BY_ROWS:
        raise UserError(
            f"{name} has no equivalent in {family.model_type} that PEFT can adapt; drop it from "
            "adapter_pattern, or export the merged model."
        )
    return weights, model.config.layers[layer]


def _module_names(family: Family, name: str) -> list[str]:
    """The names of the modules of transformers that our layer stacks; none if the family has no
    such layer."""
    layer, weights = _entry(family, name)
    return [] if weights is None else [theirs.format(layer) for theirs in weights.theirs]


def _entry(family: Family, name: str) -> tuple[int, Weights | None]:
    """The index of our layer's block, and what the family says of it."""
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    return int(found[1]), family.weights.get(f"blocks.{{}}.{found[2]}")
