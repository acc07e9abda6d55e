"""The record of a sweep: `sweep.json` in its folder says what every run there is.

A comparison reads it: which runs the verdict rests on, which arm is the baseline, which keys of the
recipe are part of an arm. So does the sweep itself, which refuses to mix two experiments.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from comparison.design import Declared, TuningCurve
from comparison.json_checks import (
    LONGEST_NAME,
    LONGEST_TEXT,
    SMALLEST,
    between,
    flag,
    list_of,
    nullable,
    number,
    plain,
    read_checked,
    record,
    spelled,
    text,
    that,
    told,
)
from comparison.runs import SWEEP_FILE
from errors import UserError, printable
from experiment.jobs import SOURCE_OF
from inference.looks import Look
from inference.verdicts import MARGIN
from safe_files import write_atomically
from training.log_files import json_safe

if TYPE_CHECKING:
    from experiment.plan import Plan
    from experiment.tuning import Tuned

SCHEMA_VERSION = 1

_MOST = 1_000_000  # of arms, runs and keys
_TEXT = text()
_POSITIVE = spelled(number(SMALLEST))
_TUNING = that(
    record(
        {
            "key": _TEXT,
            "tried": list_of(_POSITIVE, most=_MOST),
            "losses": list_of(nullable(number()), most=_MOST),
        },
        {"at_edge": flag},  # where earlier versions wrote it
    ),
    lambda tuning: len(tuning["tried"]) == len(tuning["losses"]),
    " has not as many losses as tried values",
)


def _fitted(arm: Mapping[str, Any]) -> Any:
    """The value that was fitted to the curve of an arm which has one, as text."""
    return (arm["tuned"] or {}).get(arm["tuning"]["key"])


_ARM = that(
    record(
        {"name": text(LONGEST_TEXT), "tuned": nullable(record({}, others=_TEXT))},
        {"tuning": nullable(_TUNING), "allowance": nullable(number(0)), "at_edge": flag},
        others=plain,
    ),
    lambda arm: not arm.get("tuning") or not _POSITIVE(_fitted(arm)),
    " has a curve of tuning, but no number that was fitted to it",
)
_SCHEDULE = that(
    list_of(record({"n": number(1, whole=True), "alpha": between(0, 1)}), most=_MOST),
    lambda schedule: all(first["n"] < second["n"] for first, second in pairwise(schedule)),
    " has looks whose n does not rise",
)


def _run_folder(value: Any) -> Sequence[str]:
    """`runs/NAME`: a folder of a folder of the sweep."""
    problems = text(LONGEST_NAME)(value)
    if problems:
        return problems
    parts = PurePosixPath(value).parts
    if len(parts) == 2 and "\0" not in value and not {"/", ".."}.intersection(parts):
        return ()
    return (f" is {told(value)}, not the folder of a run such as runs/NAME",)


_RUN = record({"arm": _TEXT, "folder": _run_folder, "tuning": flag})
_MANIFEST = record(
    {
        "arms": list_of(_ARM, most=_MOST, fewest=1),
        "runs": list_of(_RUN, most=_MOST),
        "studied": list_of(_TEXT, most=_MOST),
        "factors": list_of(_TEXT, most=_MOST),
        "seeds": list_of(list_of(number(0, whole=True), most=2, fewest=2), most=_MOST),
        "identity": record({}, others=plain),
    },
    {
        "command": nullable(_TEXT),
        "match": nullable(_TEXT),
        "budget": nullable(record({"unit": _TEXT, "amount": number(0)})),
        "varied": list_of(_TEXT, most=_MOST),
        "margin": number(0),
        "looks": list_of(number(0, whole=True), most=_MOST),
        "schedule": _SCHEDULE,
    },
)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep as its manifest tells it.

    Attributes:
        folder: Where it lies.
        arms: Of each arm the folders of the runs that the verdict rests on, the baseline's first.
        trials: The folders of the runs that only tuned.
        tuned: Of each arm the trial that was chosen; None where it is not known yet.
        allowances: By arm how far its loss at the best tuned value may lie below that of its runs,
            nats per token.
        at_edge: Arms of which a tuned value is at an end of those that were tried.
        studied: Keys of the recipe that may differ between arms.
        varied: Keys whose values make arms.
        factors: The keys of a factorial design; none of another.
        seeds: How many each arm has.
        seed_order: (seed, data_seed) of its runs, in order.
        schedule: The looks of a sweep that goes on until it is sure.
        looks: Numbers of seeds after which verdicts were shown.
        margin: Differences up to this many nats per token count as equal.
        declared: What else a reader is told of it.
        identity: What makes it this sweep, see `Plan.identity`.
    """

    folder: Path
    arms: Mapping[str, tuple[Path, ...]]
    trials: tuple[Path, ...]
    tuned: Mapping[str, Mapping[str, str] | None]
    allowances: Mapping[str, float]
    at_edge: tuple[str, ...]
    studied: tuple[str, ...]
    varied: tuple[str, ...]
    factors: tuple[str, ...]
    seeds: int
    seed_order: tuple[tuple[int, int], ...]
    schedule: tuple[Look, ...]
    looks: tuple[int, ...]
    margin: float
    declared: Declared
    identity: Mapping[str, Any]

    @property
    def runs(self) -> list[Path]:
        """Those of all arms."""
        return [run for runs in self.arms.values() for run in runs]

    @property
    def baseline(self) -> tuple[Path, ...]:
        """The runs of the first arm."""
        return next(iter(self.arms.values()))


