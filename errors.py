"""User-fixable errors, and helpers for their messages.

`UserError` is for mistakes in the user's input: a command prints its message without a traceback.
Any other exception is a bug, in this project or in the user's code, and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar


class UserError(ValueError):
    """A user-fixable error. The message says what is wrong, with the values, and how to fix it."""

    exit_status: ClassVar[int] = 1
    """Exit status of a command that fails with this error."""
    missing_flag: ClassVar[str] = ""
    """A flag with which the command would do what it refused to do without it."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One config error: the keys it concerns, and a sentence that names the fix."""

    keys: tuple[str, ...]
    message: str


class ConfigError(UserError):
    """All problems found in a config, reported together."""

    exit_status = 2

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(problems)
        messages = [problem.message for problem in self.problems]
        head = "1 config error" if len(messages) == 1 else f"{len(messages)} config errors"
        indented = ("\n    ".join(map(printable, text.split("\n"))) for text in messages)
        super().__init__("\n".join([f"{head}:", *(f"  - {text}" for text in indented)]))


@contextlib.contextmanager
def file_errors(action: str) -> Iterator[None]:
    """Turn an OSError in the body into a UserError `cannot <action>: <reason>`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot {action}: {error.strerror or error}.") from error


@contextlib.contextmanager
def error_note(note: str) -> Iterator[None]:
    """Add a note to exceptions in the body, for example to name the user code that failed.

    Notes are printed below the traceback. A UserError has no traceback and gets no note.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        error.add_note(note)
        raise


def is_unprintable(character: str) -> bool:
    """Whether a character is a control character or a lone surrogate (undecodable bytes)."""
    return unicodedata.category(character) in ("Cc", "Cs")


def printable(text: str) -> str:
    """Escape unprintable characters, so that the text is a single visible line on any terminal:
    control characters, ANSI escapes, text-direction marks and lone surrogates become `\\x1b`,
    `\\u202e`, `\\ud800`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def quoted(value: Any, longest: int = 80) -> str:
    """`repr(value)` for messages: a single line, shortened; never raises."""
    if isinstance(value, list | tuple) and len(value) > longest:
        first = quoted(list(value[:3]), longest)
        return f"{first.removesuffix(']')}, ...] ({len(value):,} values)"
    try:
        text = printable(repr(value))
    except (Exception, SystemExit):  # a user-defined __repr__, or an int of over 4300 digits
        return f"<{type(value).__name__} without a repr>"
    if len(text) <= longest:
        return text
    half = longest // 2 - 2
    return f"{text[:half]}...{text[-half:]} ({len(text)} characters)"


VALUE_SYNONYMS = {
    "gpu": "cuda",
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
}
"""Names of values in other projects, and their equivalents here."""

KEY_SYNONYMS = {
    "lr": "learning_rate",
    "norm": "normalization",
    "pos": "position_encoding",
    "ffn": "ffn_type",
    "mlp": "ffn_type",
    "wd": "weight_decay",
    "act": "activation",
    "arch": "arch_preset",
    "attention": "mixer",
    "attn": "mixer",
    "rope": "position_encoding",
    "tie_embeddings": "weight_tying",
    "eps": "norm_eps",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "d_model": "n_embd",
    "dim": "n_embd",
    "embed_dim": "n_embd",
    "hidden_dim": "n_embd",
    "hidden_size": "n_embd",
    "context": "block_size",
    "context_length": "block_size",
    "max_length": "block_size",
    "max_seq_len": "block_size",
    "seq_len": "sequence_length",
    "seqlen": "sequence_length",
    "bs": "batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "max_grad_norm": "grad_clip",
    "max_steps": "max_iters",
    "num_steps": "max_iters",
    "total_steps": "max_iters",
    "steps": "max_iters",
    "log_every": "log_interval",
    "precision": "dtype",
    "random_seed": "seed",
    "wandb": "log_to",
}
"""Names of config keys in other projects, and their equivalents here."""

_SYNONYMS = KEY_SYNONYMS | VALUE_SYNONYMS


def nearest(name: str, choices: Iterable[Any]) -> str:
    """`; did you mean 'x'?` for the choice closest to `name`, else a period."""
    names = {str(choice).lower(): str(choice) for choice in choices}
    text = str(name)[:100].lower()
    meant = _SYNONYMS.get(text)
    if meant in names:
        return f"; did you mean {meant!r}?"
    matches = difflib.get_close_matches(text, names, n=1, cutoff=0.6)
    return f"; did you mean {names[matches[0]]!r}?" if matches else "."


def listed(choices: Iterable[Any]) -> str:
    """`Choices: a, b.`"""
    return f"Choices: {', '.join(str(choice) for choice in choices)}."


def unknown_name(kind: str, name: str, choices: Iterable[Any]) -> str:
    """The message for a name that is not one of the choices, with the closest choice and all."""
    names = list(choices)
    return f"unknown {kind} {quoted(name)}{nearest(name, names)} {listed(names)}"
