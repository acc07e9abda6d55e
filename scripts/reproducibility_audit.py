"""Check that training is reproducible: on this machine, and between machines or dates.

python scripts/reproducibility_audit.py --save A.json
python scripts/reproducibility_audit.py config/arch_llama.py --compile=True
python scripts/reproducibility_audit.py --compare A.json B.json

The first two train config/run_audit.py, followed by the given config files and flags of train.py,
twice with one seed. They report whether the weights match bit for bit, and everything that the
weights depend on: versions, hardware, flags, git, and checksums of code, data, config and weights.
The third compares two such reports.

Exit status: 0 no differences, 1 a relevant difference, 2 a value could not be determined.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from errors import UserError
from scripts.runs import CONFIG, FAILED, PASSED, PROJECT, UNDECIDED, run_script, train
from training.checkpoint import find_checkpoint
from training.provenance import CHANGES
from training.resume import is_restored

SCHEMA_VERSION = 1

Fact = dict[str, Any]
"""{"value": the result of a probe} or {"error": why it failed}."""


# Probes


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished run: its folder, and its log as in run.json."""

    folder: Path
    log: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The config keys that define what was trained, and how."""
        return {k: v for k, v in self.log["config"].items() if is_restored(k)}

    def checksum(self, file: str) -> str:
        """SHA-256 of the tensors in a file of the last checkpoint: names, types, shapes, bits."""
        checkpoint, _ = find_checkpoint(str(self.folder), self.folder.parent)
        digest = hashlib.sha256()
        for name, tensor in sorted(load_file(checkpoint / file).items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def weights(self) -> str:
        return self.checksum("model.safetensors")

    @property
    def optimizer(self) -> str:
        return self.checksum("optimizer.safetensors")

    @property
    def losses(self) -> list[float | None]:
        """All training and validation losses in the log."""
        return [record["loss"] for record in self.log["training_iterations"]] + [
            record["val_loss"] for record in self.log["eval_steps"]
        ]


def same_bits(first: Trained, second: Trained) -> bool:
    """Whether two runs have the same losses, final weights and optimizer moments."""
    return all(
        getattr(first, what) == getattr(second, what) for what in ("weights", "optimizer", "losses")
    )


def recorded(key: str, run: Trained, _: Trained) -> Any:
    """A value of the environment that the run logged."""
    return run.log["environment"][key]


def driver(run: Trained, _: Trained) -> str | None:
    version = run.log["environment"]["driver"]
    if version is None and torch.version.cuda and torch.cuda.is_available():
        raise UserError("nvidia-smi does not report a version, although there is a CUDA device.")
    return version


def variables(*_: Trained) -> str:
    """The environment variables that are set and affect how libraries compute."""
    found = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    return " ".join(found) or "none set"


def git(*arguments: str) -> str:
    """The output of git in the project's folder. Raises UserError if git fails."""
    command = ("git", "-C", str(PROJECT), *arguments)
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=False)
    if done.returncode:
        raise UserError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def git_of_project(*arguments: str) -> str:
    """The output of git for the project. Raises UserError unless its folder is a checkout."""
    root = git("rev-parse", "--show-toplevel")
    if Path(root).resolve() != PROJECT.resolve():
        raise UserError(f"git knows {PROJECT} as a folder of {root} only; clone the project.")
    return git(*arguments)


def commit(*_: Trained) -> str:
    return git_of_project("rev-parse", "HEAD")


def dirty(*_: Trained) -> bool:
    """Whether tracked files other than results differ from the commit."""
    return bool(git_of_project(*CHANGES))


def source(*_: Trained) -> str:
    """SHA-256 of the project's code on disk: names and contents of all files except tests."""
    code = ("--cached", "--others", "--exclude-standard", "*.py")
    names = git_of_project("ls-files", "-z", *code).split("\0")
    digest = hashlib.sha256()
    for name in sorted(set(names)):
        path = PROJECT / name
        if path.is_file() and not name.startswith("tests/"):  # a listed file may be deleted
            digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def checksum_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


