"""Write docs/catalogue.md: every registered component, its cost, and what it was checked against.

    python -m scripts.catalogue            writes the page
    python -m scripts.catalogue --check    exits with 1 if the page is not up to date

The cost of each component is its difference from the llama preset, on the meta device.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from cli import run_cli
from components.registry import Entry, Registry
from errors import ConfigError, UserError
from interop.huggingface import family_of
from model_builder import GPT
from model_components import ATTENTION_BACKENDS, REGISTRIES
from model_config import ModelArchitectureConfig
from options import Key, Role
from scripts.component_references import (
    Reference,
    of_component,
    of_option,
    saved_differences,
    shown_difference,
)
from tests.interop.published import PUBLISHED
from training_logger import format_bytes, format_count

PAGE = Path(__file__).resolve().parents[1] / "docs" / "catalogue.md"
BASELINE = {"vocab_size": 50_304}
TOKENS = 1024
MODELS_SHOWN = 3

COMPANIONS: dict[tuple[str, str], dict[str, Any]] = {
    **{
        ("rope_scaling", name): {"rope_scaling_factor": 4.0}
        for name in ("linear", "ntk", "yarn", "llama3")
    },
    ("residual", "ngpt"): {"normalization": "none"},
    **{("activation", name): {"ffn_type": "glu"} for name in REGISTRIES["activation"].names},
}
"""Other keys that a component needs, or that most choices of its key need."""


INTRODUCTION = """# Component catalog

Every component that a config can select. `python -m scripts.catalogue` writes this page;
`python model_components.py` prints the list.

The columns for parameters, FLOPs per token and decoding state show how each changes when that one
key of the `llama` preset is changed. The preset has {parameters} parameters, {flops:,} FLOPs per
token for sequences of {tokens:,} tokens, and {state} of decoding state per sequence in bfloat16.
Activations are changed within a `glu` FFN; components that need other keys are shown with them.

**Models**: of the {models} published models whose configs the tests load
([interop.md](interop.md)), those with a layer that uses the component, or that sets the option to
a non-default value.

