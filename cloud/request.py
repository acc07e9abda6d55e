"""What a command line asks of the cloud, besides what it asks of train.py or sweep.py."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cloud.redaction import SECRETS_FILE
from errors import ConfigError, Problem, quoted
from training.dry_run import MFU

IMAGE = "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404"
"""The container image; its torch is replaced by that of requirements.txt."""

CUDA = ("13.0", "13.1", "13.2", "13.3", "13.4", "13.5")
"""CUDA versions of a machine's driver that the torch of requirements.txt runs on: PyPI's torch
2.13.0 is built for CUDA 13.0, and a driver runs what is built for earlier versions."""

SETUP = (
    'python3 -m venv --system-site-packages "$NANOARCH_CODE/venv" && '
    '"$NANOARCH_CODE/venv/bin/pip" install --quiet -r requirements.txt'
)
"""What installs the project's requirements in the pod."""

COMMANDS = ("deploy", "status", "stop", "sweep-orphans", "cost")

DESCRIPTION = """\
Train on a GPU rented from RunPod, download the results and remove the pod.

    python -m cloud.runpod_deploy config/arch_llama.py config/run_shakespeare.py \\
        --max_cost=20 --max_hours=4
    python -m cloud.runpod_deploy --sweep config/arch_gpt2.py \\
        --vary normalization=layernorm,rmsnorm --seeds=5 --dry_run

Config files and --key=value are those of train.py; with --sweep, those of sweep.py."""

