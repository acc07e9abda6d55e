"""Console output during training: lines, and on a terminal a progress bar below them.

The console never ends a run or a sweep. Once a write fails (the terminal or the pipe was closed),
printing stops and the work continues.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from cli import discard_output, escape_what_cannot_be_encoded


class Console:
    """Prints lines; `open_bar` adds a progress bar if standard output is a terminal.

    Args:
        silent: Print nothing.
    """

    def __init__(self, silent: bool = False) -> None:
        self._silent = silent
        self._bar: tqdm | None = None
        escape_what_cannot_be_encoded()

    def open_bar(self, done: float, total: float | None, **look: Any) -> None:
        """Show a progress bar that starts at `done`. `total` may be None; `look` goes to tqdm."""
        self._attempt(lambda: self._open_bar(done, total, look))

    def _open_bar(self, done: float, total: float | None, look: dict[str, Any]) -> None:
        self._bar = tqdm(
            total=total,
            initial=done,
            file=sys.stdout,
            dynamic_ncols=True,
            leave=False,
            disable=not sys.stdout.isatty(),
            **look,
        )

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        self._attempt(lambda: self._print(text))

    def _print(self, text: str) -> None:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def advance(self, done: float, note: str = "") -> None:
        """Move the bar to `done`, with a note next to it; cheap enough to call every step."""
        if self._bar is not None and not self._bar.disable:
            self._attempt(lambda: self._advance(done, note))

    def _advance(self, done: float, note: str) -> None:
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._attempt(self._bar.close)

    def _attempt(self, write: Callable[[], object]) -> None:
        """Call `write`, unless an earlier write failed."""
        if self._silent:
            return
        try:
            write()
        except (OSError, ValueError):  # ValueError: the stream is closed
            self._silent = True
            discard_output()
            if self._bar is not None:
                self._bar.disable = True