def write_manifest(plan: Plan, command: str) -> None:
    """Write the record of a sweep as far as it is known, whole or not at all."""
    text = json.dumps(json_safe(_manifest(plan, command)), indent=1, allow_nan=False)
    write_atomically(plan.folder / SWEEP_FILE, [text, "\n"])


def _manifest(plan: Plan, command: str) -> dict[str, Any]:
    request, tuned = plan.request, plan.tuned()
    known = plan.allowances(tuned)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": plan.name,
        "command": command,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "design": request.design,
        "varied": list(request.vary),
        "factors": list(request.vary) if request.design == "factorial" else [],
        "match": plan.match,
        "budget": request.budget and dataclasses.asdict(request.budget),
        "studied": plan.studied,
        "seeds": plan.seeds,
        "margin": request.margin,
        "schedule": [dataclasses.asdict(look) for look in plan.schedule],
        "looks": list(plan.looks),
        "tuning": {
            "trials": [
                {name: trial.choice for name, trial in zip(plan.trials, together, strict=True)}
                for together in zip(*plan.trials.values(), strict=True)
            ],
            "seeds": plan.tuning_seeds if plan.trials_each else [],
        },
        "arms": [
            {
                "name": arm.name,
                "solved": arm.solved,
                "parameters": arm.parameters,
                "active_parameters": arm.active_parameters,
                "flops_per_token": arm.flops_per_token,
                "tuned": tuned[arm.name].choice if arm.name in tuned else None,
                "tuning": _tuning(tuned[arm.name]) if arm.name in tuned else None,
                "allowance": known.get(arm.name),
                "at_edge": arm.name in tuned and bool(tuned[arm.name].edges),
                "arguments": [*arm.files, *(f"--{k}={v}" for k, v in arm.flags.items())],
            }
            for arm in plan.arms
        ],
        "runs": [
            {
                "arm": job.arm,
                "folder": job.folder.relative_to(plan.folder).as_posix(),
                "tuning": tuning,
            }
            for tuning, jobs in ((True, plan.tuning_jobs()), (False, plan.final_jobs(tuned)))
            for job in jobs
        ],
        "identity": plan.identity,
    }


def _tuning(tuned: Tuned) -> dict[str, Any] | None:
    """The curve that a value was fitted to; None without one."""
    if tuned.key is None:
        return None
    return {
        "key": tuned.key,
        "tried": list(tuned.tried),
        "losses": list(tuned.losses),
    }


