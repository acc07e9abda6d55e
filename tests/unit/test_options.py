"""Keys that are declared once: what they accept, parse and say, and who they belong to."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import sweep
from cloud import request
from configurator import COMMAND_OPTIONS, key_table
from errors import ConfigError, Problem, UserError, nearest, unknown_name
from options import (
    KEYS,
    Key,
    KeyTable,
    Role,
    Section,
    convert,
    keys_of,
    option,
    options_of,
    parse,
    type_name,
)
from scripts import reproducibility_audit
from tests.parametrized import one_in
from training import dry_run

NAMES = ["small", "large"]
BIG = f"1{'0' * 37}...{'0' * 38} (401 characters)"
"""10**400 in a message."""


class Unprintable:
    """A value whose repr fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Exiting:
    """A value whose repr ends the program."""

    def __repr__(self) -> str:
        raise SystemExit(0)


class Name(str):
    """A str of another type."""


_sizes = Section("Sizes", Role.ARCHITECTURE)
_names = Section("Names", Role.BOOKKEEPING)


class Example:
    """A class of options."""

    size: int = _sizes.option(1, "how big", at_least=1, at_most=8)
    share: float = _sizes.option(0.5, "how much", above=0, below=1, role=Role.RECIPE)

    name: str = _names.option("small", "what", choices=NAMES)
    limit: float | None = _names.option(None, "none: no limit")
    fast: bool | str = _names.option("auto", "whether", choices=("auto", True, False))
    free: str = _names.option("", "any text")


EXAMPLE = keys_of(Example)


def messages(**values) -> list[str]:
    found = (EXAMPLE[key].problem(value) for key, value in values.items())
    return [problem.message for problem in found if problem]


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (3, int, 3),
        (3, float, 3.0),
        (0.5, float, 0.5),
        (True, bool, True),
        (None, int | None, None),
        (2, float | None, 2.0),
        ("auto", bool | str, "auto"),
        (np.float64(0.5), float, 0.5),
        (Name("auto"), str, "auto"),
    ],
)
def test_convert_takes_values_of_the_type(value, annotation, expected):
    result = convert(value, annotation)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        (True, int, r"takes int, not True \(bool\)"),
        (False, float, r"takes float, not False \(bool\)"),
        (1, bool, r"takes True or False, not 1 \(int\)"),
        (1.0, int, r"takes int, not 1.0 \(float\)"),
        ("3", int | None, r"takes int or none, not '3' \(str\)"),
        (None, str, r"takes str, not None \(NoneType\)"),
        ([1], int, r"takes int, not \[1\] \(list\)"),
    ],
)
def test_convert_refuses_values_of_another_type(value, annotation, message):
    with pytest.raises(ValueError, match=message):
        convert(value, annotation)


@pytest.mark.parametrize(
    ("text", "annotation", "expected"),
    [
        ("12", int, 12),
        ("1e-3", float, 1e-3),
        ("-1", int, -1),
        ("None", int | None, None),
        ("none", str, "none"),
        ("true", bool, True),
        ("False", bool, False),
        ("True", str, "True"),
        ("007", str, "007"),
        ("a=b", str, "a=b"),
        ("", str, ""),
        ("auto", bool | str, "auto"),
        ("true", bool | str, True),
        ("abc", int, "abc"),  # left for Key.problem to refuse
        ("1.5", int, 1.5),
        ("-" * 900 + "1", int, "-" * 900 + "1"),  # too deep for Python's parser or literal_eval
        ("-" * 10**6 + "1", int, "-" * 10**6 + "1"),
        ("(" * 900, int, "(" * 900),
        ("1e999", float, float("inf")),
        ("9" * 401, int, int("9" * 401)),
        ("9" * 5000, int, "9" * 5000),
    ],
)
def test_parse_reads_text_by_type(text, annotation, expected):
    result = parse(text, annotation)
    assert result == expected
    assert type(result) is type(expected)


