"""The page of all components."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from model_components import REGISTRIES
from options import Role
from scripts import catalogue

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


@pytest.mark.parametrize("reference", catalogue.references(), ids=lambda found: found.name)
def test_a_reference_is_used_by_its_test(reference: catalogue.Reference) -> None:
    test = (TESTS / reference.test).read_text(encoding="utf-8")
    classes = re.findall(r"[A-Z][A-Za-z0-9]*[a-z]\w*[A-Z0-9]\w*", reference.name)
    assert all(name in test for name in classes)
