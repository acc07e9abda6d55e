"""Values that differ from layer to layer: how they are read, checked, cut and spelled."""

from __future__ import annotations

from collections.abc import Iterator
from time import process_time

import pytest

from errors import UserError
from options import Key, keys_of, option
from patterns import MOST_LAYERS_TO_DIFFER, Pattern, by_layer, read_pattern, spelled


class Options:
    """Keys of each type that layers may differ in."""

    width: int | None = option(None, "how wide", at_least=1, per_layer=True)
    share: float = option(0.5, "how much", above=0, per_layer=True)
    kind: str = option("rope", "which", choices=("rope", "none", "alibi"), per_layer=True)
    fast: bool = option(False, "whether", per_layer=True)
    depth: int = option(1, "of the whole model")


HUGE = "rope*99999999999+none"

KEYS = keys_of(Options, role="architecture", section="Test")


def values(key: Key, text: str, layers: int) -> list:
    """What each layer has."""
    pattern = key.converted(key.parse(text))
    return [pattern.at(layer) for layer in range(layers)]


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("kind", "rope+none", ["rope", "none", "rope", "none", "rope", "none"]),
        ("kind", "rope*2+none", ["rope", "rope", "none", "rope", "rope", "none"]),
        ("kind", "rope+none*", ["rope", "none", "none", "none", "none", "none"]),
        ("kind", "rope*2+alibi+none*", ["rope", "rope", "alibi", "none", "none", "none"]),
        ("kind", "alibi+rope*2+none*1", ["alibi", "rope", "rope", "none", "alibi", "rope"]),
        ("kind", " rope * 2 + none ", ["rope", "rope", "none", "rope", "rope", "none"]),
        ("width", "8+none", [8, None, 8, None, 8, None]),
        ("width", "none*2+8*", [None, None, 8, 8, 8, 8]),
        ("fast", "true+False", [True, False, True, False, True, False]),
        ("share", "1+2", [1.0, 2.0, 1.0, 2.0, 1.0, 2.0]),
    ],
)
def test_what_each_layer_has(key, text, expected):
    found = values(KEYS[key], text, 6)
    assert found == expected
    assert [type(value) for value in found] == [type(value) for value in expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e+5*3+1e-4", [1e5, 1e5, 1e5, 1e-4]),
        ("1e+5", [1e5]),
        ("1E+5+2.5e+3", [1e5, 2500.0]),
        ("1.e+2+3.", [100.0, 3.0]),
        ("5e-1+5e+1*2", [0.5, 50.0, 50.0]),
        ("10000+1e6*", [1e4, 1e6, 1e6]),
    ],
)
def test_the_sign_of_an_exponent_is_no_separator(text, expected):
    meant = KEYS["share"].converted(KEYS["share"].parse(text))
    found = [
        meant.at(layer) if isinstance(meant, Pattern) else meant for layer in range(len(expected))
    ]
    assert found == expected