def read_sweep(folder: Path) -> Sweep:
    """The sweep of a folder.

    Raises:
        UserError: its manifest is missing, damaged, of another shape, or of another version.
    """
    manifest = read_checked(folder / SWEEP_FILE, _read, _check, "the manifest of a sweep")
    runs = [run for run in manifest["runs"] if not run["tuning"]]
    arms = {arm["name"]: arm["tuned"] for arm in manifest["arms"]}
    return Sweep(
        folder=folder,
        arms={
            name: tuple(folder / run["folder"] for run in runs if run["arm"] == name)
            for name in arms
        },
        trials=tuple(folder / run["folder"] for run in manifest["runs"] if run["tuning"]),
        tuned=arms,
        allowances={arm["name"]: arm.get("allowance") or 0.0 for arm in manifest["arms"]},
        at_edge=tuple(
            arm["name"]
            for arm in manifest["arms"]
            if arm.get("at_edge", (arm.get("tuning") or {}).get("at_edge"))
        ),
        studied=tuple(manifest["studied"]),
        varied=tuple(manifest.get("varied", ())),
        factors=tuple(manifest["factors"]),
        seeds=len(manifest["seeds"]),
        seed_order=tuple(map(tuple, manifest["seeds"])),
        schedule=tuple(Look(look["n"], look["alpha"]) for look in manifest.get("schedule", ())),
        looks=tuple(manifest.get("looks", ())),
        margin=manifest.get("margin", MARGIN),
        declared=_declared(manifest),
        identity=manifest["identity"],
    )


def _declared(manifest: Mapping[str, Any]) -> Declared:
    budget, match = manifest.get("budget"), manifest.get("match")
    return Declared(
        command=printable(manifest.get("command") or "") or None,
        match=match and printable(match),
        budget=printable(f"{budget['unit']}={budget['amount']:g}") if budget else None,
        curves=tuple(_curves(manifest["arms"])),
    )


def _curves(arms: Sequence[Mapping[str, Any]]) -> Iterator[TuningCurve]:
    for arm in arms:
        tuning = arm.get("tuning")
        if tuning:
            yield TuningCurve(
                arm=printable(arm["name"]),
                key=printable(tuning["key"]),
                tried=tuple(map(float, tuning["tried"])),
                losses=tuple(tuning["losses"]),
                fitted=float(_fitted(arm)),
                allowance=arm.get("allowance") or 0.0,
            )


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _check(manifest: Any) -> Sequence[str]:
    version = manifest.get("schema_version") if isinstance(manifest, dict) else SCHEMA_VERSION
    if version != SCHEMA_VERSION:
        return (f" has schema_version {told(version)}, this code reads {SCHEMA_VERSION}",)
    return _MANIFEST(manifest)


def refuse_another(found: Sweep, identity: Mapping[str, Any]) -> None:
    """Raise UserError where a folder holds another sweep, naming what differs."""
    wanted = json.loads(json.dumps(json_safe(identity)))
    if "source" not in found.identity:  # of before the code was part of it
        del wanted["source"]
    differences = list(_differences(found.identity, wanted))
    if differences:
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"{found.folder} holds another sweep: {'; '.join(differences[:3])}{more}. Choose "
            "another --name, or undo the difference to go on with it."
        )


def begun_with_other_code(folder: Path, identity: Mapping[str, Any]) -> Iterator[str]:
    """A note on each sweep beside a new one's folder that differs in the code of parts alone."""
    wanted = json.loads(json.dumps(json_safe(identity)))
    for path in sorted(folder.parent.glob(f"*/{SWEEP_FILE}")):
        try:
            found = read_sweep(path.parent)
        except UserError:  # it is told where it is asked for
            continue
        differences = _differences(found.identity, wanted)
        if differences and all(f": {SOURCE_OF}" in one for one in differences):
            yield (
                f"Note: {found.folder} holds the same sweep with other code: {differences[0]}. "
                "Its runs are not used here; to go on with it, undo the change and repeat the "
                "command."
            )


_UNSAID = "the default"  # an identity leaves out what has it


def _differences(found: Any, wanted: Any, path: str = "") -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        return [
            difference
            for key in {**found, **wanted}
            for difference in _differences(
                found.get(key, _UNSAID), wanted.get(key, _UNSAID), f"{path}: {key}".lstrip(": ")
            )
        ]
    if isinstance(found, dict) or isinstance(wanted, dict):
        return [f"{path} is only {'here' if found == _UNSAID else 'there'}"]
    return [] if found == wanted else [f"{path} is {_told(found)} there, {_told(wanted)} here"]


def _told(value: Any) -> str:
    return "none" if value is None else f"{str(value):.40}"