def test_sound_values_have_no_problem():
    assert messages(size=8, share=0.99, name="large", limit=3, fast=True) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "size=0 must be at least 1."),
        ({"size": 9}, "size=9 must be at most 8."),
        ({"size": 10**400}, f"size={BIG} must be at most 8."),
        ({"size": 10**5000}, "size=<int without a repr> must be at most 8."),
        ({"share": 10**400}, f"share takes float, but {BIG} is too large for one."),
        ({"size": {1}}, "size takes int, not {1} (set)."),
        ({"size": b"1"}, "size takes int, not b'1' (bytes)."),
        ({"share": 1j}, "share takes float, not 1j (complex)."),
        (
            {"size": Unprintable()},
            "size takes int, not <Unprintable without a repr> (Unprintable).",
        ),
        ({"size": Exiting()}, "size takes int, not <Exiting without a repr> (Exiting)."),
        ({"free": "a\nb\udcff"}, "free='a\\nb\\udcff' contains unprintable characters."),
        ({"share": 0}, "share=0.0 must be above 0."),
        ({"share": 1.0}, "share=1.0 must be below 1."),
        ({"share": float("nan")}, "share=nan must be finite."),
        ({"limit": float("inf")}, "limit=inf must be finite."),
        ({"size": True}, "size takes int, not True (bool)."),
        ({"name": "lrge"}, "unknown name 'lrge'; did you mean 'large'? Choices: small, large."),
        ({"name": "xyz"}, "unknown name 'xyz'. Choices: small, large."),
        ({"name": 3}, "name takes str, not 3 (int). Choices: small, large."),
        ({"fast": "yes"}, "unknown fast 'yes'. Choices: auto, True, False."),
    ],
)
def test_each_field_problem_says_what_is_wrong(values, message):
    assert messages(**values) == [message]


def test_a_problem_names_its_key():
    assert EXAMPLE["size"].problem(0).keys == ("size",)


def test_choices_are_read_anew_at_each_check():
    assert messages(name="huge")
    NAMES.append("huge")
    try:
        assert messages(name="huge") == []
    finally:
        NAMES.remove("huge")


def test_an_int_becomes_a_float_where_a_float_is_meant():
    assert type(EXAMPLE["limit"].converted(3)) is float
    assert type(EXAMPLE["size"].converted(3)) is int


def test_nearest_ignores_case():
    assert nearest("RMSNorm", ["layernorm", "rmsnorm"]) == "; did you mean 'rmsnorm'?"
    assert nearest("tru", [True, False]) == "; did you mean 'True'?"
    assert nearest("xyz", ["layernorm"]) == "."


def test_unknown_name_reads_an_iterable_once():
    message = unknown_name("part", "b", iter(["bb", "c"]))
    assert message == "unknown part 'b'; did you mean 'bb'? Choices: bb, c."


def test_type_names_are_a_readers():
    assert type_name(float | None) == "float or none"
    assert type_name(bool) == "True or False"


def test_a_section_gives_its_keys_a_heading_and_a_role():
    assert list(EXAMPLE) == ["size", "share", "name", "limit", "fast", "free"]
    sections = {name: key.section for name, key in EXAMPLE.items()}
    assert sections == dict.fromkeys(("size", "share"), "Sizes") | dict.fromkeys(
        ("name", "limit", "fast", "free"), "Names"
    )
    roles = [EXAMPLE[name].role for name in ("size", "share", "name")]
    assert roles == [Role.ARCHITECTURE, Role.RECIPE, Role.BOOKKEEPING]


def test_config_error_counts_and_lists_its_problems():
    one = ConfigError([Problem(("a",), "a is bad.")])
    assert str(one) == "1 config error:\n  - a is bad."
    odd = ConfigError([Problem(("a",), "a\x1b\udcff is bad:\nsee b")])
    assert str(odd) == "1 config error:\n  - a\\x1b\\udcff is bad:\n    see b"
    two = ConfigError([Problem(("a",), "a is bad."), Problem((), "no file.")])
    assert str(two) == "2 config errors:\n  - a is bad.\n  - no file."
    assert isinstance(two, ValueError)
    assert two.problems[0].keys == ("a",)


# What may be declared


class Roleless:
    lost: int = option(1, "nobody says what it is for")


class Plain:
    bare: int = 3


class Missing:
    bare: int


def test_a_key_without_a_role_cannot_be_declared():
    with pytest.raises(TypeError, match=r"Roleless\.lost has no role"):
        keys_of(Roleless)
    assert keys_of(Roleless, role=Role.DATA)["lost"].role is Role.DATA


@pytest.mark.parametrize("declaring", [Plain, Missing])
def test_an_attribute_without_option_is_refused(declaring):
    with pytest.raises(TypeError, match=rf"{declaring.__name__}\.bare must be created by option"):
        keys_of(declaring, role=Role.DATA)


def test_a_misspelt_argument_is_refused():
    with pytest.raises(TypeError, match="at_leest"):
        option(1, "how wide", at_leest=1)


def test_every_key_of_a_run_has_a_role():
    assert len(key_table()) > 70
    assert set(KEYS) == set(key_table())
    assert all(isinstance(key.role, Role) for key in KEYS.values())


# Whose a key is


def keys(owner: str, help: str = "how wide", default: int = 1, **rest) -> dict[str, Key]:
    declaring = type("Options", (), {"width": option(default, help, **rest)})
    declaring.__annotations__ = {"width": int}
    return keys_of(declaring, owner=owner, role=Role.ARCHITECTURE)


