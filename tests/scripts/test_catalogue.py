"""The page of all components."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from model_components import REGISTRIES
from options import Role
from scripts import catalogue
from scripts.component_references import (
    Reference,
    covers,
    files,
    largest_differences,
    named_tests,
    saved_differences,
    shown_difference,
)

TESTS = Path(__file__).resolve().parents[1]


def test_the_page_is_up_to_date() -> None:
    assert catalogue.main(["--check"]) == 0


def test_every_component_and_option_has_a_row() -> None:
    page = catalogue.page()
    for registry in REGISTRIES.values():
        if registry.key == "attention_backend":
            continue
        for name in registry.names:
            entry = registry.entry(name)
            assert f"| `{name}` | {entry.label} |" in page
            of_architecture = [k for k, key in entry.keys.items() if key.role == Role.ARCHITECTURE]
            assert all(f"| `{key}` |" in page for key in of_architecture if key not in REGISTRIES)


REFERENCES = {each: each for each in catalogue.references() if each.tests}


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda found: found.name)
def test_a_reference_is_used_by_its_tests(reference: Reference) -> None:
    text = "".join((TESTS / file).read_text(encoding="utf-8") for file in files([reference]))
    classes = re.findall(r"[A-Z][A-Za-z0-9]*[a-z]\w*[A-Z0-9]\w*", reference.name)
    functions = [re.findall(r"test_\w+", test)[-1] for test in reference.tests]
    assert all(name in text for name in classes)
    assert all(f"def {name}(" in text for name in functions)


def test_the_differences_are_those_of_the_tests_of_the_references() -> None:
    assert [*saved_differences()] == named_tests(REFERENCES), (
        "run scripts/verification.py --references"
    )


@pytest.mark.parametrize(
    ("test", "case", "expected"),
    [
        ("a.py::test_b", "a.py::test_b", True),
        ("a.py::test_b", "a.py::test_b[gelu-3]", True),
        ("a.py::test_b[gelu]", "a.py::test_b[gelu-3]", True),
        ("a.py::test_b[gelu]", "a.py::test_b[gelu_tanh-3]", False),
        ("a.py::test_b", "a.py::test_bc", False),
        ("a.py::test_b", "a.py::TestC::test_b", False),
    ],
)
def test_a_case_of_a_test(test: str, case: str, expected: bool) -> None:
    assert covers(test, case) == expected


def test_the_largest_difference_of_the_tests_of_a_reference() -> None:
    both = Reference("A", ("a.py::test_b[x]", "a.py::test_c"))
    measured = {"a.py::test_b[x-1]": 1e-7, "a.py::test_b[x-2]": 3e-7, "a.py::test_b[y-2]": 1.0}
    with pytest.raises(ValueError, match=r"a\.py::test_c measures no difference"):
        largest_differences([both], measured)
    found = largest_differences([both], {**measured, "a.py::test_c": 2e-7})
    assert found == {"a.py::test_b[x]": 3e-7, "a.py::test_c": 2e-7}
    assert shown_difference(both, found) == "3.0e-07"
    assert shown_difference(Reference("formula"), found) == "-"
