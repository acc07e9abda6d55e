"""The page of all components."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from model_components import REGISTRIES
from options import Key, Role
from scripts import catalogue
from scripts.catalogue import owned_by
from scripts.component_references import (
    Reference,
    covers,
    files,
    largest_differences,
    named_tests,
    of_option,
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


@pytest.mark.slow
def test_the_tests_of_a_reference_set_its_options(tmp_path: Path) -> None:
    """To every choice, or to any value, but the default, which a test has that ignores it."""
    shown = [registry for registry in REGISTRIES.values() if registry.key != "attention_backend"]
    owned = {key.name: (each, key, owners) for each in shown for key, owners in owned_by(each)}
    tests = {name: of_option(*own).tests for name, own in owned.items()}
    recorded = options_set_by({test for own in tests.values() for test in own}, tmp_path / "values")
    missing = {}
    for name, (_, key, _) in owned.items():
        cases = [own for case, own in recorded.items() if any(covers(t, case) for t in tests[name])]
        found = {value for own in cases for value in own.get(name, ())} - {repr(key.default)}
        unseen = {repr(choice) for choice in choices_of(key)} - {repr(key.default), *found}
        if tests[name] and (unseen or not found):
            missing[name] = unseen
    assert not missing, missing


def choices_of(key: Key) -> tuple[str, ...]:
    """The values that the tests of an option must have; those of `canon` are too many."""
    listed = isinstance(key.choices, tuple) and key.name != "canon"
    return key.choices if listed else ()


def options_set_by(tests: set[str], file: Path) -> dict[str, dict[str, list[str]]]:
    """The values of the options in each case of some tests."""
    named = dict.fromkeys(f"{TESTS}/{test.partition('[')[0]}" for test in sorted(tests))
    plugin = (
        "-p",
        "tests.recorded_options",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(TESTS.parent),
    )
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", *plugin, *named]
    environment = {**os.environ, "RECORDED_OPTIONS": str(file)}
    ended = subprocess.run(
        command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout
    return json.loads(file.read_text(encoding="utf-8"))


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
