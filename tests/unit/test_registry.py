"""Registries: what they refuse, what they say, and a part of the user's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

import model_components
from components.registry import Registry
from errors import UserError
from model_components import REGISTRIES, catalogue
from training_components import TRAINING_REGISTRIES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def registry() -> Registry:
    registry = Registry("colour", "Colour", variable="COLOURS", base=object, made_with=None)

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


class Bare(nn.Module):
    pass


class Documented(nn.Module):
    """Does nothing."""


class Demanding(nn.Module):
    """Wants too much."""

    def __init__(self, dim, eps, more):
        super().__init__()


class Plain:
    """No module."""


@pytest.mark.parametrize(
    ("register", "message"),
    [
        (lambda norms: norms.register("x", label="X")(Bare), "'x': Bare needs a docstring"),
        (lambda norms: norms.register("x")(Documented), "'x' needs a label"),
        (lambda norms: norms.register(Documented), "takes the name of the part, which is missing"),
        (
            lambda norms: norms.register()(Documented),
            "takes the name of the part, which is missing",
        ),
        (lambda norms: norms.register("", label="X"), "takes the name of the part, not ''"),
        (
            lambda norms: norms.register("x", name="y", label="X"),
            "register takes the name of the part, then label=, paper= and aliases=, not name='y'",
        ),
        (lambda norms: norms.register("x", "X", lable="X"), "aliases=, not 'X', lable='X'"),
        (
            lambda norms: norms.register("x", label="X", aliases="abc"),
            "'x': aliases takes a tuple of names, such as ('other',), not 'abc'",
        ),
        (lambda norms: norms.register("x", label="X", aliases=("y", 1)), "names, such as"),
        (lambda norms: norms.register("x", label="X")(Plain), "'x': Plain must subclass Module"),
        (lambda norms: norms.register("x", label="X")(len), "'x' must be a class, not <built-in"),
        (
            lambda norms: norms.register("x", label="X")(Demanding),
            "'x': Demanding.__init__ must accept (dim, eps) (missing a required argument: 'more')",
        ),
    ],
)
def test_what_is_missing_is_said_with_an_example(register, message):
    norms = Registry("norm", "Norm", variable="NORMS", base=nn.Module, made_with="dim, eps")
    with pytest.raises(UserError) as refused:
        register(norms)
    assert str(refused.value).startswith("norm: ")
    assert message in str(refused.value)
    assert str(refused.value).splitlines()[1:] == [
        '@NORMS.register("mine", label="Mine")',
        "class Mine(nn.Module):",
        '    """One-line description."""',
        "    def __init__(self, dim, eps): ...",
    ]
    assert len(norms) == 0


def test_a_forward_of_other_arguments_is_refused():
    ffns = Registry("ffn", "FFN", variable="FFNS", base=nn.Module, called_with="x, context")

    class Older(nn.Module):
        """Takes x alone."""

        def __init__(self, config):
            super().__init__()

        def forward(self, x):
            return x

    with pytest.raises(UserError, match=r"Older.forward must accept \(x, context\)") as refused:
        ffns.register("older", label="Older")(Older)
    assert str(refused.value).endswith("\n    def forward(self, x, context): ...")


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


@pytest.mark.parametrize("registries", [REGISTRIES, TRAINING_REGISTRIES])
def test_the_catalogue_has_every_part(registries):
    text = catalogue(registries)
    assert max(map(len, text.splitlines())) <= 100
    for key, registry in registries.items():
        assert f"({key})" in text
        for name in registry.names:
            assert f"\n  {name} " in text
            assert registry.entry(name).label in text


@pytest.mark.slow
def test_the_catalogue_is_printed():
    command = [sys.executable, str(ROOT / "model_components.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == catalogue() + "\n"
    assert model_components.main(["--all"]) == 2


def test_the_catalogue_explains_itself(capsys):
    assert model_components.main(["--help"]) == 0
    assert "python model_components.py" in capsys.readouterr().out


@pytest.mark.slow
def test_the_catalogue_of_training_is_printed():
    command = [sys.executable, str(ROOT / "training_components.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == catalogue(TRAINING_REGISTRIES) + "\n"


def test_a_word_among_the_choices_is_no_name_of_a_part():
    colours = Registry("colour", "Colour", variable="COLOURS", base=object, made_with=None)
    assert list(colours.plus("none")) == ["none"]
    with pytest.raises(
        ValueError, match="the name 'none' has another meaning; register Documented"
    ):
        colours.register("none", label="None")(Documented)
