"""What is proven, by which test, to what tolerance: run the proofs and write docs/verification.md.

python scripts/verification.py

Takes some minutes. Exit status: 0 all hold and the page is written, 1 one does not, and the page is
left as it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import platform
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from tests.measured import observing  # noqa: E402

PAGE = PROJECT / "docs" / "verification.md"


@dataclasses.dataclass(frozen=True)
class VerificationSection:
    """A heading of the page and the test files below it."""

    title: str
    text: str
    files: tuple[str, ...]


SECTIONS = (
    VerificationSection(
        "Laws of every model",
        "Swept over every registered part, every preset, and options and combinations that go "
        "wrong easily. A part that is added is swept too.",
        ("tests/contract/test_every_model.py",),
    ),
    VerificationSection(
        "Random combinations",
        "200 configs drawn key by key from their own declaration, the same ones every time; every "
        "run of the tests draws 25 of its own, and `pytest -m slow` the 200. Each obeys the laws "
        "(in double precision), or is refused with a message that names what to drop, and obeys "
        "them without it.",
        ("tests/contract/test_random_combinations.py",),
    ),
    VerificationSection(
        "Formulas",
        "Each part against its formula, written out in the test.",
        (
            "tests/unit/test_formulas.py",
            "tests/unit/test_attention.py",
            "tests/unit/test_positions.py",
        ),
    ),
    VerificationSection(
        "Gradients",
        "Against finite differences in double precision (`torch.autograd.gradcheck`, step 1e-6, "
        "1e-8 absolute, 1e-6 relative) by each parameter and input on its own; of every model "
        "also in a random direction, moving all parameters at once.",
        ("tests/unit/test_gradients.py",),
    ),
    VerificationSection(
        "Behaviour",
        "What a token may see, dropout, initial weights, and learning.",
        ("tests/unit/test_behavioral.py",),
    ),
    VerificationSection(
        "Sizes and cost",
        "Parameters against closed forms and FLOPs against torch's counter and figures worked out "
        "by hand: equal to the last digit.",
        ("tests/unit/test_model_shapes.py", "tests/unit/test_flops.py"),
    ),
    VerificationSection(
        "Known families",
        "Models made by Hugging Face transformers with random weights, loaded here from their "
        "config alone, and the way back.",
        ("tests/interop/test_parity.py",),
    ),
    VerificationSection(
        "nanoGPT's training trajectory",
        "The `legacy` preset beside a GPT-2 in plain PyTorch that the test brings along: same "
        "initial weights, same batches, AdamW's groups, clipping, warm-up and cosine. The learning "
        "rate of each of 50 steps may differ by 1e-12, the loss by 1e-4 nats, the norm of the "
        "gradient by 1e-3 of it, the weights at the end by 1e-2 of the largest.",
        ("tests/integration/test_nanogpt_trajectory.py",),
    ),
    VerificationSection(
        "Broken on purpose",
        "Each line below is put into the code, and the tests beside it fail by an assertion of "
        "their own. Without it they pass.",
        ("tests/contract/test_mutations.py",),
    ),
)


@dataclasses.dataclass
class Proof:
    """A test function and what became of its cases."""

    file: str
    name: str
    doc: str
    cases: int = 0
    largest: dict[float, float] = dataclasses.field(default_factory=dict)
    """The largest difference, by what was allowed."""

    @property
    def claim(self) -> str:
        """The name as words, and the first paragraph of the docstring."""
        words = self.name.removeprefix("test_").replace("_", " ")
        paragraph = " ".join(self.doc.split("\n\n")[0].split())
        return f"{words[0].upper()}{words[1:]}. {paragraph}".strip()

    @property
    def differences(self) -> str:
        """Each largest difference, and what was allowed."""
        return "<br>".join(
            f"{error:.1e} of {allowed:.0e}" for allowed, error in sorted(self.largest.items())
        )


class Recorder:
    """A pytest plugin that gathers what passes and what is measured."""

    def __init__(self) -> None:
        self.proofs: dict[str, Proof] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Function) -> Generator[None, Any, Any]:
        with observing() as measurements:
            result = yield
        file = item.path.relative_to(PROJECT).as_posix()
        name = item.originalname
        doc = inspect.getdoc(item.function) or ""
        proof = self.proofs.setdefault(f"{file}::{name}", Proof(file, name, doc))
        proof.cases += 1
        for error, allowed in measurements:
            proof.largest[allowed] = max(error, proof.largest.get(allowed, 0.0))
        return result

    def of(self, section: VerificationSection) -> list[Proof]:
        """The proofs below a heading, in the order of its files."""
        return [p for file in section.files for p in self.proofs.values() if p.file == file]


def page(recorder: Recorder) -> str:
    """The page, as Markdown."""
    cases = sum(proof.cases for proof in recorder.proofs.values())
    head = (
        "# Verification\n\n"
        "What is proven, by which test, and how close it came. Written by "
        "`python scripts/verification.py` from a run of the tests; not edited by hand.\n\n"
        f"{cases} cases passed, with torch {torch.__version__} on Python "
        f"{platform.python_version()} and a CPU ({platform.machine()}), in float32 where nothing "
        "else is said. A difference is relative to the largest magnitude expected, unless the test "
        "says otherwise; where none is given, equality is exact or there is nothing to measure.\n"
    )
    sections = (_section(section, recorder.of(section)) for section in SECTIONS)
    return "\n".join([head, *sections])


def _section(section: VerificationSection, proofs: list[Proof]) -> str:
    if section.title == "Broken on purpose":
        table = _mutations()
    else:
        rows = [(p.claim, f"`{p.name}`", p.cases, p.differences) for p in proofs]
        table = _table(("What holds", "Test", "Cases", "Largest difference"), rows)
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
    return _table(("Broken", "Instead of", "There is", "Noticed by"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = ([str(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def main(argv: list[str] | None = None) -> int:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args(argv)
    recorder = Recorder()
    files = [str(PROJECT / file) for section in SECTIONS for file in section.files]
    options = ["--rootdir", str(PROJECT), "-o", "addopts=", "-q", "-W", "ignore"]
    status = pytest.main([*options, *files], plugins=[recorder])
    if status != pytest.ExitCode.OK:
        print(f"not all of it holds; {PAGE.name} is left as it was.", file=sys.stderr)
        return 1
    PAGE.write_text(page(recorder), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(PROJECT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
