"""Run the tests that verify the project and write docs/verification.md and docs/differences.json.

    python scripts/verification.py                 about 20 minutes
    python scripts/verification.py --references    a minute: only docs/differences.json

`python -m scripts.catalogue` then shows the differences in docs/catalogue.md. Exit status: 0 all
passed and the files are written, 1 a test failed and the files are unchanged.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import platform
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from scripts.catalogue import references  # noqa: E402
from scripts.component_references import (  # noqa: E402
    DIFFERENCES,
    files,
    largest_differences,
    named_tests,
)
from tests.measured import observing, observing_torch  # noqa: E402

PAGE = PROJECT / "docs" / "verification.md"


@dataclasses.dataclass(frozen=True)
class VerificationSection:
    """A section of the page and its test files."""

    title: str
    text: str
    files: tuple[str, ...]


ELSEWHERE = {"unit/test_formulas.py", "unit/test_positions.py", "interop/test_parity.py"}
"""Files of references that are in sections of their own."""

MUTATIONS_TITLE = "Mutation tests"

SECTIONS = (
    VerificationSection(
        "Properties of every model",
        "Tested on every registered component, every preset, and on error-prone options and "
        "combinations. New components are included automatically.",
        ("tests/contract/test_every_model.py",),
    ),
    VerificationSection(
        "Random combinations",
        "Configs drawn key by key from the declarations of the keys, the same in every run: 10 in "
        "the default tests, and 100 with `pytest -m slow`. Each config either has the properties "
        "above (in double precision), or raises an error that names the key to drop, and has them "
        "without that key.",
        ("tests/contract/test_random_combinations.py",),
    ),
    VerificationSection(
        "Formulas",
        "Each component against its formula, written out in the test.",
        (
            "tests/unit/test_formulas.py",
            "tests/unit/test_attention.py",
            "tests/unit/test_positions.py",
        ),
    ),
    VerificationSection(
        "References of components",
        "Each component and option against an independent implementation: its class in transformers"
        " or another package, or its formula, written out in the test, mostly in double precision. "
        "[catalogue.md](catalogue.md) names the reference of each.",
        tuple(f"tests/{file}" for file in files(references()) if file not in ELSEWHERE),
    ),
    VerificationSection(
        "Gradients",
        "Against finite differences in double precision (`torch.autograd.gradcheck`, step 1e-6,"
        " 1e-8 absolute, 1e-6 relative) with respect to each parameter and input; for every "
        "model also in a random direction, changing all parameters at once.",
        ("tests/unit/test_gradients.py",),
    ),
    VerificationSection(
        "Behavior",
        "Causality, dropout, initial weights, and learning.",
        ("tests/unit/test_behavioral.py",),
    ),
    VerificationSection(
        "Sizes and cost",
        "Parameter counts against closed forms, and FLOPs against PyTorch's counter and hand "
        "calculations: exactly equal.",
        ("tests/unit/test_model_shapes.py", "tests/unit/test_flops.py"),
    ),
    VerificationSection(
        "Hugging Face model families",
        "Hugging Face transformers models with random weights, loaded here from their config "
        "alone, and exported back.",
        ("tests/interop/test_parity.py",),
    ),
    VerificationSection(
        "nanoGPT's training trajectory",
        "The `legacy` preset compared with a GPT-2 in plain PyTorch, included in the test, with"
        " the same initial weights, batches, AdamW parameter groups, clipping, warm-up and "
        "cosine schedule. The tolerances for each of 50 steps are 1e-12 for the learning rate, "
        "1e-4 nats for the loss and a relative 1e-3 for the gradient norm; for the final "
        "weights, 1e-2 relative to the largest.",
        ("tests/integration/test_nanogpt_trajectory.py",),
    ),
    VerificationSection(
        MUTATIONS_TITLE,
        "Each mutation below is applied to the code; the listed tests then fail in one of their "
        "own assertions. Without the mutation they pass.",
        ("tests/contract/test_mutations.py",),
    ),
)


@dataclasses.dataclass
class Proof:
    """A test function and the results of its cases."""

    file: str
    name: str
    doc: str
    cases: int = 0
    largest: dict[float, float] = dataclasses.field(default_factory=dict)
    """The largest difference, by tolerance."""

    @property
    def claim(self) -> str:
        """The name as words, and the first paragraph of the docstring."""
        words = self.name.removeprefix("test_").replace("_", " ")
        paragraph = " ".join(self.doc.split("\n\n")[0].split())
        return f"{words[0].upper()}{words[1:]}. {paragraph}".strip()

    @property
    def differences(self) -> str:
        """The largest difference for each tolerance."""
        return "<br>".join(
            f"{error:.1e} of {allowed:.0e}" for allowed, error in sorted(self.largest.items())
        )


class Recorder:
    """A pytest plugin that collects passed tests and their measurements."""

    def __init__(self) -> None:
        self.proofs: dict[str, Proof] = {}
        self.largest: dict[str, float] = {}
        """Case, as `unit/test_x.py::test_y[...]` -> the largest difference in it."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Function) -> Generator[None, Any, Any]:
        with observing() as measurements:
            result = yield
        file = item.path.relative_to(PROJECT).as_posix()
        name = item.originalname
        doc = inspect.getdoc(item.function) or ""
        proof = self.proofs.setdefault(f"{file}::{name}", Proof(file, name, doc))
        proof.cases += 1
        if measurements:
            largest = max(error for error, _ in measurements)
            self.largest[item.nodeid.removeprefix("tests/")] = largest
        for error, allowed in measurements:
            proof.largest[allowed] = max(error, proof.largest.get(allowed, 0.0))
        return result

    def of(self, section: VerificationSection) -> list[Proof]:
        """The proofs of a section, in the order of its files."""
        return [p for file in section.files for p in self.proofs.values() if p.file == file]


