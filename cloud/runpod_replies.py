"""Checked data from RunPod's replies. A reply of another form raises Transient."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cloud.failures import NoCapacity, Transient
from cloud.runpod_types import Account, NetworkVolume, Offer, Pod
from errors import printable

LARGEST = 10**12
"""Upper bound of the numbers accepted from RunPod."""


def account(data: Any) -> Account:
    """Of `{"myself": {...}}`."""
    myself = _part(data, "myself", dict)
    return Account(_number(myself, "clientBalance"), _number(myself, "currentSpendPerHr"))


def regions(data: Any) -> list[str]:
    """The data centers of `{"dataCenters": [{"id": ...}]}`."""
    centers = _part(data, "dataCenters", list)
    names = (center.get("id") for center in centers if isinstance(center, dict))
    return [name for name in names if is_word(name)]


def volumes(user: Any) -> list[NetworkVolume]:
    """The network volumes of a user."""
    found = _part(user, "networkVolumes", list)
    return [
        NetworkVolume(item["id"], item["dataCenterId"])
        for item in found
        if isinstance(item, dict) and is_word(item.get("id")) and is_word(item.get("dataCenterId"))
    ]


def offers(
    data: Any, places: Sequence[str | None], price_field: str, gpu_count: int
) -> list[Offer]:
    """The offers of `{"gpuTypes": [...]}`; without a price there is no offer.

    Args:
        data: The reply; each GPU type has a field `at0`, `at1`, ... for each place.
        places: Data centers in that order.
        price_field: The field with the price of one GPU.
        gpu_count: GPUs of the pod.
    """
    return [
        Offer(kind["id"], place, int(memory * 10**9), gpu_count * _bid_step(price), _stock(lowest))
        for kind in _part(data, "gpuTypes", list)
        if isinstance(kind, dict) and _is_name(kind.get("id"))
        if (memory := _positive(kind.get("memoryInGb")))
        for index, place in enumerate(places)
        if isinstance(lowest := kind.get(f"at{index}"), dict)
        and (price := _positive(lowest.get(price_field)))
    ]


def pods(found: Any) -> list[Pod]:
    """All pods of the account."""
    if not isinstance(found, list):
        raise Transient("the reply has no list of pods")
    return [_pod(item) for item in found]


def is_pod(found: Any) -> bool:
    """Whether a reply to a question for one pod has it."""
    return isinstance(found, dict) and bool(found.get("id"))


def created(found: Any) -> str:
    """The ID of a pod that was created.

    Raises:
        NoCapacity: The reply is null.
        Transient: The reply has no ID; there may be a pod.
    """
    if found is None:
        raise NoCapacity("the reply is empty")
    if not isinstance(found, dict) or not is_word(found.get("id")):
        raise Transient("the reply to a creation has no pod ID")
    return str(found["id"])


def is_word(value: Any) -> bool:
    """Whether a value can be put into a query or an address as it is."""
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_.-]+", value) is not None


def _pod(item: Any) -> Pod:
    if not isinstance(item, dict) or not is_word(item.get("id")):
        raise Transient("the list of pods has an entry without an ID")
    machine = item.get("machine")
    gpu = machine.get("gpuDisplayName") if isinstance(machine, dict) else ""
    return Pod(
        id=item["id"],
        name=printable(str(item.get("name") or "")),
        state=printable(str(item.get("desiredStatus") or "unknown"))[:20],
        cost_per_hour=_positive(item.get("costPerHr")),
        uptime=_positive(item.get("uptimeSeconds")) or 0.0,
        gpu=printable(str(gpu or ""))[:40],
    )


def _part(data: Any, name: str, kind: type) -> Any:
    found = data.get(name) if isinstance(data, dict) else None
    if not isinstance(found, kind):
        raise Transient(f"the reply has no {name}")
    return found


def _number(data: Mapping[str, Any], name: str) -> float:
    value = _finite(data.get(name))
    if value is None:
        raise Transient(f"the reply has no number {name}")
    return value


def _positive(value: Any) -> float | None:
    """A finite number above 0, else None."""
    number = _finite(value)
    return number if number is not None and number > 0 else None


def _finite(value: Any) -> float | None:
    """A finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < LARGEST else None  # False for NaN


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_. ()/-]+", value) is not None


def _bid_step(price: float) -> float:
    """A price rounded up to a tenth of a cent, the step of bids."""
    return math.ceil(round(1000 * price, 6)) / 1000


def _stock(lowest: Mapping[str, Any]) -> str:
    return printable(str(lowest.get("stockStatus") or "unknown"))[:20]
