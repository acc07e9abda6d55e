"""What a command line asks of the cloud, beside what it asks of train.py or sweep.py."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator, Sequence

from errors import ConfigError, Problem, quoted
from training.dry_run import MFU

IMAGE = "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404"
"""The container image; its torch is replaced by that of requirements.txt."""

SETUP = (
    'python3 -m venv --system-site-packages "$NANOARCH_CODE/venv" && '
    '"$NANOARCH_CODE/venv/bin/pip" install --quiet -r requirements.txt'
)
"""What installs the project's needs in the pod, in the folder of its code."""

COMMANDS = ("deploy", "status", "stop", "sweep-orphans", "cost")

DESCRIPTION = """\
Trains on a GPU rented from RunPod, brings the results home, and always removes the pod.

    python -m cloud.runpod_deploy config/arch_llama.py config/run_shakespeare.py \\
        --max_cost=20 --max_hours=4
    python -m cloud.runpod_deploy config/arch_llama.py --vary mixer=... --sweep --dry_run

Config files and --key=value are those of train.py, with --sweep the rest is that of sweep.py.
Other commands: status, stop RUN_NAME, sweep-orphans, cost. docs/cloud.md explains all of it."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a deployment.

    Attributes:
        argv: What train.py or sweep.py is to be called with.
        sweep: Whether it is sweep.py.
        dry_run: Print the plan and stop.
        max_cost: Dollars, of all pods together.
        max_hours: From the start of the command.
        gpus: GPU types to take, as RunPod calls them or a part of that; empty: any.
        gpu_count: GPUs of the pod.
        regions: Data centres to take; empty: any.
        volumes: Data centre -> ID of a network volume there; empty: none.
        community: Rent in the Community Cloud.
        spot: Rent what may be reclaimed.
        max_wait: Seconds to go on looking for a GPU; 0: one round.
        mfu: Model FLOPs utilization that the estimate assumes.
        image: Of the container.
        setup: Command that installs the project's needs in the pod.
        secrets: File of secrets.
    """

    argv: tuple[str, ...]
    sweep: bool = False
    dry_run: bool = False
    max_cost: float = 20.0
    max_hours: float = 4.0
    gpus: tuple[str, ...] = ()
    gpu_count: int = 1
    regions: tuple[str, ...] = ()
    volumes: tuple[tuple[str, str], ...] = ()
    community: bool = False
    spot: bool = False
    max_wait: float = 0.0
    mfu: float = MFU
    image: str = IMAGE
    setup: str = SETUP
    secrets: str = "secrets.env"

    def volume(self, region: str | None) -> str | None:
        """The network volume in a data centre."""
        return dict(self.volumes).get(region or "")


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        prog="python -m cloud.runpod_deploy",
        usage="python -m cloud.runpod_deploy [config.py ...] [--key=value ...] [options]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    text = {
        "max_cost": ("DOLLARS", "hard cap on what all pods cost together (default 20)"),
        "max_hours": ("HOURS", "wall limit, from the start of the command (default 4)"),
        "gpus": ("A,B", "GPU types to take, by a part of RunPod's name (default: any that fits)"),
        "gpu_count": ("N", "GPUs of the pod, which torchrun trains on (default 1)"),
        "regions": ("A,B", "data centres to take (default: any)"),
        "volumes": ("A=ID,B=ID", "network volumes, by data centre; then only these are taken"),
        "max_wait": ("MINUTES", "with --wait: how long to look for a GPU (default 60)"),
        "mfu": ("SHARE", f"model FLOPs utilization that estimates assume (default {MFU})"),
        "image": ("NAME", f"container image (default {IMAGE})"),
        "setup": (
            "COMMAND",
            "installs what the code needs, in the pod (default: a virtual "
            "environment and pip install -r requirements.txt)",
        ),
        "secrets": ("FILE", "file of NAME=value lines (default secrets.env)"),
    }
    flags.add_argument("--sweep", action="store_true", help="run sweep.py with the rest")
    flags.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    flags.add_argument("--community", action="store_true", help="rent in the Community Cloud")
    flags.add_argument("--spot", action="store_true", help="rent what may be reclaimed")
    flags.add_argument("--wait", action="store_true", help="go on looking until there is a GPU")
    for name, (metavar, told) in text.items():
        flags.add_argument(f"--{name}", metavar=metavar, help=told)
    return flags


def read_request(argv: Sequence[str]) -> Request:
    """The request of a command line; ConfigError with every problem of the cloud's options."""
    given, rest = parser().parse_known_args(list(argv))
    problems = list(_problems(given))
    if problems:
        raise ConfigError(problems)
    defaults = Request(argv=())
    wait = float(given.max_wait or 60) if given.wait else 0.0
    return Request(
        argv=tuple(rest),
        sweep=given.sweep,
        dry_run=given.dry_run,
        max_cost=float(given.max_cost or defaults.max_cost),
        max_hours=float(given.max_hours or defaults.max_hours),
        gpus=_words(given.gpus),
        gpu_count=int(given.gpu_count or defaults.gpu_count),
        regions=_words(given.regions),
        volumes=tuple(tuple(pair.split("=")) for pair in _words(given.volumes)),
        community=given.community,
        spot=given.spot,
        max_wait=60 * wait,
        mfu=float(given.mfu or defaults.mfu),
        image=given.image or defaults.image,
        setup=given.setup or defaults.setup,
        secrets=given.secrets or defaults.secrets,
    )


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def _problems(given: argparse.Namespace) -> Iterator[Problem]:
    for name, most, whole in (
        ("max_cost", 1e5, False),
        ("max_hours", 1e4, False),
        ("gpu_count", 8, True),
        ("max_wait", 1e6, False),
        ("mfu", 1, False),
    ):
        text = getattr(given, name)
        if text is not None and not _is_between(text, most, whole=whole):
            kind = "a whole number" if whole else "a number"
            yield _problem(name, text, f"must be {kind} above 0 and at most {most:,.0f}")
    for name, pattern, meant in (
        ("gpus", r"[\w. ,()/-]+", "names of GPU types, separated by commas"),
        ("regions", r"[\w,-]+", "names of data centres, separated by commas"),
        ("volumes", r"[\w-]+=\w+(,[\w-]+=\w+)*", "DATA_CENTRE=ID, separated by commas"),
        ("image", r"[\w./:@-]+", "the name of a container image"),
    ):
        text = getattr(given, name)
        if text is not None and not re.fullmatch(pattern, text):
            yield _problem(name, text, f"must be {meant}")
    if given.max_wait is not None and not given.wait:
        yield _problem("max_wait", given.max_wait, "has no effect without --wait; add it")
    if given.community and given.volumes:
        yield _problem(
            "volumes", given.volumes, "cannot be with --community, which has no network volumes"
        )
    if given.community and given.regions:
        yield _problem(
            "regions", given.regions, "cannot be with --community, whose place RunPod chooses"
        )
    outside = set(_words(given.regions)) - {pair.split("=")[0] for pair in _words(given.volumes)}
    if given.regions and given.volumes and outside:
        yield _problem("regions", given.regions, f"has no volume in {', '.join(sorted(outside))}")


def _problem(name: str, text: str, what: str) -> Problem:
    return Problem((name,), f"--{name}={quoted(text)} {what}.")


def _is_between(text: str, most: float, *, whole: bool) -> bool:
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        return False
    return 0 < number <= most
