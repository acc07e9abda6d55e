"""Registries: what they refuse, what they say, and a part of the user's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

import model_components
from components.registry import Registry
from model_components import REGISTRIES, catalogue

ROOT = Path(__file__).parents[2]


@pytest.fixture
def registry() -> Registry:
    registry = Registry("colour", "Colour")

    @registry.register("red", label="R", aliases=("crimson",), paper="Newton 1704")
    class Red:
        """Long waves."""

    return registry


def test_lookup_by_name_and_alias(registry):
    assert registry["red"] is registry["crimson"]
    assert registry.canonical("crimson") == "red"
    assert "crimson" in registry
    assert list(registry) == ["red", "crimson"]
    assert registry.names == ("red",)
    assert len(registry) == 1
    entry = registry.entry("red")
    assert (entry.label, entry.summary, entry.paper) == ("R", "Long waves.", "Newton 1704")


def test_an_unknown_name_gives_the_nearest_and_the_choices(registry):
    with pytest.raises(ValueError, match="unknown colour 'rad'; did you mean 'red'.*crimson"):
        registry["rad"]


@pytest.mark.parametrize(
    ("name", "label", "message"),
    [
        ("red", "X", "the name 'red' is taken by .*Red"),
        ("crimson", "X", "the name 'crimson' is taken"),
        ("rouge", "R", "the label 'R' is taken"),
    ],
)
def test_duplicates_are_refused(registry, name, label, message):
    class Other:
        """Another."""

    with pytest.raises(ValueError, match=message):
        registry.register(name, label=label)(Other)


def test_a_part_without_a_docstring_is_refused(registry):
    class Bare:
        pass

    with pytest.raises(ValueError, match="Bare needs a docstring"):
        registry.register("bare", label="B")(Bare)


def test_the_same_file_may_be_run_again(registry):
    def define() -> type:
        class Blue(nn.Module):
            """Short waves."""

        return Blue

    first, second = define(), define()
    registry.register("blue", label="B")(first)
    registry.register("blue", label="B")(second)
    assert registry["blue"] is second
    assert len(registry) == 2


def test_choices_follow_the_registry(registry):
    choices = registry.plus("auto")
    assert list(choices) == ["red", "crimson", "auto"]

    @registry.register("green", label="G")
    class Green:
        """Waves between."""

    assert list(choices) == ["red", "crimson", "green", "auto"]


def test_the_catalogue_has_every_part():
    text = catalogue()
    assert max(map(len, text.splitlines())) <= 100
    for key, registry in REGISTRIES.items():
        assert f"({key})" in text
        for name in registry.names:
            assert f"\n  {name} " in text
            assert registry.entry(name).label in text


def test_the_catalogue_is_printed():
    command = [sys.executable, str(ROOT / "model_components.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == catalogue() + "\n"
    assert model_components.main(["--help"]) == 2
