"""A page as one text: a template filled, with its style, its scripts and its policy."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pages.palette import hue, hue_rules

PAGE_FILE = "report.html"
"""What a page is called in the folder of the run or of the sweep that it shows."""

IN_LOGS_ONLY = ("host", "out_dir")
"""Facts and keys of a run that its page leaves out, since pages are shared."""

_HERE = Path(__file__).parent


def render(
    folder: Path, template: str, scripts: Sequence[str], *, live: bool = False, **content: Any
) -> str:
    """The page as text. It asks nothing of any other address: style and scripts are in it, and its
    policy allows those, by their hashes, and nothing else.

    Args:
        folder: Has `templates/` of the page's own, and its own scripts.
        template: The template, which extends `base.html`.
        scripts: Files of `folder`, run after the shared ones.
        live: Whether the page may load itself again, to show what is new.
        content: What the template shows; text is escaped.
    """
    style, script = _style(), _script(folder, tuple(scripts))
    policy = [
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'",
        f"style-src {_source(style)}",
        f"script-src {_source(script)}",
        *(["connect-src 'self'"] if live else []),
    ]
    page = _templates(folder).get_template(template)
    return page.render(policy="; ".join(policy), style=style, script=script, **content)


@cache
def _templates(folder: Path) -> Environment:
    """The templates, compiled once; text is escaped, and a name that is not known is an error."""
    templates = Environment(
        loader=FileSystemLoader([folder / "templates", _HERE / "templates"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["hue"] = hue
    templates.filters["breakable"] = breakable
    templates.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return templates


def breakable(name: str) -> Markup:
    """A name, escaped, that a line may break after each `_`, `=`, `-`, `,` and `/`. A word
    among several is broken only if it is longer than a line."""
    words = name.split(" ")
    if len(words) == 1:
        return _breakable(name)
    span = Markup('<span class="word">{}</span>')
    return Markup(" ").join(span.format(_breakable(word)) for word in words)


def _breakable(word: str) -> Markup:
    escaped = [Markup("<wbr>")]
    for character in word:
        escaped.append(Markup.escape(character))
        if character in "_=-,/":
            escaped.append(Markup("<wbr>"))
    return Markup("").join(escaped[1:])


@cache
def _style() -> Markup:
    return Markup(_text(_HERE / "style.css") + hue_rules())


@cache
def _script(folder: Path, names: tuple[str, ...]) -> Markup:
    files = (_HERE / "page.js", _HERE / "chart.js", *(folder / name for name in names))
    return Markup("\n".join(map(_text, files)))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def _source(text: str) -> str:
    """How a Content-Security-Policy names a text that may be part of the page."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