EPILOG = """\
other commands:
  status                show the pods of all deployments and the account's balance
  stop RUN_NAME         save, download and remove the pod of a run
  sweep-orphans [--all] remove pods whose command no longer runs; --all: also
                        those that were not started from this directory
  cost                  show what each deployment cost

exit status:
  0  trained; the results are here
  1  failed; the last line says why
  2  config error
  3  stopped at the cost cap or the time limit
  4  A POD MAY BE LEFT; the last line names it
  128 + n  stopped by signal n

docs/cloud.md explains all of it. Nothing has been run against the live service yet."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a deployment.

    Attributes:
        argv: Arguments of train.py or sweep.py.
        sweep: Whether to run sweep.py.
        dry_run: Whether to print the plan and stop.
        max_cost: Dollars, of all pods together.
        max_hours: Hours from the start of the command.
        gpus: GPU types to use, by words of RunPod's names; empty: any.
        gpu_count: GPUs of the pod.
        regions: Data centers to use; empty: any.
        volumes: Pairs of a data center and the ID of a network volume there; empty: none.
        community: Whether to rent in the Community Cloud.
        spot: Whether to rent a pod that may be reclaimed.
        max_wait: Seconds to keep looking for a GPU; 0: one round.
        mfu: Model FLOPs utilization that estimates assume.
        image: Container image.
        cuda: CUDA versions that the machine's driver may support; empty: any.
        disk: Container disk in GB; None: sized from the plan.
        setup: Command that installs the project's requirements in the pod.
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
    cuda: tuple[str, ...] = CUDA
    disk: int | None = None
    setup: str = SETUP
    secrets: str = SECRETS_FILE

    def volume(self, region: str | None) -> str | None:
        """The network volume in a data center."""
        return dict(self.volumes).get(region or "")


def parser() -> argparse.ArgumentParser:
    """Of the options of the cloud; other arguments are left to train.py or sweep.py."""
    flags = argparse.ArgumentParser(
        prog="python -m cloud.runpod_deploy",
        usage="python -m cloud.runpod_deploy [config.py ...] [--key=value ...] [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_argument("--sweep", action="store_true", help="run sweep.py instead of train.py")
    flags.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    flags.add_argument("--community", action="store_true", help="rent in the Community Cloud")
    flags.add_argument("--spot", action="store_true", help="rent a pod that may be reclaimed")
    flags.add_argument("--wait", action="store_true", help="keep looking until a GPU is available")
    text = {
        "max_cost": ("DOLLARS", "hard cap on the cost of all pods together (default 20)"),
        "max_hours": ("HOURS", "time limit from the start of the command (default 4)"),
        "gpus": ("A,B", "GPU types to use, by words of RunPod's names (default: any that fits)"),
        "gpu_count": ("N", "GPUs of the pod; torchrun trains on several (default 1)"),
        "regions": ("A,B", "data centers to use (default: any)"),
        "volumes": ("A=ID,B=ID", "network volumes by data center; no other data center is used"),
        "max_wait": ("MINUTES", "with --wait: how long to look for a GPU (default 60)"),
        "mfu": ("SHARE", f"model FLOPs utilization that estimates assume (default {MFU})"),
        "image": ("NAME", f"container image (default {IMAGE})"),
        "cuda": (
            "A,B",
            f"CUDA versions of the machine's driver (default {CUDA[0]} to {CUDA[-1]}; any with "
            "--image)",
        ),
        "disk": ("GB", "size of the container disk (default: sized from the plan)"),
        "setup": (
            "COMMAND",
            "installs the requirements in the pod (default: a virtual environment and pip install "
            "-r requirements.txt)",
        ),
        "secrets": ("FILE", f"file of NAME=value lines (default {SECRETS_FILE})"),
    }
    for name, (metavar, meaning) in text.items():
        flags.add_argument(f"--{name}", metavar=metavar, help=meaning)
    return flags


def read_request(argv: Sequence[str]) -> Request:
    """The request of a command line. Raises ConfigError with every problem of the cloud's
    options."""
    given, rest = parser().parse_known_args(list(argv))
    problems = [*_misspelled(rest, vars(given)), *_problems(given)]
    if problems:
        raise ConfigError(problems)
    defaults = Request(argv=())
    wait = float(given.max_wait or 60) if given.wait else 0.0
    any_cuda = () if given.image else CUDA
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
        cuda=_words(given.cuda) or any_cuda,
        disk=int(given.disk) if given.disk else None,
        setup=given.setup or defaults.setup,
        secrets=given.secrets or defaults.secrets,
    )


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


NUMBERS = (
    ("max_cost", 1e5, False),
    ("max_hours", 1e4, False),
    ("gpu_count", 8, True),
    ("max_wait", 1e6, False),
    ("mfu", 1, False),
    ("disk", 1e5, True),
)
"""Name, largest value, whether it must be whole."""

PATTERNS = (
    ("gpus", r"[\w. ,()/-]+", "names of GPU types, separated by commas"),
    ("regions", r"[\w,-]+", "names of data centers, separated by commas"),
    ("volumes", r"[\w-]+=\w+(,[\w-]+=\w+)*", "DATA_CENTER=ID, separated by commas"),
    ("image", r"[\w./:@-]+", "the name of a container image"),
    ("cuda", r"\d+\.\d+(,\d+\.\d+)*", "versions such as 13.0, separated by commas"),
)


MISSPELLED = 0.85
"""How similar to an option of the cloud an argument is that means it."""


def _misspelled(rest: Sequence[str], options: Iterable[str]) -> Iterator[Problem]:
    """Arguments that train.py would reject without naming the option that is meant."""
    for argument in rest:
        name = argument.removeprefix("--").partition("=")[0]
        meant = difflib.get_close_matches(name, options, n=1, cutoff=MISSPELLED)
        if argument.startswith("--") and meant:
            yield Problem((name,), f"unknown option --{name}; did you mean --{meant[0]}?")


def _problems(given: argparse.Namespace) -> Iterator[Problem]:
    for name, most, whole in NUMBERS:
        text = getattr(given, name)
        if text is not None and not _is_between(text, most, whole=whole):
            kind = "a whole number" if whole else "a number"
            yield _problem(name, text, f"must be {kind} above 0 and at most {most:,.0f}")
    for name, pattern, meaning in PATTERNS:
        text = getattr(given, name)
        if text is not None and not re.fullmatch(pattern, text):
            yield _problem(name, text, f"must be {meaning}")
    if given.max_wait is not None and not given.wait:
        yield _problem("max_wait", given.max_wait, "has no effect without --wait; add it")
    if given.secrets is not None and not Path(given.secrets).is_file():
        yield _problem("secrets", given.secrets, "is not a file")
    yield from _problems_of_places(given)


def _problems_of_places(given: argparse.Namespace) -> Iterator[Problem]:
    if given.community and given.volumes:
        what = "cannot be combined with --community, which has no network volumes"
        yield _problem("volumes", given.volumes, what)
    if given.community and given.regions:
        what = "cannot be combined with --community, where RunPod chooses the place"
        yield _problem("regions", given.regions, what)
    pairs = [pair.partition("=")[0] for pair in _words(given.volumes)]
    twice = sorted({region for region in pairs if pairs.count(region) > 1})
    if twice:
        yield _problem("volumes", given.volumes, f"has {', '.join(twice)} more than once")
    outside = set(_words(given.regions)) - set(pairs)
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
