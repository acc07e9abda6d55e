"""Caveats of a verdict: what differs besides the architectures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from comparison.design import Design
from comparison.groups import Group
from comparison.runs import LoggedRun

_MOST_VALUES = 3  # listed in a caveat


def _in_environments(key: str) -> Callable[[LoggedRun], list[Any]]:
    return lambda run: [start.get(key) for start in run.starts]


_FACETS: dict[str, Callable[[LoggedRun], list[Any]]] = {
    "eval_interval": lambda run: [
        own.get("eval_interval", run.config.get("eval_interval"))
        for own in ({}, *run.earlier_configs)
    ],
    "source code": _in_environments("source_sha256"),
    "commit": _in_environments("commit"),
    "uncommitted changes": _in_environments("dirty"),
    "plugins": lambda run: [
        own and json.dumps(own, sort_keys=True) for own in (run.plugins, *run.earlier_plugins)
    ],
    "torch version": _in_environments("torch"),
    "host": _in_environments("host"),
    "device": _in_environments("device"),
    "number of devices": _in_environments("device_count"),
}
"""Functions that return the value of a facet at each start of a run; None if it was not logged."""

_UNKNOWN_DATA = {
    "fingerprint": "no fingerprint of the data in the log: compared by the name of the dataset",
    "val_fingerprint": "no fingerprint of the validation set in the log: compared by eval_tokens",
}
"""The caveat for each key of the data that a log lacks."""

_UNLISTED = ("plugins",)
"""Facets whose values are not meaningful to readers."""


def caveats(group: Group, baseline: Group, design: Design) -> Iterator[str]:
    """Yield the caveats of comparing a group with the baseline, one phrase each.

    They list the facets in which the included runs differ, with the values of both groups; a facet
    that only some runs have logged counts as different. Others concern the tuning, the code and the
    data.
    """
    for name, facet in _FACETS.items():
        own, other = (_told(g, facet) for g in (group, baseline))
        if len(own | other) > 1:
            yield f"{name} differs" + ("" if name in _UNLISTED else _values(own, other))
    for each, whose in ((group, "arm"), (baseline, "baseline")):
        if each.short and (each is group or group is not baseline):
            runs = f"{each.short} of {each.n + each.diverged + each.short} seeds"
            yield f"{runs} of the {whose} have not finished and are excluded"
    yield from _tuning(group, baseline, design)
    unknown = [s for run in group.counted for s in run.starts if not s.get("source_sha256")]
    if unknown:
        edited = any(start.get("dirty") for start in unknown)
        changes = ", and had uncommitted changes, which may differ" if edited else ""
        yield f"no digest of the source code in the log: runs are grouped by commit{changes}"
    for key, caveat in _UNKNOWN_DATA.items():
        if not all(run.data.get(key) for run in (*group.counted, *baseline.counted)):
            yield caveat


def _tuning(group: Group, baseline: Group, design: Design) -> Iterator[str]:
    if group is baseline:
        return
    by_hand = [k for k in design.tuned if group.config.get(k) != baseline.config.get(k)]
    if by_hand:
        yield (
            f"{', '.join(by_hand)} was tuned outside this comparison; the interval includes no "
            "allowance for that"
        )
    allowed = design.allowance(group), design.allowance(baseline)
    if any(allowed):
        yield allowance_caveat(*allowed)
    if max(allowed) > design.margin:
        yield "tune finer: an allowance exceeds the margin"
    for each, whose in ((group, "arm"), (baseline, "baseline")):
        if design.is_at_edge(each):
            yield f"the tuned value of the {whose} is at the edge of the tried values"


_ALLOWANCES = "the interval includes allowances for tuning"


def allowance_caveat(arm: float, baseline: float) -> str:
    """The caveat about the tuning allowances of a difference, in nats per token."""
    return f"{_ALLOWANCES}: {arm:.4f} nats (arm), {baseline:.4f} (baseline)"


def is_allowance(caveat: str) -> bool:
    """Whether a caveat is that of `allowance_caveat`."""
    return caveat.startswith(_ALLOWANCES)


def unlike_code_or_machine(groups: Iterable[Group]) -> Iterator[str]:
    """Yield which of code, plugins, torch version and device differ between the included runs."""
    counted = list(groups)
    for name in ("source code", "plugins", "torch version", "device"):
        if len(set().union(*(_told(group, _FACETS[name]) for group in counted))) > 1:
            yield name


def _told(group: Group, facet: Callable[[LoggedRun], list[Any]]) -> set[str | None]:
    found = [value for run in group.counted for value in facet(run)]
    return {None if value is None else str(value) for value in found}


def _values(own: set[str | None], other: set[str | None]) -> str:
    if own == other:
        return f" between seeds ({_listed(own)})"
    return f" ({_listed(own)} against {_listed(other)})"


def _listed(values: Iterable[str | None]) -> str:
    texts = sorted("unknown" if value is None else f"{value:.12}" for value in values)
    more = len(texts) - _MOST_VALUES
    return ", ".join(texts[:_MOST_VALUES]) + (f" and {more} more" if more > 0 else "")
