"""Which GPUs can do the work, in order of what it would cost on them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence

import torch

from cloud.request import Request
from cloud.runpod_api import Offer
from cloud.work import Work
from errors import UserError
from training.dry_run import Needs, dtype_on_gpu, needs_on_gpus
from training.hardware import peak_of_gpu
from training_logger import format_bytes, format_flops

START_SECONDS = 600.0
"""That a pod is assumed to need before it trains: image, installation, smoke test."""

UNKNOWN = "peak speed not known"

SPARE_MEMORY = 0.9
"""The share of a GPU's memory that a run may be expected to need."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An offer, and what the work would take there; None where that is not known."""

    offer: Offer
    memory: int | None
    hours: float

    @property
    def dollars(self) -> float:
        return self.hours * self.offer.price


class Estimates:
    """What the work takes on a GPU of some name."""

    def __init__(self, work: Work, request: Request):
        self._work, self._request = work, request
        self._needs: dict[torch.dtype, Needs] = {}

    def candidate(self, offer: Offer) -> Candidate | str:
        """The offer with its estimate, or why it is no candidate."""
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
        return Candidate(offer, needs.memory, hours)

    def _hours(self, needs: Needs, peak: float) -> float:
        work, count = self._work, self._request.gpu_count
        flops = needs.flops if work.flops is None else work.flops
        by_speed = Needs(flops, None).hours(peak, count, self._request.mfu)
        if work.minutes is None:
            return by_speed
        by_clock = work.minutes / 60 / (count if self._request.sweep else 1)
        return by_clock if self._request.sweep else min(by_speed, by_clock)

    def _needs_in(self, dtype: torch.dtype) -> Needs:
        if dtype not in self._needs:
            workers = 1 if self._request.sweep else self._request.gpu_count
            self._needs[dtype] = needs_on_gpus(self._work.settings, workers, dtype)
        return self._needs[dtype]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The candidates in the order in which they are tried, and the others with the reason."""

    candidates: tuple[Candidate, ...]
    left_out: tuple[tuple[Offer, str], ...]


def choose(offers: Sequence[Offer], request: Request, estimates: Estimates) -> Choice:
    """The candidates by dollars of the run, then by hours."""
    found: list[Candidate] = []
    left_out: list[tuple[Offer, str]] = []
    for offer in offers:
        if not _is_asked(offer, request):
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


def _is_asked(offer: Offer, request: Request) -> bool:
    if request.gpus and not any(_matches(gpu, offer.gpu) for gpu in request.gpus):
        return False
    if request.regions and offer.region not in request.regions:
        return False
    return not request.volumes or request.volume(offer.region) is not None


def _matches(asked: str, gpu: str) -> bool:
    """Whether the words of what is asked are words of a GPU's name: L4 is not L40."""
    return set(_name_words(asked)) <= set(_name_words(gpu))


def _name_words(name: str) -> list[str]:
    return re.findall(r"[a-z]+\d*\w*|\d+\w*", name.lower())


def refuse_if_none(choice: Choice, request: Request) -> None:
    """Raise UserError where nothing can be rented, with the nearest miss."""
    if choice.candidates:
        return
    if not choice.left_out:
        asked = [f"--{name}" for name in ("gpus", "regions", "volumes") if getattr(request, name)]
        where = f" for {', '.join(asked)}" if asked else ""
        raise UserError(f"RunPod offers no GPU now{where}; try --wait, or ask for less.")
    offer, reason = min(choice.left_out, key=lambda item: (item[1] == UNKNOWN, item[0].price))
    raise UserError(
        f"no GPU on offer can do it: {len(choice.left_out)} left out, such as {offer.gpu} at "
        f"${offer.price:.2f}/h ({reason}); raise --max_cost or --max_hours, or train less."
    )


# The plan in words


def plan_lines(work: Work, request: Request, choice: Choice, disk: int) -> Iterator[str]:
    """The plan as a person reads it."""
    yield f"Plan: {work.name}"
    yield f"  code       {work.note}"
    data = work.contents.dataset
    sent = f"{format_bytes(work.contents.data_bytes)} sent" if data else "prepared in the pod"
    yield f"  data       {work.settings.training.dataset}: {sent}"
    if work.contents.carried:
        yield f"  resumes    {', '.join(str(path) for path in work.contents.carried.values())}"
    runs = f"{work.runs} runs, " if work.runs > 1 else ""
    if work.flops is not None:
        yield f"  work       {runs}{format_flops(work.flops)}"
    elif work.runs > 1 and work.minutes is not None:
        yield f"  work       {runs}{work.minutes:g} minutes"
    yield f"  limits     ${request.max_cost:.2f}, {request.max_hours:g} h"
    yield f"  disk       {disk} GB"
    yield f"  results    {work.target}"
    yield (
        f"Estimates at {100 * request.mfu:g} % MFU, {START_SECONDS / 60:g} minutes to start "
        "included, validation not:"
    )
    yield from _table(choice, request)
    for offer, reason in choice.left_out[:10]:
        yield f"  left out: {offer.gpu} in {offer.region or 'any place'}: {reason}"
    if len(choice.left_out) > 10:
        yield f"  left out: {len(choice.left_out) - 10} more"


def _table(choice: Choice, request: Request) -> Iterator[str]:
    head = ("GPU", "place", "stock", "$/h", "memory", "needs", "hours", "$")
    rows = [
        (
            f"{request.gpu_count} x {candidate.offer.gpu}",
            candidate.offer.region or "any",
            candidate.offer.stock,
            f"{candidate.offer.price:.2f}",
            format_bytes(candidate.offer.memory),
            "unknown" if candidate.memory is None else format_bytes(candidate.memory),
            f"{candidate.hours:.2f}",
            f"{candidate.dollars:.2f}",
        )
        for candidate in choice.candidates
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        cells = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        yield ("  " + "  ".join(cells)).rstrip()
