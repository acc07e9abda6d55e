"""The log of a pod, kept on this machine without secrets."""

from __future__ import annotations

import contextlib
from pathlib import Path

from cloud.failures import Transient
from cloud.pod_link import PodLink
from cloud.redaction import Redactor
from errors import printable

LONGEST_LINE = 10_000
"""Bytes of an unfinished line that are kept back until its end comes."""

PARTS_AT_A_TIME = 16
"""Replies that one look reads at most."""

LINES_KEPT = 200


class PodLog:
    """Reads the log of a pod bit by bit.

    Args:
        link: To the pod's server.
        path: Where the log is kept.
        redact: Hides secrets.
    """

    def __init__(self, link: PodLink, path: Path, redact: Redactor):
        self._link, self._path, self._redact = link, path, redact
        self._offset = 0
        self._rest = b""
        self.lines: list[str] = []
        """The last lines."""

    def restart(self) -> None:
        """Read from the start, since the pod's server has not begun a job."""
        self._offset, self._rest = 0, b""

    def read(self, to_end: bool) -> None:
        """Read what has been added. A pod that does not answer changes nothing.

        Args:
            to_end: Whether to take the last line although it may be unfinished.
        """
        with contextlib.suppress(Transient):
            for _ in range(PARTS_AT_A_TIME):
                part = self._link.log(self._offset)
                self._offset += len(part)
                self._rest += part.replace(b"\r", b"\n")
                if not part:
                    break
        whole, _, rest = self._rest.rpartition(b"\n")
        if to_end or len(rest) > LONGEST_LINE:
            whole, rest = self._rest, b""
        self._rest = rest  # a secret may be cut in two here
        self._keep(self._redact(whole.decode("utf-8", errors="replace")))

    def _keep(self, text: str) -> None:
        lines = [printable(line) for line in text.splitlines() if line.strip()]
        self.lines = [*self.lines, *lines][-LINES_KEPT:]
        with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