def test_a_name_that_ends_in_a_digit_and_e_is_separated():
    """Only where values may be numbers is `1e+...` one of them."""
    pattern = read_pattern("v1e+v2", str, of_numbers=False)
    assert pattern.values == ["v1e", "v2"]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["rope", "none"], "rope+none"),
        (("rope", "rope", "none"), "rope+rope+none"),
        (["rope", "rope"], "rope+rope"),
        (["rope"], "rope"),
        ("rope*1", "rope"),
        ("rope*", "rope*"),
    ],
)
def test_a_list_is_a_pattern_too(given, meant):
    """The one with its values between pluses, so that both are refused alike."""
    assert str(KEYS["kind"].converted(given)) == meant
    assert KEYS["kind"].converted(meant) == KEYS["kind"].converted(given)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "kind",
            "rope+",
            "kind='rope+' contains '', which is not value or value*count; write a pattern as",
        ),
        ("kind", "+rope", "contains ''"),
        ("kind", "*3", "contains '*3', which is not value or value*count"),
        ("kind", "rope**2", "contains 'rope**2'"),
        ("kind", "rope*-1+none", "contains 'rope*-1'"),
        ("kind", "rope*2.5+none", "contains 'rope*2.5'"),
        ("kind", "rope*٣+none", "contains 'rope*٣', which is not value or value*count"),
        ("width", "٣+none", "width takes int or none, not '٣' (str)."),
        ("kind", "rope*x", "contains 'rope*x'"),
        ("kind", "rope*0+none", "kind='rope*0+none' assigns 'rope*0' to no layer; remove it."),
        (
            "kind",
            "rope*+none",
            "uses '*' without a count before its last value; write a pattern as 'a*3+b'",
        ),
        ("kind", "rope*+none*", "uses '*' without a count before its last value"),
        ("kind", "rope*" + "9" * 19 + "+none", "which is not value or value*count"),
        ("kind", [], "kind=[] is an empty list; list at least one value."),
        ("kind", "rope+nome", "unknown kind 'nome'; did you mean 'none'?"),
        ("kind", ["rope", 3], "kind takes str, not 3 (int). Choices: rope, none, alibi."),
        ("width", "8+0", "width='8+0', layer 1: width=0 must be at least 1."),
        ("width", "8*3+16*2+0", "width='8*3+16*2+0', layer 5: width=0 must be at least 1."),
        ("width", [8, None, 0], "width=[8, None, 0], layer 2: width=0 must be at least 1."),
        ("width", "8*3+0*", "width='8*3+0*', layer 3: width=0 must be at least 1."),
        ("width", [8, [8]], "width=[8, [8]], layer 1: width takes int or none, not [8] (list)."),
        ("width", "8+true", "width takes int or none, not 'true' (str)."),
        ("width", "8+x", "width takes int or none, not 'x' (str)."),
        ("share", "0.5+none", "share takes float, not 'none' (str)."),
        ("share", "1e+", "share takes float, not '1e+' (str)."),
        ("depth", "1+2", "depth takes int, not '1+2' (str)."),
        ("depth", [1, 2], "depth takes int, not [1, 2] (list)."),
    ],
)
def test_what_is_no_pattern_is_refused(key, value, message):
    meant = KEYS[key].parse(value) if isinstance(value, str) else value
    problem = KEYS[key].problem(meant)
    assert problem.keys == (key,)
    assert message in problem.message


def test_sound_ones_have_no_problem():
    for key, value in (("kind", "rope+none*"), ("width", [8, None]), ("share", "1e+5*3+1e-4")):
        assert KEYS[key].problem(value) is None


# Lengths: nothing is expanded that is not checked


def test_the_length_is_known_before_anything_is_expanded():
    pattern = KEYS["kind"].converted(HUGE)
    assert (pattern.length, pattern.repeats) == (100_000_000_000, True)
    assert [pattern.at(layer) for layer in (0, 99_999_999_998, 99_999_999_999, 10**11)] == [
        "rope",
        "rope",
        "none",
        "rope",
    ]
    assert pattern.values == ["rope", "none"]
    assert str(pattern) == HUGE
    assert str(pattern.simplified()) == HUGE
    assert KEYS["kind"].problem(HUGE) is None


def test_a_rest_is_not_of_the_length():
    pattern = KEYS["kind"].converted("rope*3+none*")
    assert (pattern.length, pattern.repeats) == (3, False)


@pytest.mark.parametrize(
    ("text", "layers", "cut"),
    [
        ("rope*3+none", 4, "rope*3+none"),
        ("rope*3+none", 9, "rope*3+none"),
        ("rope*3+none", 3, "rope*3"),
        ("rope*3+none", 2, "rope*2"),
        ("rope*3+none*", 3, "rope*3+none*"),
        ("rope*3+none*", 2, "rope*2"),
        ("rope+none+alibi*2", 3, "rope+none+alibi"),
        (HUGE, 2, "rope*2"),
    ],
)
def test_cut_to_fewer_layers(text, layers, cut):
    """What is left says the same of each of them."""
    pattern = KEYS["kind"].converted(text)
    shorter = pattern.cut(layers)
    assert str(shorter) == cut
    assert [shorter.at(n) for n in range(layers)] == [pattern.at(n) for n in range(layers)]


# Spelling


@pytest.mark.parametrize(
    ("text", "simplest"),
    [
        ("rope+rope+none", "rope*2+none"),
        ("rope+none+rope+none", "rope+none"),
        ("rope*2+none+rope*2+none", "rope*2+none"),
        ("rope+none+none*", "rope+none*"),
        ("rope*2+rope*", "rope"),
        ("rope*2+rope", "rope"),
        ("rope+none+rope", "rope+none+rope"),
        ("rope+alibi+none*2+none*", "rope+alibi+none*"),
    ],
)
def test_the_shortest_form(text, simplest):
    pattern = KEYS["kind"].converted(text)
    simplified = pattern.simplified()
    assert str(simplified) == simplest
    if isinstance(simplified, Pattern):
        assert [simplified.at(n) for n in range(24)] == [pattern.at(n) for n in range(24)]
    again = KEYS["kind"].converted(simplest)
    assert again == simplified


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (["a", "a", "a"], "a"),
        (["a", "b", "a", "b"], "a+b"),
        (["a", "b", "a"], "a+b"),  # of three layers, it says the same
        (["a", "a", "b", "a"], "a*2+b"),
        (["a", "b", "b", "b"], "a+b*3"),
        ([1, True], "1+true"),
        ([None, 8], "none+8"),
    ],
)
def test_the_pattern_of_given_layers(layers, expected):
    assert str(by_layer(layers)) == expected


