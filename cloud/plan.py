"""The GPUs that can do the work, ordered by cost."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

import torch

from cloud.request import IMAGE, Request
from cloud.runpod_types import Offer
from cloud.work import Work
from errors import UserError
from training.dry_run import Needs, dtype_on_gpu, needs_on_gpus
from training.hardware import peak_of_gpu
from training_logger import format_bytes, format_flops

START_SECONDS = 600.0
"""Assumed seconds before a pod trains: image, installation, smoke test."""

UNKNOWN = "peak speed unknown"

SPARE_MEMORY = 0.9
"""Maximum fraction of a GPU's memory that a run may be estimated to need."""

MOST_SHOWN = 30
"""Maximum number of candidates listed in the plan, and of excluded GPU types with reasons."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An offer with its estimate.

    Attributes:
        offer: GPU, place and price.
        memory: Bytes that a worker needs; None if unknown.
        hours: Hours until the end of the run, including the start.
        dtype: The dtype of matmuls on that GPU.
    """

    offer: Offer
    memory: int | None
    hours: float
    dtype: torch.dtype

    @property
    def dollars(self) -> float:
        return self.hours * self.offer.price


class Estimates:
    """Time and memory of the work on a GPU."""

    def __init__(self, work: Work, request: Request):
        self._work, self._request = work, request
        self._needs: dict[torch.dtype, Needs] = {}

    def candidate(self, offer: Offer) -> Candidate | str:
        """The offer with its estimate, or why it is not a candidate."""
        if offer.gpu.startswith("AMD") and self._request.image == IMAGE:
            return "needs an image and a setup for ROCm (--image, --setup)"
        training = self._work.settings.training
        name = re.sub(r" OAM$", "", offer.gpu) if offer.gpu.startswith("AMD") else offer.gpu
        dtype = dtype_on_gpu(training, name)
        peak = peak_of_gpu(name, dtype, training.tf32)
        if peak is None:
            return UNKNOWN
        needs = self._needs_in(dtype)
        if needs.memory is not None and needs.memory > SPARE_MEMORY * offer.memory:
            return f"too small: {format_bytes(needs.memory)} of {format_bytes(offer.memory)}"
        hours = self._hours(needs, peak) + START_SECONDS / 3600
        return Candidate(offer, needs.memory, hours, dtype)

    def _hours(self, needs: Needs, peak: float) -> float:
        """Runs are done in rounds of as many as fit on the GPUs."""
        work = self._work
        rounds = math.ceil(work.runs / work.runs_at_a_time)
        by_clock = math.inf
        if work.minutes is not None:
            by_clock = work.minutes / 60 * rounds / work.runs
        if work.flops is None and work.runs > 1:
            return by_clock
        flops = needs.flops if work.flops is None else work.flops / work.runs
        by_speed = rounds * Needs(flops, None).hours(peak, work.gpus_per_run, self._request.mfu)
        return min(by_speed, by_clock)

    def _needs_in(self, dtype: torch.dtype) -> Needs:
        if dtype not in self._needs:
            self._needs[dtype] = needs_on_gpus(self._work.settings, self._work.gpus_per_run, dtype)
        return self._needs[dtype]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The candidates in the order in which they are tried, and the other offers with the reason."""

    candidates: tuple[Candidate, ...]
    left_out: tuple[tuple[Offer, str], ...]


def choose(offers: Sequence[Offer], request: Request, estimates: Estimates) -> Choice:
    """The candidates by dollars per run, then by hours."""
    found: list[Candidate] = []
    left_out: list[tuple[Offer, str]] = []
    for offer in offers:
        if not _is_asked_for(offer, request):
            continue
        candidate = estimates.candidate(offer)
        if isinstance(candidate, str):
            left_out.append((offer, candidate))
        elif candidate.dollars > request.max_cost:
            left_out.append((offer, f"${candidate.dollars:.2f} is above --max_cost"))
        elif candidate.hours > request.max_hours:
            left_out.append((offer, f"{candidate.hours:.1f} h is above --max_hours"))
        else:
            found.append(candidate)
    found.sort(key=lambda candidate: (candidate.dollars, candidate.hours, candidate.offer.gpu))
    return Choice(tuple(found), tuple(left_out))


def _is_asked_for(offer: Offer, request: Request) -> bool:
    if request.gpus and not any(_matches(gpu, offer.gpu) for gpu in request.gpus):
        return False
    if request.regions and offer.region not in request.regions:
        return False
    return not request.volumes or request.volume(offer.region) is not None


def _matches(asked: str, gpu: str) -> bool:
    """Whether all words of `asked` are words of a GPU's name: L4 does not match L40."""
    return set(_name_words(asked)) <= set(_name_words(gpu))


