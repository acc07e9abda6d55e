"""Sweeps of tiny models, planned and not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment.arms import Arm, ArmMaker
from experiment.plan import Plan, make_plan
from experiment.request import Request
from tests.tiny_data import tiny_run_flags

LONGER = {"n_embd": "32", "max_iters": "100", "warmup_iters": "5"}
"""A model whose width can be fitted, for steps of which one is a hundredth."""


def tiny_flags(dataset: Path, /, **changes: str | None) -> dict[str, str]:
    """Keys for every arm, as flags spell them; without those that are changed to None."""
    pairs = (flag.removeprefix("--").split("=", 1) for flag in tiny_run_flags(dataset))
    flags = {**dict(pairs), **LONGER, **changes}
    return {key: text for key, text in flags.items() if text is not None}


def tiny_request(
    dataset: Path,
    flags: Mapping[str, str | None] | None = None,
    files: Sequence[Path] = (),
    arms: Sequence[Path] = (),
    **asked: Any,
) -> Request:
    """A request for tiny models; `flags` are added to theirs. A budget decides their length."""
    length = dict.fromkeys(("max_iters", "warmup_iters")) if asked.get("budget") else {}
    return Request(
        files=tuple(map(str, files)),
        flags=tiny_flags(dataset, **{**length, **(flags or {})}),
        arms=tuple(map(str, arms)),
        **asked,
    )


def tiny_arms(dataset: Path, **asked: Any) -> list[Arm]:
    return ArmMaker(tiny_request(dataset, **asked)).equal_arms()


def tiny_plan(dataset: Path, directory: Path, **asked: Any) -> Plan:
    return make_plan(tiny_request(dataset, **asked), directory)


def config_file(folder: Path, name: str, **keys: Any) -> Path:
    """A config file that sets some keys."""
    path = folder / f"{name}.py"
    path.write_text("".join(f"{key} = {value!r}\n" for key, value in keys.items()))
    return path