RECORDED = (
    *("python", "torch", "numpy", "cuda", "cudnn", "device", "cpu_capability", "threads", "dtype"),
    *("tf32", "deterministic_algorithms", "cudnn_deterministic", "cudnn_benchmark"),
    *("platform", "host", "cpu_count", "device_count"),
)
VARIABLES = (
    *("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
    *("MKL_CBWR", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "PYTHONHASHSEED"),
)
PROBES: dict[str, Callable[[Trained, Trained], Any]] = {
    **{key: functools.partial(recorded, key) for key in RECORDED},
    "driver": driver,
    "variables": variables,
    "commit": commit,
    "dirty": dirty,
    "source": source,
    "data": lambda run, _: run.log["data"]["fingerprint"],
    "validation_data": lambda run, _: run.log["data"]["val_fingerprint"],
    "config": lambda run, _: checksum_of(run.config),
    "losses": lambda run, _: checksum_of(run.losses),
    "val_loss": lambda run, _: run.log["summary"]["final_val_loss"],
    "weights": lambda run, _: run.weights,
    "optimizer": lambda run, _: run.optimizer,
    "bit_identical": same_bits,
}
NOTED = ("platform", "host", "cpu_count", "device_count", "commit", "dirty")
"""Facts that may differ without affecting the numbers; `source` covers the code."""


def fact_of(probe: Callable[[Trained, Trained], Any], first: Trained, second: Trained) -> Fact:
    """The result of a probe. An exception becomes an error, which never matches."""
    try:
        return {"value": probe(first, second)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def audit(arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    """Train twice under `folder` and report all facts.

    Raises:
        RunFailed: If a run did not complete.
    """
    recipe = [str(CONFIG / "run_audit.py"), *arguments]
    folders = (folder / "first", folder / "second")
    first, second = (Trained(path, train(recipe, path)) for path in folders)
    return {
        "schema_version": SCHEMA_VERSION,
        "facts": {name: fact_of(probe, first, second) for name, probe in PROBES.items()},
        "config": first.config,
    }


# The report

OK, NOTE, DIFFERS, ERROR = "ok", "noted", "DIFFERS", "ERROR"
ABSENT: Fact = {"error": "not in this report"}


@dataclasses.dataclass(frozen=True)
class Row:
    """A fact with its verdict, and its value: once, or for each report if they differ.

    Attributes:
        verdict: OK; NOTE: an irrelevant difference; DIFFERS; or ERROR: unknown.
    """

    name: str
    verdict: str
    found: tuple[str, ...]


def rows(*reports: Mapping[str, Any]) -> Iterator[Row]:
    """Yield a row for every fact of one or more reports, and for every config key that differs."""
    for name in dict.fromkeys(name for report in reports for name in report["facts"]):
        facts = [report["facts"].get(name, ABSENT) for report in reports]
        found = [str(fact["error"] if "error" in fact else fact["value"]) for fact in facts]
        verdict = verdict_on(name, facts)
        yield Row(name, verdict, tuple(found[:1] if verdict == OK else found))
    for key in dict.fromkeys(key for report in reports for key in report["config"]):
        values = [repr(report["config"].get(key, "no such key")) for report in reports]
        if len(set(values)) > 1:
            yield Row(f"config.{key}", DIFFERS, tuple(values))


def verdict_on(name: str, facts: Sequence[Fact]) -> str:
    """The verdict on a fact, given its values in one or more reports."""
    if any("error" in fact for fact in facts):
        return ERROR
    values = [fact["value"] for fact in facts]
    if name == "bit_identical":  # False in both reports does not count as a match
        return OK if all(values) else DIFFERS
    if all(value == values[0] for value in values):
        return OK
    return NOTE if name in NOTED else DIFFERS


def table(found: Iterable[Row]) -> str:
    """Name, verdict and value in columns; differing values are on separate lines."""
    below = "\n" + " " * 36
    return "\n".join(f"{row.name:<27}{row.verdict:<9}{below.join(row.found)}" for row in found)


def conclusion(found: Sequence[Row]) -> tuple[int, str]:
    """The exit status for the rows, and a sentence that explains it."""
    named = {v: ", ".join(row.name for row in found if row.verdict == v) for v in (DIFFERS, ERROR)}
    if named[DIFFERS]:
        return FAILED, f"FAILED: different: {named[DIFFERS]}"
    if named[ERROR]:
        return UNDECIDED, f"UNDECIDED: unknown: {named[ERROR]}"
    return PASSED, "PASSED: no relevant differences"


def read_report(path: Path) -> dict[str, Any]:
    """Read a report that was written by --save.

    Raises:
        UserError: If the file is not a report, or has another version.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        version, _, _ = (report[key] for key in ("schema_version", "facts", "config"))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not an audit report ({error!r}); make one with --save."
        ) from error
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path} is an audit report of version {version}, but this code reads "
            f"{SCHEMA_VERSION}; make it again with --save."
        )
    return report


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [--save FILE] [config.py ...] [--key=value ...] | --compare FILE FILE",
        allow_abbrev=False,
    )
    what = flags.add_mutually_exclusive_group()
    what.add_argument("--save", type=Path, metavar="FILE", help="write the report there, as JSON")
    what.add_argument(
        "--compare", type=Path, nargs=2, metavar="FILE", help="compare two reports without training"
    )
    return flags


def main(argv: Sequence[str]) -> int:
    args, arguments = parser().parse_known_args(argv)
    if args.compare:
        if arguments:
            raise UserError(f"--compare trains nothing; drop {' '.join(arguments)}")
        reports = [read_report(path) for path in args.compare]
    else:
        with tempfile.TemporaryDirectory(prefix="nanoarch-audit-") as temporary:
            reports = [audit(arguments, Path(temporary))]
    if args.save:
        args.save.parent.mkdir(parents=True, exist_ok=True)
        args.save.write_text(json.dumps(reports[0], indent=1) + "\n", encoding="utf-8")
    found = list(rows(*reports))
    status, sentence = conclusion(found)
    print(f"{table(found)}\n\n{sentence}")
    return status


if __name__ == "__main__":
    run_script(main)
