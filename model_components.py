"""The catalog of components: every registry and its config key.

    python model_components.py

prints the components of each key, with label, one-line description and source. To add a component,
see CONTRIBUTING.md.
"""

from __future__ import annotations

import signal
import sys
import textwrap
from collections.abc import Mapping

import components.attention
import components.attention_mamba2
import components.cope
import components.delta_mixers
import components.latent_attention
import components.linear_attention
import components.mamba2
import components.moe
import components.path_attention
import components.rwkv7
import components.short_conv  # noqa: F401  (imported to register their components)
from components.activations import ACTIVATIONS
from components.attention_backends import ATTENTION_BACKENDS
from components.blocks import BLOCKS
from components.ffns import FFNS
from components.mixers import MIXERS
from components.multi_token import MTPS
from components.norms import NORMS
from components.parametrizations import PARAMETRIZATIONS
from components.positions import POSITIONS
from components.registry import Registry
from components.residuals import RESIDUALS
from components.rope_scalings import ROPE_SCALINGS

REGISTRIES: dict[str, Registry] = {
    registry.key: registry
    for registry in (
        MIXERS,
        ATTENTION_BACKENDS,
        POSITIONS,
        ROPE_SCALINGS,
        NORMS,
        BLOCKS,
        FFNS,
        ACTIVATIONS,
        RESIDUALS,
        PARAMETRIZATIONS,
        MTPS,
    )
}

__all__ = [
    "ACTIVATIONS",
    "ATTENTION_BACKENDS",
    "BLOCKS",
    "FFNS",
    "MIXERS",
    "MTPS",
    "NORMS",
    "PARAMETRIZATIONS",
    "POSITIONS",
    "REGISTRIES",
    "RESIDUALS",
    "ROPE_SCALINGS",
    "catalogue",
]


def catalogue(registries: Mapping[str, Registry] = REGISTRIES, width: int = 100) -> str:
    """All components by config key, as text of at most `width` columns."""
    return "\n\n".join(_section(registry, width) for registry in registries.values())


def _section(registry: Registry, width: int) -> str:
    lines = [f"{registry.title}  ({registry.key})"]
    indent = " " * 42
    for name in registry.names:
        entry = registry.entry(name)
        also = f" (also {', '.join(entry.aliases)})" if entry.aliases else ""
        text = entry.summary + also
        head = f"  {name:<23}{entry.label:<17}"
        lines += textwrap.wrap(text, width, initial_indent=head, subsequent_indent=indent)
        lines += textwrap.wrap(entry.paper, width, initial_indent=indent, subsequent_indent=indent)
    return "\n".join(lines)


def main(
    argv: list[str] | None = None,
    registries: Mapping[str, Registry] = REGISTRIES,
    about: str = __doc__,
) -> int:
    """Print the catalog, or `about` for --help; returns the exit status."""
    given = sys.argv[1:] if argv is None else argv
    if given in (["--help"], ["-h"]):
        print(about)
        return 0
    if given:
        print("the catalog takes no arguments.", file=sys.stderr)
        return 2
    print(catalogue(registries))
    return 0


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # exit silently in `| head`
    sys.exit(main())
