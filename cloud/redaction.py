"""Secrets: reading them, and keeping them out of all text."""

from __future__ import annotations

import json
import os
import re
import stat
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path

from errors import UserError, quoted

SECRETS_FILE = "secrets.env"

API_KEY = "RUNPOD_API_KEY"
S3_KEYS = ("RUNPOD_S3_ACCESS_KEY", "RUNPOD_S3_SECRET_KEY")

HIDDEN = "[secret]"
SHORTEST = 6
"""Characters of a value that is hidden; a shorter one occurs in too many words."""


class Redactor:
    """Replaces secrets in text by `[secret]`."""

    def __init__(self, secrets: Iterable[str] = ()):
        self._secrets: list[str] = []
        for secret in secrets:
            self.add(secret)

    def add(self, secret: str) -> None:
        """Hide one more value from now on, also as it is spelled in JSON and in URLs."""
        for text in {secret, json.dumps(secret)[1:-1], urllib.parse.quote(secret)}:
            if len(text) >= SHORTEST and text not in self._secrets:
                self._secrets.append(text)
        self._secrets.sort(key=len, reverse=True)

    def __call__(self, text: object) -> str:
        shown = str(text)
        for secret in self._secrets:
            shown = shown.replace(secret, HIDDEN)
        return shown

    def found_in(self, content: bytes) -> bool:
        """Whether a secret occurs in some content."""
        return any(secret.encode() in content for secret in self._secrets)


def read_secrets(path: Path, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The secrets of a file of lines NAME=value, and RunPod's in the environment, which win.

    Raises:
        UserError: A line cannot be parsed, or other users may read the file. The message shows no
            value.
    """
    found: dict[str, str] = {}
    if path.exists():
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO) and os.name == "posix":
            raise UserError(f"other users may read {path}, which holds secrets; chmod 600 {path}")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            name, equals, value = text.removeprefix("export ").partition("=")
            if not equals or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name.strip()):
                raise UserError(f"{path}: line {number} is not NAME=value.")
            value = value.strip()
            if value[:1] == value[-1:] and value[:1] in ("'", '"') and len(value) > 1:
                value = value[1:-1]
            if not value.isprintable():
                raise UserError(f"{path}: line {number} has a value with unprintable characters.")
            found[name.strip()] = value
    for name in (API_KEY, *S3_KEYS):
        if environment.get(name):
            found[name] = environment[name].strip()
    return {name: value for name, value in found.items() if value}


def api_key(secrets: Mapping[str, str]) -> str:
    """The key of RunPod's API. Raises UserError if there is none."""
    key = secrets.get(API_KEY)
    if not key:
        raise UserError(
            f"no RunPod API key; set {API_KEY}, or copy secrets.env.template to {SECRETS_FILE} and "
            "fill it in."
        )
    if not re.fullmatch(r"[!-~]+", key):  # what an HTTP header can hold
        raise UserError(f"{API_KEY} has spaces or non-ASCII characters; copy it again.")
    return key


def for_pod(secrets: Mapping[str, str]) -> dict[str, str]:
    """The secrets that a pod gets: all but RunPod's own. Raises UserError for a reserved name."""
    given = {name: value for name, value in secrets.items() if not name.startswith("RUNPOD_")}
    for name in given:
        if name.startswith("NANOARCH_"):
            raise UserError(
                f"{quoted(name)}: names with NANOARCH_ are reserved; rename the secret."
            )
    return given