**Reference**: what the tests compare the component with, given the same random weights: a class of
`transformers` or of another package, or "formula", the component's formula written out in a test.
**Difference**: the largest measured error, divided by the largest magnitude in the reference
output; about 1e-16 where both compute in float64, 1e-7 in float32
([verification.md](verification.md)). "-": compared exactly, so no error is measured."""


@cache
def page() -> str:
    """The whole page."""
    cost = _model({}).cost_report(TOKENS)
    introduction = INTRODUCTION.format(
        parameters=format_count(cost["parameters"]),
        flops=cost["flops_per_token"],
        tokens=TOKENS,
        state=format_bytes(cost["decoding_state_bytes"]),
        models=len(published()),
    )
    sections = [_section(registry, cost) for registry in REGISTRIES.values() if _is_shown(registry)]
    return "\n\n".join([introduction, *sections]) + "\n"


def _is_shown(registry: Registry) -> bool:
    """Attention backends are not: they do not change the architecture."""
    return registry is not ATTENTION_BACKENDS


def _model(keys: dict[str, Any]) -> GPT:
    with torch.device("meta"):
        return GPT(ModelArchitectureConfig.from_preset("llama", **BASELINE, **keys))


def _section(registry: Registry, baseline: dict[str, Any]) -> str:
    rows = [_row(registry, registry.entry(name), baseline) for name in registry.names]
    lines = [f"## {registry.title} (`{registry.key}`)", "", *_table(COLUMNS, rows)]
    options = list(_options(registry))
    if options:
        lines += ["", *_table(OPTION_COLUMNS, options)]
    return "\n".join(lines)


COLUMNS = (
    "value",
    "in names",
    "description",
    "paper",
    "parameters",
    "FLOPs",
    "state",
    "models",
    "reference",
    "difference",
)
OPTION_COLUMNS = (
    *("option", "default", "description", "used by", "models", "reference", "difference"),
)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    rule = [
        "---:" if name in ("parameters", "FLOPs", "state", "difference") else "---"
        for name in columns
    ]
    return [_line(columns), f"|{'|'.join(rule)}|", *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _row(registry: Registry, entry: Entry, baseline: dict[str, Any]) -> list[str]:
    name = entry.name
    reference = of_component(registry, name)
    return [
        f"`{name}`",
        entry.label,
        entry.summary.rstrip("."),
        entry.paper or "-",
        *_costs(registry.key, name, baseline),
        _listed(model for model, config in published() if name in _values(config, registry.key)),
        reference.name,
        shown_difference(reference, differences()),
    ]


def _costs(key: str, name: str, baseline: dict[str, Any]) -> tuple[str, str, str]:
    """Differences in parameters, FLOPs per token and bytes of decoding state."""
    keys = COMPANIONS.get((key, name), {})
    if keys:
        baseline = _model({k: v for k, v in keys.items() if k == "ffn_type"}).cost_report(TOKENS)
    try:
        cost = _model({**keys, key: name}).cost_report(TOKENS)
    except UserError as error:
        raise UserError(f"{key}={name} cannot be added to llama: {error}") from None
    return (
        _difference(_trained(cost) - _trained(baseline), format_count),
        _difference(cost["flops_per_token"] - baseline["flops_per_token"], format_count),
        _difference(cost["decoding_state_bytes"] - baseline["decoding_state_bytes"], format_bytes),
    )


def _trained(cost: dict[str, Any]) -> int:
    """The number of parameters, with those that only training uses."""
    return cost["parameters"] + cost.get("mtp_parameters", 0)


@cache
def published() -> list[tuple[str, ModelArchitectureConfig]]:
    """The published models that the tests read, with their architectures."""
    return [
        (name, ModelArchitectureConfig.from_dict(family_of(fields).read(fields)))
        for name, (_, fields) in sorted(PUBLISHED.items())
    ]


def _values(config: ModelArchitectureConfig, key: str) -> set[Any]:
    """The values of a key in the layers that use it."""
    return {layer.get(key) for layer in config.kinds if key in layer}


def _changes(config: ModelArchitectureConfig, key: Key) -> bool:
    """Whether an architecture has another value of an option than it would have by default."""
    values = _values(config, key.name)
    if key.derive is None or not values:
        return bool(values - {key.default})
    given = {name: value for name, value in config.to_dict().items() if name != key.name}
    try:
        return values != _values(ModelArchitectureConfig.from_dict(given), key.name)
    except ConfigError:  # the default does not go with the other keys
        return True


def _listed(models: Iterable[str]) -> str:
    """The first models by name, and how many more there are."""
    names = list(models)
    shown = ", ".join(names[:MODELS_SHOWN]) or "-"
    more = len(names) - MODELS_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _difference(value: float, spelled: Any) -> str:
    if value == 0:
        return "0"
    return f"{'+' if value > 0 else '-'}{spelled(abs(value))}"


def _options(registry: Registry) -> Iterator[list[str]]:
    """A row for each option of the registry's components."""
    for key, owners in owned_by(registry):
        default = "none" if key.default is None else str(key.default)
        reference = of_option(registry, key, owners)
        yield [
            f"`{key.name}`",
            default,
            key.help,
            ", ".join(f"`{owner}`" for owner in owners),
            _listed(model for model, config in published() if _changes(config, key)),
            reference.name,
            shown_difference(reference, differences()),
        ]


def owned_by(registry: Registry) -> list[tuple[Key, list[str]]]:
    """Options of the architecture, other than those that choose components, and their owners."""
    owned: dict[str, tuple[Key, list[str]]] = {}
    for name in registry.names:
        for key in registry.entry(name).keys.values():
            if key.name not in REGISTRIES and key.role == Role.ARCHITECTURE:
                owned.setdefault(key.name, (key, []))[1].append(name)
    return list(owned.values())


@cache
def differences() -> dict[str, float]:
    """What the tests of the references measured."""
    return saved_differences()


def references() -> list[Reference]:
    """Every reference of the page."""
    shown = [registry for registry in REGISTRIES.values() if _is_shown(registry)]
    of_components = [of_component(each, name) for each in shown for name in each.names]
    return of_components + [
        of_option(registry, key, owners) for registry in shown for key, owners in owned_by(registry)
    ]


def main(argv: list[str]) -> int:
    """Write or check the page; returns the exit status."""
    flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    flags.add_argument("--check", action="store_true", help="exit with 1 if it is outdated")
    text = page()
    if flags.parse_args(argv).check:
        current = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        if current != text:
            print(f"{PAGE} is outdated; run python -m scripts.catalogue.")
            return 1
        return 0
    PAGE.write_text(text, encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    run_cli(main)