def page(recorder: Recorder) -> str:
    """The page, as Markdown."""
    cases = sum(proof.cases for proof in recorder.proofs.values())
    head = (
        "# Verification\n\n"
        "What the tests verify, and the largest difference that each measured. Written by "
        "`python scripts/verification.py` from a run of the tests; do not edit.\n\n"
        f"{cases} cases passed, with torch {torch.__version__} on Python "
        f"{platform.python_version()} and a CPU ({platform.machine()}), in float32 unless noted. "
        "Differences are relative to the largest expected magnitude unless the test states "
        "otherwise. Rows without a difference are exact or do not measure one.\n"
    )
    sections = (_section(section, recorder.of(section)) for section in SECTIONS)
    return "\n".join([head, *sections])


def _section(section: VerificationSection, proofs: list[Proof]) -> str:
    if section.title == MUTATIONS_TITLE:
        table = _mutations()
    else:
        rows = [(p.claim, f"`{p.name}`", p.cases, p.differences) for p in proofs]
        table = _table(("Property", "Test", "Cases", "Largest difference"), rows)
    files = ", ".join(f"`{file}`" for file in section.files)
    return f"## {section.title}\n\n{section.text}\n\nIn {files}.\n\n{table}\n"


def _mutations() -> str:
    from tests.contract.test_mutations import MUTATIONS

    rows = [
        (
            f"{mutation.what[0].upper()}{mutation.what[1:]}",
            f"`{mutation.before}`",
            f"`{mutation.after}`",
            "<br>".join(f"`{test.split('::')[1]}`" for test in mutation.noticed_by),
        )
        for mutation in MUTATIONS
    ]
    return _table(("Mutation", "Original", "Mutated", "Detected by"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = ([str(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def main(argv: list[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    flags.add_argument(
        "--references",
        action="store_true",
        help="only measure the references of components: write docs/differences.json",
    )
    measures_references_only = flags.parse_args(argv).references
    sections = [file for section in SECTIONS for file in section.files]
    of_references = [f"tests/{test.partition('[')[0]}" for test in named_tests(references())]
    paths = [
        f"{PROJECT}/{path}" for path in (of_references if measures_references_only else sections)
    ]
    options = ["--rootdir", str(PROJECT), "-o", "addopts=", "-q", "-W", "ignore"]
    recorder = Recorder()
    with observing_torch():
        status = pytest.main([*options, *dict.fromkeys(paths)], plugins=[recorder])
    if status != pytest.ExitCode.OK:
        print("a test failed; the files are unchanged.", file=sys.stderr)
        return 1
    differences = largest_differences(references(), recorder.largest)
    _write(DIFFERENCES, json.dumps(differences, indent=1) + "\n")
    if not measures_references_only:
        _write(PAGE, page(recorder))
    return 0


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    print(f"wrote {path.name}")


if __name__ == "__main__":
    sys.exit(main())
