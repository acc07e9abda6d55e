"""The manifest of a sweep: `sweep.json` in its folder describes every run there.

Comparisons read it to find out which runs the verdict is based on, which arm is the baseline, and
which recipe keys are part of an arm. The sweep itself reads it to avoid mixing two experiments.
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
        {"at_edge": flag},  # earlier versions wrote it here
    ),
    lambda tuning: len(tuning["tried"]) == len(tuning["losses"]),
    " does not have as many losses as tried values",
)


def _fitted(arm: Mapping[str, Any]) -> Any:
    """The value fitted to the tuning curve of an arm, as text."""
    return (arm["tuned"] or {}).get(arm["tuning"]["key"])


_ARM = that(
    record(
        {"name": text(LONGEST_TEXT), "tuned": nullable(record({}, others=_TEXT))},
        {"tuning": nullable(_TUNING), "allowance": nullable(number(0)), "at_edge": flag},
        others=plain,
    ),
    lambda arm: not arm.get("tuning") or not _POSITIVE(_fitted(arm)),
    " has a tuning curve, but no fitted number",
)
_SCHEDULE = that(
    list_of(record({"n": number(1, whole=True), "alpha": between(0, 1)}), most=_MOST),
    lambda schedule: all(first["n"] < second["n"] for first, second in pairwise(schedule)),
    " has looks whose n does not increase",
)


def _run_folder(value: Any) -> Sequence[str]:
    """Check that a value is `runs/NAME`: a folder two levels below the sweep's folder."""
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
    """A sweep as described by its manifest.

    Attributes:
        folder: The folder of the sweep.
        arms: For each arm, the folders of the runs that the verdict is based on; the baseline is
            first.
        trials: The folders of the tuning runs.
        tuned: The chosen trial of each arm; None if not known yet.
        allowances: By arm, how much lower its loss could be at the best tuned value, in nats per
            token.
        at_edge: Arms with a tuned value at the edge of the tried values.
        studied: Recipe keys that may differ between arms.
        varied: Keys whose values define arms.
        factors: The keys of a factorial design; empty for other designs.
        seeds: Number of seeds per arm.
        seed_order: (seed, data_seed) of the runs, in order.
        schedule: The scheduled looks of a sweep with --until_sure.
        looks: Numbers of seeds after which verdicts were shown.
        margin: Differences up to this many nats per token count as equal.
        declared: Further declarations to show to readers.
        identity: Identifies the sweep; see `Plan.identity`.
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
        """The run directories of all arms."""
        return [run for runs in self.arms.values() for run in runs]

    @property
    def baseline(self) -> tuple[Path, ...]:
        """The run directories of the first arm."""
        return next(iter(self.arms.values()))


def write_manifest(plan: Plan, command: str) -> None:
    """Write the manifest of a sweep, as far as it is known, atomically."""
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
    """The tuning curve of an arm; None if there is none."""
    if tuned.key is None:
        return None
    return {
        "key": tuned.key,
        "tried": list(tuned.tried),
        "losses": list(tuned.losses),
    }


def read_sweep(folder: Path) -> Sweep:
    """Read the sweep in a folder.

    Raises:
        UserError: If its manifest is missing, damaged, invalid, or has another version.
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
        return (f" has schema_version {told(version)}, but this code reads {SCHEMA_VERSION}",)
    return _MANIFEST(manifest)


def refuse_another(found: Sweep, identity: Mapping[str, Any]) -> None:
    """Raise UserError if a folder contains a different sweep; the message names the differences."""
    wanted = json.loads(json.dumps(json_safe(identity)))
    if "source" not in found.identity:  # written before the code was part of the identity
        del wanted["source"]
    differences = list(_differences(found.identity, wanted))
    if differences:
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"{found.folder} contains another sweep: {'; '.join(differences[:3])}{more}. Choose "
            "another --name, or undo the difference to continue that sweep."
        )


def begun_with_other_code(folder: Path, identity: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note for each sweep next to a new one that differs only in the code of plugins."""
    wanted = json.loads(json.dumps(json_safe(identity)))
    for path in sorted(folder.parent.glob(f"*/{SWEEP_FILE}")):
        try:
            found = read_sweep(path.parent)
        except UserError:  # reported when that sweep is used
            continue
        differences = _differences(found.identity, wanted)
        if differences and all(f": {SOURCE_OF}" in one for one in differences):
            yield (
                f"Note: {found.folder} contains the same sweep with different code: "
                f"{differences[0]}. Its runs are not used here; to continue it, undo the change "
                "and repeat the command."
            )


_UNSAID = "the default"  # identities omit defaults


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
    if found == wanted:
        return []
    return [f"{path} is {_shown(found)} there and {_shown(wanted)} here"]


def _shown(value: Any) -> str:
    return "none" if value is None else f"{str(value):.40}"
