"""The colour and the dashes of each arm, the same on pages and in files of plots."""

from __future__ import annotations

# Okabe and Ito 2008, "Color Universal Design", without its yellow, which is too pale for a line,
# and its black, which is the baseline's, and with the gray that R adds to it. Seven colours and
# five dashes tell 35 arms apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#999999", "#E69F00")
DASHES = ((), (5, 1.5), (5, 1.5, 1, 1.5), (1, 1), (9, 2))
"""Lengths of dashes and gaps, in widths of the line; none: solid."""

_WHITE_ON = {"#0072B2"}  # black text is easier to read on the others


def colour_of(number: int) -> str | None:
    """The colour of an arm, by its number in the tables; None for the baseline, number 1, which has
    that of the text."""
    return None if number == 1 else COLOURS[(number - 2) % len(COLOURS)]


def dashes_of(number: int) -> tuple[float, ...]:
    """The dashes of an arm's line."""
    return () if number == 1 else DASHES[(number - 2) % len(DASHES)]


def hue(number: int) -> str:
    """The CSS class that colours what belongs to an arm."""
    return f"hue-{0 if number == 1 else (number - 2) % len(COLOURS) + 1}"


def hue_rules() -> str:
    """The CSS rules of these classes."""
    rules = [".hue-0 { --arm: var(--ink); --on-arm: var(--paper); }"]
    for index, colour in enumerate(COLOURS, start=1):
        text = "#ffffff" if colour in _WHITE_ON else "#000000"
        rules.append(f".hue-{index} {{ --arm: {colour}; --on-arm: {text}; }}")
    return "\n".join(rules) + "\n"