@pytest.mark.parametrize(
    ("texts", "layers", "said"),
    [
        (("rope+none", "rope+none+rope", "rope+none*1+rope+none*"), 3, "rope+none"),
        (("rope+none*", "rope+none*2", "rope+none+none*"), 3, "rope+none*"),
        (("rope+none*2", "rope+none*2+rope"), 4, "rope+none*2"),
        (("rope+none+rope*2", "rope+none+rope", "rope+none+rope+rope*"), 4, "rope+none+rope"),
        (("rope*3+none", "rope*2+rope"), 3, "rope"),
        ((HUGE,), 5, "rope"),
    ],
)
def test_patterns_that_say_the_same_of_all_layers_are_spelled_alike(texts, layers, said):
    for text in texts:
        assert str(KEYS["kind"].converted(text).over(layers)) == said


def test_over_layers_it_says_what_it_said():
    for text in ("rope+none+rope", "rope*2+none*", "rope*3+none", "alibi+rope*2+none+rope*2+none"):
        pattern = KEYS["kind"].converted(text)
        for layers in range(1, 20):
            said = pattern.over(layers)
            found = [said.at(n) if isinstance(said, Pattern) else said for n in range(layers)]
            assert found == [pattern.at(n) for n in range(layers)]


def test_thousands_of_layers_take_no_time():
    for text in ("rope*4000+none", "rope+none*4000", "rope*1999+none+rope*2000"):
        assert KEYS["kind"].converted(text).over(10_000).at(1999) in ("rope", "none")


def test_thousands_of_values_take_no_time():
    widths = list(range(1, MOST_LAYERS_TO_DIFFER + 1))
    for given in (widths, "+".join(map(str, widths))):
        started = process_time()
        pattern = KEYS["width"].converted(given)
        assert KEYS["width"].problem(given) is None
        assert pattern.values == widths
        assert pattern.over(MOST_LAYERS_TO_DIFFER) == pattern
        assert process_time() - started < 2  # in quadratic time, half a minute


class Unexpandable(list):
    """A list of very many values, which fails if more than a few are looked at."""

    def __len__(self) -> int:
        return 10**12

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("expanded")


def test_the_length_of_a_list_is_checked_before_its_values():
    problem = KEYS["width"].problem(Unexpandable([1, 2, 3, 4]))
    assert problem.message == (
        "width=[1, 2, 3, ...] (1,000,000,000,000 values) lists 1,000,000,000,000 values, but a "
        "pattern covers at most 10,000 layers; shorten it."
    )


def test_the_length_of_a_text_is_checked_before_its_values():
    longest, too_long = ("1e+5+" * values + "1e+5" for values in (9_999, 10_000))
    assert KEYS["share"].problem(longest) is None
    assert "lists 10,001 values, but a pattern" in KEYS["share"].problem(too_long).message


def test_equal_numbers_of_two_types_are_two_values():
    assert by_layer([1, 1.0]) == Pattern(((1, 1), (1.0, 1)))
    assert by_layer([True, 1]).values == [True, 1]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        (True, "true"),
        (3, "3"),
        (10000.0, "10000"),
        (0.5, "0.5"),
        (1e-5, "1e-05"),
        (1e16, "1e+16"),
        (float("inf"), "inf"),
        ("rope", "rope"),
    ],
)
def test_a_value_is_spelled_as_a_flag_takes_it(value, text):
    assert spelled(value) == text


@pytest.mark.parametrize(
    "numbers", [[1e16, 1e-5], [1e20, 1e300, 3.0], [0.1, 1 / 3], [1e15, 123456789.0]]
)
def test_patterns_of_numbers_survive_their_spelling(numbers):
    pattern = by_layer(numbers)
    assert KEYS["share"].converted(str(pattern)) == pattern


def test_of_an_unreadable_text_the_position_is_told():
    with pytest.raises(UserError, match="contains 'b\\*c', which is not value"):
        read_pattern("a+b*c", str, of_numbers=False)
