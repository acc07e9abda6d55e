"""The parameters that an optimizer updates, in groups, and which of them are hidden matrices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor

from components.head import LMHead
from components.part import Part
from errors import UserError


def trainable_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Every parameter that requires a gradient, once, with its name; a tied one by its first.

    Raises:
        UserError: if nothing is trainable, or two parameters share memory without being the same
            parameter (both would be updated).
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise UserError(
            f"{type(model).__name__} has 0 parameters that require a gradient; "
            "there is nothing to train."
        )
    _refuse_shared_memory(named)
    return named


def _refuse_shared_memory(named: Iterable[tuple[str, nn.Parameter]]) -> None:
    owners: dict[tuple[int, int], str] = {}
    for name, parameter in named:
        here = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if here.numel() == 0:
            continue
        place = here.untyped_storage()._cdata, here.storage_offset()
        owner = owners.setdefault(place, name)
        if owner != name:
            raise UserError(
                f"{owner} and {name} are two parameters in the same memory, and would be updated "
                "twice; tie them by assigning the same nn.Parameter to both."
            )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups: weight decay for matrices (two dimensions or more), none for vectors and
    what parts declare by `Part.undecayed`.

    Every parameter that requires a gradient is in one group, once. See `trainable_parameters` for
    the errors.
    """
    return decay_groups(model, [p for _, p in trainable_parameters(model)], weight_decay)


def decay_groups(
    model: nn.Module, parameters: Iterable[nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    """The `parameter_groups` of some parameters of a model."""
    parts = (module for module in model.modules() if isinstance(module, Part))
    undecayed = {getattr(part, name) for part in parts for name in part.undecayed}
    decayed, others = [], []
    for parameter in parameters:
        decays = parameter.ndim >= 2 and parameter not in undecayed
        (decayed if decays else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def hidden_matrices(model: nn.Module) -> dict[nn.Parameter, tuple[int, ...]]:
    """The weights that map hidden states to hidden states, with the rows of each matrix in them.

    They are the weights of Linear layers but the LM head, and what parts declare by
    `Part.matrix_rows`. Embeddings, also tied ones, are not among them, nor are parameters that a
    part does not declare, such as the filters of a convolution.

    Raises:
        UserError: if the rows that a part declares are not those of the weight.
    """
    found: dict[nn.Parameter, tuple[int, ...]] = {}
    outside: set[nn.Parameter] = set()
    for module in model.modules():
        if isinstance(module, nn.Embedding | LMHead):
            outside.add(module.weight)
        elif isinstance(module, nn.Linear):
            found.setdefault(module.weight, (module.out_features,))
        if isinstance(module, Part):
            found |= _declared(module)
    return {p: rows for p, rows in found.items() if p.requires_grad and p not in outside}


def _declared(part: Part) -> dict[nn.Parameter, tuple[int, ...]]:
    """The weights that a part declares, with the rows of their matrices."""
    declared = {}
    for name, rows in part.matrix_rows.items():
        owner = getattr(part, name)
        weight = owner if isinstance(owner, nn.Parameter) else owner.weight
        if sum(rows) != weight.shape[-2]:
            raise UserError(
                f"{type(part).__name__}.matrix_rows says that {name} stacks {sum(rows)} rows, but "
                f"it has {weight.shape[-2]} (its shape is {tuple(weight.shape)})."
            )
        declared[weight] = tuple(rows)
    return declared