def test_a_table_knows_the_parts_that_a_key_belongs_to():
    table = KeyTable()
    table.declare("", EXAMPLE)
    for owner in ("ffn=a", "ffn=b", "norm=c"):
        table.declare(owner, keys(owner))
    assert table.owners("width") == ["ffn=a", "ffn=b", "norm=c"]
    assert table.owned_by("width") == "ffn=a or b, or norm=c"
    assert table.owners("size") == []
    assert table.owned_by("size") == ""
    assert list(table) == [*EXAMPLE, "width"]
    assert table.nearest("widht") == "; did you mean 'width'?"


def test_what_an_owner_declared_before_is_gone():
    table = KeyTable()
    table.declare("ffn=a", keys("ffn=a"))
    table.declare("ffn=b", keys("ffn=b"))
    table.declare("ffn=a", {})
    assert table.owners("width") == ["ffn=b"]
    table.declare("ffn=b", {})
    assert "width" not in table


@pytest.mark.parametrize(
    "other",
    [
        {"help": "another"},
        {"default": 2},
        {"at_least": 1},
        {"per_layer": True},
        {"choices": (1, 2)},
    ],
)
def test_one_name_is_one_declaration(other):
    table = KeyTable()
    table.declare("ffn=a", keys("ffn=a"))
    with pytest.raises(UserError) as refused:
        table.declare("ffn=b", keys("ffn=b", **other))
    assert str(refused.value) == (
        "the option 'width' is already declared differently by ffn=a; choose another "
        "name, or inherit from that Options class."
    )
    assert table.owners("width") == ["ffn=a"]


def test_another_spelling_in_names_is_another_declaration():
    """A name would not tell which of the two a tag is of."""
    table = KeyTable()
    table.declare("ffn=a", keys("ffn=a", tag="W{}"))
    with pytest.raises(UserError, match="is already declared differently by ffn=a"):
        table.declare("ffn=b", keys("ffn=b", tag="Wide{}"))


def test_a_key_of_every_run_cannot_be_a_part_s():
    table = KeyTable()
    table.declare("", EXAMPLE)
    with pytest.raises(
        UserError, match="the option 'size' is already declared as a key of every run"
    ):
        table.declare("ffn=a", {"size": dataclasses.replace(keys("ffn=a")["width"], name="size")})


def options_of_commands() -> set[str]:
    """Those of the commands that also take keys."""
    parsers = (
        *(sweep.parser(), reproducibility_audit.parser(), dry_run.parser()),
        request.parser(),
    )
    flags = [flag for parser in parsers for a in parser._actions for flag in a.option_strings]
    return {flag.removeprefix("--") for flag in flags if flag.startswith("--")} | {"print_config"}


@pytest.mark.parametrize(
    "name",
    ["layers", "to_dict", "changed", "index", "values", "_base", *sorted(options_of_commands())],
)
@pytest.mark.parametrize("annotation", one_in(5, [int, str, float | None, int | str, bool]))
def test_names_of_a_config_and_of_commands_are_reserved(name, annotation):
    key = dataclasses.replace(keys("ffn=a")["width"], name=name, annotation=annotation)
    with pytest.raises(UserError, match=f"the option name '{name}' is reserved"):
        KEYS.refuse_clashes("ffn=a", {name: key})


def test_no_command_reserves_more_than_its_options():
    assert set(COMMAND_OPTIONS) == options_of_commands() - {"help", "print_config"}


class Base:
    """A part."""

    class Options:
        base: int = option(1, "of the base")


class Child(Base):
    """A part with an option more."""

    class Options:
        own: int = option(2, "of the child")


class Silent(Base):
    """A part with those that it inherits."""


def test_a_part_has_the_options_that_it_inherits():
    found = {part: set(keys_of(options_of(part), role=Role.DATA)) for part in (Base, Child, Silent)}
    assert found == {Base: {"base"}, Child: {"base", "own"}, Silent: {"base"}}
    one, other = (keys_of(options_of(part), role=Role.DATA)["base"] for part in (Base, Child))
    assert one.declares_as(other)


def test_a_part_without_options_has_no_keys():
    assert keys_of(options_of(Bare), role=Role.DATA) == {}


class Bare:
    """A part."""


@pytest.mark.parametrize("item", ["a+b", "a*3", " a", "", "none"])
def test_a_listed_text_that_a_pattern_would_change_is_refused(item):
    class Options:
        word: str | None = option("x", "any text", per_layer=True, role=Role.ARCHITECTURE)

    key = keys_of(Options)["word"]
    assert key.problem(["c", None]) is None
    assert "which would be read back as a different value" in key.problem(["c", item]).message
