"""Parameter groups of optimizers, and which parameters are hidden matrices."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from components.adapted_linear import Adapter
from components.head import LMHead
from components.parametrizations import ParameterScales
from components.part import Part
from components.quantized_linear import QuantizedLinear
from errors import UserError


def is_sharded(tensor: Tensor) -> bool:
    """Whether FSDP sharded a tensor, that is, whether it is a DTensor.

    Looks for the class instead of importing it: the import takes almost a third of the start of a
    run, and a process that has not imported the class has no DTensor.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """This worker's slice of a tensor, sharing its memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def slice_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This worker's slice of a whole tensor if sharded like `like`. Does not communicate."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None).to_local()


def trainable_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """All parameters that require gradients, with their names; tied ones once, under the first
    name.

    Raises:
        UserError: If nothing is trainable, or two distinct parameters share memory (both would be
            updated).
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise UserError(
            f"{type(model).__name__} has no parameters that require gradients; "
            "there is nothing to train."
        )
    _refuse_shared_memory(named)
    return named


def _refuse_shared_memory(named: Iterable[tuple[str, nn.Parameter]]) -> None:
    owners: dict[tuple[int, int], str] = {}
    for name, parameter in named:
        here = local(parameter)
        if here.numel() == 0:
            continue
        place = here.untyped_storage()._cdata, here.storage_offset()
        owner = owners.setdefault(place, name)
        if owner != name:
            raise UserError(
                f"{owner} and {name} are two parameters that share memory and would be updated "
                "twice; tie them by assigning the same nn.Parameter to both."
            )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into optimizer groups: weight decay for tensors of two or more dimensions,
    none for vectors and parameters in `Part.undecayed`.

    With a `parametrization` that depends on the width, a group also has a `rate_scale`, a factor on
    the learning rate, and an `eps_scale`, one on Adam's epsilon.

    Every parameter that requires gradients is in exactly one group. See `trainable_parameters` for
    the errors.
    """
    return decay_groups(model, [p for _, p in trainable_parameters(model)], weight_decay)


def decay_groups(
    model: nn.Module, parameters: Iterable[nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    """`parameter_groups` for some of the parameters of a model."""
    parts = (module for module in model.modules() if isinstance(module, Part))
    undecayed = {getattr(part, name) for part in parts for name in part.undecayed}
    scales_of = parameter_scales(model)
    alike: dict[tuple[bool, ParameterScales], list[nn.Parameter]] = {}
    for parameter in parameters:
        decays = parameter.ndim >= 2 and parameter not in undecayed
        alike.setdefault((decays, scales_of(parameter)), []).append(parameter)
    decayed_first = sorted(alike.items(), key=lambda item: not item[0][0])
    return [
        {"params": params, "weight_decay": weight_decay * scales.decay if decays else 0.0}
        | _scaled(scales)
        for (decays, scales), params in decayed_first
    ]


def _scaled(scales: ParameterScales) -> dict[str, float]:
    """The entries of a parameter group that scale its settings."""
    named = {"rate_scale": scales.rate, "eps_scale": scales.eps}
    return {name: scale for name, scale in named.items() if scale != 1}


def parameter_scales(model: nn.Module) -> Callable[[nn.Parameter], ParameterScales]:
    """A function that returns the factors on the optimizer settings of a model's parameter, from
    the model's parametrization."""
    parametrization = getattr(model, "parametrization", None)
    if parametrization is None or not parametrization.scales_with_width:
        return lambda _: ParameterScales()
    matrices, inside = hidden_matrices(model), set(model.blocks.parameters())
    adapters = (module for module in model.modules() if isinstance(module, Adapter))
    added = {parameter for adapter in adapters for parameter in adapter.parameters()}

    def scales_of(parameter: nn.Parameter) -> ParameterScales:
        if parameter in added:  # their rank does not grow with the width
            return ParameterScales()
        return parametrization.scales(hidden=parameter in matrices, in_block=parameter in inside)

    return scales_of


def hidden_matrices(model: nn.Module) -> dict[nn.Parameter, tuple[int, ...]]:
    """The weights that map hidden states to hidden states, with the rows of each stacked matrix.

    These are the weights of Linear layers except the LM head, and those declared by
    `Part.matrix_rows`. Embeddings, including tied ones, are excluded, and so are other parameters
    that a part does not declare, such as convolution filters.

    Raises:
        UserError: If the rows that a part declares do not match the weight.
    """
    found: dict[nn.Parameter, tuple[int, ...]] = {}
    outside: set[nn.Parameter] = set()
    for module in model.modules():
        if isinstance(module, nn.Embedding | LMHead):
            outside.add(module.weight)
        elif isinstance(module, nn.Linear) and not isinstance(module, QuantizedLinear):
            found.setdefault(module.weight, (module.out_features,))
        if isinstance(module, Part):
            found |= _declared(module)
    return {p: rows for p, rows in found.items() if p.requires_grad and p not in outside}


def _declared(part: Part) -> dict[nn.Parameter, tuple[int, ...]]:
    """The weights that a part declares, with the rows of each stacked matrix."""
    declared = {}
    for name, rows in part.matrix_rows.items():
        owner = getattr(part, name)
        if isinstance(owner, QuantizedLinear):
            continue
        weight = owner if isinstance(owner, nn.Parameter) else owner.weight
        if sum(rows) != weight.shape[-2]:
            raise UserError(
                f"{type(part).__name__}.matrix_rows declares {sum(rows)} rows for {name}, but it "
                f"has {weight.shape[-2]} (shape {tuple(weight.shape)})."
            )
        declared[weight] = tuple(rows)
    return declared
