"""Weights from and to another project's names and layouts, by the table of a family."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Size, Tensor

from errors import UserError
from interop.family import Family
from model_builder import GPT
from model_config import ModelArchitectureConfig

_BUFFERS = re.compile(r"\.(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias)$")
"""Tables that old files hold besides the weights."""


def copy_weights(model: GPT, family: Family, tensors: Mapping[str, Tensor]) -> None:
    """Copy a family's tensors into a model. Raises UserError naming each that does not fit or that
    contains NaN or infinite values."""
    own = _weights(model)
    tensors = _relevant(model.config, family, tensors)
    _refuse_misfit(tensors, _expected(own, model.config, family))
    _refuse_non_finite(tensors)
    with torch.no_grad():
        for name, parameter in own.items():
            parts = [tensors[theirs] for theirs in family.names(name, model.config)]
            parameter.copy_(family.to_ours(name, parts, model.config))


def _weights(model: GPT) -> dict[str, Tensor]:
    """Every weight once, and the saved buffers, without those of multi-token prediction, for which
    transformers has no equivalent."""
    saved = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    both = dict(model.named_parameters()) | buffers
    return {name: tensor for name, tensor in both.items() if not name.startswith("mtp.")}


def _relevant(
    config: ModelArchitectureConfig, family: Family, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors by their names in the table, without buffers and the copy of a tied one."""
    if not any(name.startswith(family.prefix) for name in tensors):
        tensors = {family.prefix + name: tensor for name, tensor in tensors.items()}
    tensors = family.from_files(dict(tensors), config)
    tied = family.names("head.weight", config) if config.weight_tying else []
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name not in tied and not _BUFFERS.search(name)
    }


def _expected(
    weights: Mapping[str, Tensor], config: ModelArchitectureConfig, family: Family
) -> dict[str, Size]:
    """The names and shapes that a family has for our weights."""
    return {
        theirs: part.shape
        for name, weight in weights.items()
        for theirs, part in family.to_theirs(name, weight.detach().to("meta"), config)
    }


def _refuse_misfit(tensors: Mapping[str, Tensor], expected: Mapping[str, Size]) -> None:
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [
        f"{name} does not belong to this family" for name in tensors if name not in expected
    ]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, the architecture needs {tuple(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if problems:
        shown = "; ".join(problems[:8]) + ("; ..." if len(problems) > 8 else "")
        raise UserError(
            f"the weights do not fit the architecture ({len(problems)} differences): {shown}."
        )


def _refuse_non_finite(tensors: Mapping[str, Tensor]) -> None:
    wrong = {name: int((~tensor.isfinite()).sum()) for name, tensor in tensors.items()}
    problems = [
        f"{name} has {count:,} of {tensors[name].numel():,}"
        for name, count in wrong.items()
        if count
    ]
    if problems:
        shown = "; ".join(problems[:8]) + ("; ..." if len(problems) > 8 else "")
        raise UserError(
            f"tensors with NaN or infinite values ({len(problems)}): {shown}. They "
            "come from a damaged file or a run that diverged; use other weights."
        )


def their_tensors(model: GPT, family: Family) -> dict[str, Tensor]:
    """The weights as the family has them; a bias that only the family has holds zeros."""
    own, config = _weights(model), family.completed(model.config)
    dtype = next(model.parameters()).dtype
    with torch.device("meta"):
        whole = _weights(GPT(config))
    tensors: dict[str, Tensor] = {}
    for name, shape in ((name, weight.shape) for name, weight in whole.items()):
        weight = own[name].detach().cpu() if name in own else torch.zeros(shape, dtype=dtype)
        tensors |= dict(family.to_theirs(name, weight, config))
    tensors = family.to_files(tensors, config)
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
