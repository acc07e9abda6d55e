"""Mixtures of experts in a `config.json`: which layers have them, and how tokens are routed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from errors import UserError
from interop.fields import Aspect, Fields, Keys, layers_of, same, value_of
from model_config import ModelArchitectureConfig
from patterns import by_layer

Sparse = list[bool]
"""For each layer whether its feed-forward network is a mixture of experts."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """Which layers have experts, as some fields say it."""

    read: Callable[[Fields], Sparse]
    write: Callable[[Sparse], Fields]


EVERYWHERE = Placement(lambda given: [True] * len(layers_of(given)), lambda sparse: {})


def _after_the_first(given: Fields) -> Sparse:
    return [layer >= given["first_k_dense_replace"] for layer in layers_of(given)]


AFTER_DENSE = Placement(
    _after_the_first, lambda sparse: {"first_k_dense_replace": sparse.index(True)}
)
"""All layers but the first ones (DeepSeek)."""


def _by_step(given: Fields) -> Sparse:
    step, dense = given["decoder_sparse_step"], given.get("mlp_only_layers") or []
    return [layer not in dense and (layer + 1) % step == 0 for layer in layers_of(given)]


BY_STEP = Placement(
    _by_step,
    lambda sparse: {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [layer for layer, one in enumerate(sparse) if not one],
    },
)
"""Every n-th layer that is not in a list (Qwen)."""


def _in_range(given: Fields) -> Sparse:
    last = given["moe_layer_end_index"]
    last = given["num_hidden_layers"] - 1 if last == -1 else last
    first, interval = given["moe_layer_start_index"], given["moe_layer_interval"]
    return [(layer + 1) % interval == 0 and first <= layer <= last for layer in layers_of(given)]


def _range_fields(sparse: Sparse) -> Fields:
    places = [layer for layer, one in enumerate(sparse) if one]
    interval = places[1] - places[0] if len(places) > 1 else 1
    return {
        "moe_layer_start_index": places[0],
        "moe_layer_end_index": places[-1],
        "moe_layer_interval": interval,
    }


IN_RANGE = Placement(_in_range, _range_fields)
"""Every n-th layer from a first to a last one (ERNIE 4.5)."""


def mixture(
    gate: Aspect,
    placement: Placement = EVERYWHERE,
    *,
    width: str = "moe_intermediate_size",
    experts: str = "num_experts",
    used: str = "num_experts_per_tok",
) -> Aspect:
    """Gated networks in some layers, and mixtures of gated experts in others.

    Args:
        gate: The gate of both.
        placement: Which layers have experts.
        width: The field of an expert's hidden width; other layers have `intermediate_size`.
        experts: The field of the number of experts.
        used: The field of the number of experts per token.
    """
    numbers = same(n_experts=experts, n_experts_per_token=used)

    def read(given: Fields) -> Keys:
        keys, sparse = gate.read(given), placement.read(given)
        if not any(sparse):
            raise UserError("no layer has experts; give the model_type of a family without.")
        dense = keys.pop("ffn_type", None)
        widths = [given[width] if one else given["intermediate_size"] for one in sparse]
        return {
            **keys,
            **numbers.read(given),
            "ffn_type": by_layer(["moe" if one else dense for one in sparse]),
            "ffn_hidden": by_layer(widths),
        }

    def write(config: ModelArchitectureConfig) -> Fields:
        sparse = [layer.ffn_type == "moe" for layer in config.layers]
        if not any(sparse):
            raise UserError("this family needs ffn_type='moe' in at least one layer.")
        widths = {one: layer.ffn_hidden for one, layer in zip(sparse, config.layers, strict=True)}
        dense = widths.get(False, widths[True])
        fields = {"intermediate_size": dense, width: widths[True], **placement.write(sparse)}
        return gate.write(config) | numbers.write(config) | fields

    return Aspect(read, write)


NO_GATE = Aspect(lambda given: {}, lambda config: {})
"""For families that say nothing of the gate."""

# Routing

NORMALIZED = Aspect(
    lambda given: {"router_renormalize": bool(given["norm_topk_prob"])},
    lambda config: {"norm_topk_prob": value_of(config, "router_renormalize")},
)
SCALED = Aspect(
    lambda given: {"router_scale": given["routed_scaling_factor"]},
    lambda config: {"routed_scaling_factor": float(value_of(config, "router_scale"))},
)


def _group_fields(config: ModelArchitectureConfig) -> Fields:
    groups = value_of(config, "n_expert_groups") or 1
    experts = value_of(config, "n_experts") or groups
    if experts // groups < 2 and groups > 1:
        raise UserError(
            f"n_expert_groups={groups} of n_experts={experts} have one expert each, but "
            "transformers needs two to score a group; lower n_expert_groups."
        )
    return {"n_group": groups, "topk_group": value_of(config, "n_groups_per_token")}


GROUPS = Aspect(
    lambda given: {"n_expert_groups": given["n_group"], "n_groups_per_token": given["topk_group"]},
    _group_fields,
)
"""DeepSeek-V3's groups of experts, scored by their two best ones."""


def _method_keys(given: Fields) -> Keys:
    if given["topk_method"] not in ("greedy", "group_limited_greedy"):
        raise UserError(
            f"topk_method={given['topk_method']!r} cannot be expressed here; only 'greedy' or "
            "'group_limited_greedy' can."
        )
    if given["topk_method"] == "greedy" or given["n_group"] == given["topk_group"]:
        return {"n_expert_groups": 1, "n_groups_per_token": 1}
    return {**GROUPS.read(given), "expert_group_score": "max"}


def _method_fields(config: ModelArchitectureConfig) -> Fields:
    groups, used = (value_of(config, key) for key in ("n_expert_groups", "n_groups_per_token"))
    if groups == used:
        return {"topk_method": "greedy", "n_group": 1, "topk_group": 1}
    return {"topk_method": "group_limited_greedy", "n_group": groups, "topk_group": used}


BEST_GROUPS = Aspect(_method_keys, _method_fields)
"""DeepSeek-V2's groups of experts, scored by their best one, or none."""


# Shared experts


def shared_experts(field: str, at_least: int = 0) -> Aspect:
    """The number of shared experts; transformers' classes that always have some cannot have 0."""

    def read(given: Fields) -> Keys:
        if given[field] < at_least:
            raise UserError(
                f"{field}={given[field]} cannot be expressed here; this model_type has at least "
                f"{at_least}."
            )
        return {"n_shared_experts": given[field]}

    return Aspect(read, lambda config: {field: value_of(config, "n_shared_experts")})


def _shared_of_width(given: Fields) -> Keys:
    width, expert = given["shared_expert_intermediate_size"], given["moe_intermediate_size"]
    if width < 1 or width % expert:
        raise UserError(
            f"shared_expert_intermediate_size={width} cannot be expressed here: it must be a "
            f"multiple of moe_intermediate_size={expert}."
        )
    return {"n_shared_experts": width // expert, "shared_expert_gate": True}


def _width_of_shared(config: ModelArchitectureConfig) -> Fields:
    layers = [layer for layer in config.kinds if layer.get("n_shared_experts")]
    width = layers[0].n_shared_experts * layers[0].ffn_hidden if layers else 0
    return {"shared_expert_intermediate_size": width}


SHARED_OF_WIDTH = Aspect(_shared_of_width, _width_of_shared)
"""Qwen's gated shared expert, whose width is that of several experts."""
