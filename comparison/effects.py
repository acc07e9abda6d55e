"""A factorial design: what each factor does on average, and which factors do not simply add up.

Effects are contrasts of group means (Box, Hunter and Hunter, "Statistics for Experimenters"), each
level against that of the baseline. A main effect is averaged over all levels of the other factors;
an interaction is how far two changes together depart from the sum of both.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from math import prod
from typing import Any

from comparison.groups import Group
from inference.differences import contrast
from inference.estimates import Estimate
from inference.rules import DeclaredSeeds


@dataclasses.dataclass(frozen=True)
class Effect:
    """A main effect (one change) or an interaction (two) on the final loss, nats per token.

    Attributes:
        changes: Of each factor in it, its level, such as `ffn_type=swiglu`.
        estimate: The effect.
        interval: Simultaneous with those of all effects of the design.
        p_adjusted: p value of no effect, adjusted for the number of effects.
    """

    changes: tuple[str, ...]
    estimate: Estimate
    interval: tuple[float, float]
    p_adjusted: float

    @property
    def shown(self) -> bool:
        """Whether the interval excludes 0."""
        low, high = self.interval
        return low > 0 or high < 0


Levels = dict[str, Any]


def factors_of(groups: Sequence[Group], named: Sequence[str] = ()) -> dict[str, list[Any]]:
    """The keys that span a full factorial design and their levels, the baseline's first.

    Empty where the groups are no full factorial of at least two factors.

    Args:
        groups: The baseline first.
        named: The factors; where there are none, those keys of the model that differ and do not
            follow from others, as a width follows from a network.
    """
    keys = named or dict.fromkeys(key for group in groups for key in group.model_keys)
    levels = {key: _distinct(group.config.get(key) for group in groups) for key in keys}
    levels = {key: values for key, values in levels.items() if len(values) > 1}
    levels = levels if named else _independent(groups, levels)
    cells = {_cell(group, list(levels)) for group in groups}
    full = prod(map(len, levels.values())) == len(groups) == len(cells)
    return levels if full and len(levels) > 1 else {}


def _independent(groups: Sequence[Group], levels: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The keys that are enough to tell the groups apart.

    What follows from several factors has the most values, and of keys that change together the
    derived one has the longer name (bias, attention_bias): those are tried first.
    """
    left = dict(levels)
    for key in sorted(levels, key=lambda key: (len(levels[key]), len(key)), reverse=True):
        rest = [other for other in left if other != key]
        if len({_cell(group, rest) for group in groups}) == len(groups):
            del left[key]
    return left


def _distinct(values: Iterator[Any]) -> list[Any]:
    """Each value once, in order; values may be lists."""
    return list({json.dumps(value): value for value in values}.values())


def _cell(group: Group, keys: Sequence[str]) -> str:
    return json.dumps([group.config.get(key) for key in keys])


def effects(groups: Sequence[Group], named: Sequence[str] = ()) -> list[Effect]:
    """Main effects, then two-way interactions; none where the groups are no full factorial.

    Args:
        groups: Comparable ones, the baseline first.
        named: The factors, where they are known; see `factors_of`.
    """
    factors = factors_of(groups, named)
    found = []
    for order in (1, 2):
        for keys in combinations(factors, order):
            for levels in product(*(factors[key][1:] for key in keys)):
                change = dict(zip(keys, levels, strict=True))
                found.append((change, _estimate(groups, factors, change)))
    if not found or any(estimate is None for _, estimate in found):
        return []
    rule = DeclaredSeeds(len(found))
    return [_effect(change, estimate, rule) for change, estimate in found]


def _effect(change: Levels, estimate: Estimate, rule: DeclaredSeeds) -> Effect:
    half = rule.half_width(estimate)
    return Effect(
        tuple(f"{key}={level}" for key, level in change.items()),
        estimate,
        (estimate.value - half, estimate.value + half),
        rule.p_adjusted(estimate),
    )


def _estimate(
    groups: Sequence[Group], factors: dict[str, list[Any]], change: Levels
) -> Estimate | None:
    """The effect of a change of one factor, or the interaction of two."""
    others = prod(len(levels) for key, levels in factors.items() if key not in change)
    weights = [_sign(group.config.get, factors, change) / others for group in groups]
    used = [(w, group.losses) for w, group in zip(weights, groups, strict=True) if w]
    return contrast([w for w, _ in used], [losses for _, losses in used])


def _sign(level_of: Callable[[str], Any], factors: dict[str, list[Any]], change: Levels) -> int:
    """+1 at an even number of baseline levels among the changed factors, -1 at an odd one, 0 for
    a group that has neither level of one of them."""
    sign = 1
    for key, level in change.items():
        if level_of(key) == factors[key][0]:
            sign = -sign
        elif level_of(key) != level:
            return 0
    return sign