def _name_words(name: str) -> list[str]:
    return re.findall(r"[a-z]+\d*\w*|\d+\w*", name.lower())


def refuse_if_none(choice: Choice, request: Request) -> None:
    """Raise UserError if there is no candidate, with the nearest miss."""
    if choice.candidates:
        return
    if not choice.left_out:
        asked = [f"--{name}" for name in ("gpus", "regions", "volumes") if getattr(request, name)]
        where = f" for {', '.join(asked)}" if asked else ""
        raise UserError(f"RunPod offers no GPU now{where}; try --wait, or ask for less.")
    offer, reason = min(choice.left_out, key=lambda item: (item[1] == UNKNOWN, item[0].price))
    raise UserError(
        f"no GPU on offer fits: {len(choice.left_out)} left out, such as {offer.gpu} at "
        f"${offer.price:.2f}/h ({reason}); raise --max_cost or --max_hours, or train less."
    )


# The plan in words


def plan_lines(work: Work, request: Request, choice: Choice) -> Iterator[str]:
    """Yield the lines of the plan."""
    yield f"Plan: {work.name}"
    yield f"  code       {work.note}"
    data = work.contents.dataset
    sent = f"sends {format_bytes(work.contents.data_bytes)}" if data else "prepared in the pod"
    yield f"  data       {work.settings.training.dataset}: {sent}"
    if work.contents.carried:
        yield f"  resumes    {', '.join(str(path) for path in work.contents.carried.values())}"
    runs = f"{work.runs} runs, {work.runs_at_a_time} at a time, " if work.runs > 1 else ""
    if work.flops is not None:
        yield f"  work       {runs}{format_flops(work.flops)}"
    elif work.runs > 1 and work.minutes is not None:
        yield f"  work       {runs}{work.minutes:g} minutes of training"
    yield f"  limits     ${request.max_cost:.2f}, {request.max_hours:g} h"
    yield f"  disk       {work.disk_gb if request.disk is None else request.disk} GB"
    yield f"  results    {work.target}"
    yield (
        f"Estimates assume {100 * request.mfu:g} % MFU and {START_SECONDS / 60:g} minutes to "
        "start; validation is not included:"
    )
    yield from _table(choice, request)
    yield from _left_out(choice)


def _left_out(choice: Choice) -> Iterator[str]:
    """Yield why GPU types are excluded, each reason once."""
    places: dict[tuple[str, str], list[Offer]] = {}
    for offer, reason in choice.left_out:
        places.setdefault((offer.gpu, reason), []).append(offer)
    for (gpu, reason), offers in list(places.items())[:MOST_SHOWN]:
        where = offers[0].where if len(offers) == 1 else f"{gpu} in {len(offers)} places"
        yield f"  left out: {where}: {reason}"
    if len(places) > MOST_SHOWN:
        yield f"  left out: {len(places) - MOST_SHOWN} more"


def _table(choice: Choice, request: Request) -> Iterator[str]:
    head = ("GPU", "place", "stock", "$/h", "memory", "needs", "hours", "dollars")
    rows = [
        (
            f"{request.gpu_count} x {candidate.offer.gpu}",
            candidate.offer.region or "Community Cloud",
            candidate.offer.stock,
            f"{candidate.offer.price:.2f}",
            format_bytes(candidate.offer.memory),
            "unknown" if candidate.memory is None else format_bytes(candidate.memory),
            f"{candidate.hours:.2f}",
            f"{candidate.dollars:.2f}",
        )
        for candidate in choice.candidates[:MOST_SHOWN]
    ]
    if not rows:
        return
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        cells = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        yield ("  " + "  ".join(cells)).rstrip()
    if len(choice.candidates) > MOST_SHOWN:
        yield f"  and {len(choice.candidates) - MOST_SHOWN} more, which cost more"
