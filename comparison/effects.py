"""Factorial designs: main effects of the factors, and their two-way interactions.

Effects are contrasts of group means (Box, Hunter and Hunter, "Statistics for Experimenters"), with
each level compared to that of the baseline. A main effect is averaged over all levels of the other
factors; an interaction is the deviation of the joint effect of two changes from their sum.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from math import prod
from typing import Any

from comparison.groups import Group
from inference.contrasts import Contrast, Term, judge_contrast
from inference.rules import DeclaredSeeds, Rule


@dataclasses.dataclass(frozen=True)
class Effect:
    """A main effect (one change) or an interaction (two) on the final loss, nats per token.

    Attributes:
        changes: The level of each of its factors, such as `ffn_type=swiglu`.
        contrast: The effect; its interval is simultaneous over all effects of the design.
    """

    changes: tuple[str, ...]
    contrast: Contrast


Levels = dict[str, Any]


def factors_of(groups: Sequence[Group], named: Sequence[str] = ()) -> dict[str, list[Any]]:
    """The keys that span a full factorial design with their levels, the baseline's level first.

    Empty unless the groups form a full factorial of at least two factors.

    Args:
        groups: The groups, the baseline first.
        named: The factors. If empty, the model keys that differ and are not derived from others, as
            a width is derived from the FFN type.
    """
    keys = named or dict.fromkeys(key for group in groups for key in group.model_keys)
    levels = {key: _distinct(group.config.get(key) for group in groups) for key in keys}
    levels = {key: values for key, values in levels.items() if len(values) > 1}
    levels = levels if named else _independent(groups, levels)
    cells = {_cell(group, list(levels)) for group in groups}
    full = prod(map(len, levels.values())) == len(groups) == len(cells)
    return levels if full and len(levels) > 1 else {}


def _independent(groups: Sequence[Group], levels: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """A minimal set of keys that distinguishes the groups.

    Keys are removed while the others still distinguish them. Keys derived from several factors have
    the most values, and of keys that change together the derived one has the longer name (bias,
    attention_bias), so those are removed first.
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


def effects(
    groups: Sequence[Group],
    named: Sequence[str] = (),
    allowance: Callable[[Group], float] = lambda _: 0.0,
    rule_for: Callable[[int], Rule] = DeclaredSeeds,
) -> list[Effect]:
    """Main effects, then two-way interactions; empty unless the groups form a full factorial.

    Args:
        groups: The comparable groups, the baseline first.
        named: The factors if known; see `factors_of`.
        allowance: How much lower the losses of a group could be at its best learning rate.
        rule_for: Returns the rule for intervals that are simultaneous over a number of effects.
    """
    factors = factors_of(groups, named)
    found: list[tuple[Levels, list[Term]]] = []
    for order in (1, 2):
        for keys in combinations(factors, order):
            for levels in product(*(factors[key][1:] for key in keys)):
                change = dict(zip(keys, levels, strict=True))
                found.append((change, _terms(groups, factors, change, allowance)))
    if not found:
        return []
    rule = rule_for(len(found))
    judged = [judge_contrast(terms, rule) for _, terms in found]
    if None in judged:
        return []
    return [
        Effect(tuple(f"{key}={level}" for key, level in change.items()), contrast)
        for (change, _), contrast in zip(found, judged, strict=True)
    ]


def _terms(
    groups: Sequence[Group],
    factors: dict[str, list[Any]],
    change: Levels,
    allowance: Callable[[Group], float],
) -> list[Term]:
    """The terms of the effect of a change of one factor, or of the interaction of two."""
    others = prod(len(levels) for key, levels in factors.items() if key not in change)
    signs = [_sign(group.config.get, factors, change) for group in groups]
    return [
        Term(sign / others, group.losses, allowance(group))
        for sign, group in zip(signs, groups, strict=True)
        if sign
    ]


def _sign(level_of: Callable[[str], Any], factors: dict[str, list[Any]], change: Levels) -> int:
    """+1 for an even number of baseline levels among the changed factors, -1 for an odd number, 0
    for a group in which one of them has a third level."""
    sign = 1
    for key, level in change.items():
        if level_of(key) == factors[key][0]:
            sign = -sign
        elif level_of(key) != level:
            return 0
    return sign
