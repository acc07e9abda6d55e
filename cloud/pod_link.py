"""Requests to the server in a pod (`cloud/pod/server.py`), through RunPod's proxy."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cloud.failures import CloudError, Transient
from cloud.timekeeping import Bounded
from errors import UserError

REPLY_SECONDS = 60.0
"""How long one request may take; RunPod's proxy gives up after 100 s."""

PART_BYTES = 2**22
"""Bytes of a package per request; a slow connection must send them within REPLY_SECONDS."""

LARGEST_REPLY = 2**26
"""Maximum bytes read from a reply."""

LOG_BYTES = 2**16
"""Bytes of the log per reply."""


class PodLink:
    """The requests to one pod. Each raises Transient if the pod does not answer as expected.

    Args:
        address: Base URL of the pod's port.
        token: The token that the server expects.
        bounded: Runs a call within a time limit.
        given_up: Polled while waiting for a reply.
    """

    def __init__(
        self,
        address: str,
        token: str,
        bounded: Bounded,
        given_up: Callable[[], bool] = lambda: False,
    ):
        self._address, self._token = address, token
        self._bounded, self._given_up = bounded, given_up

    def status(self) -> dict[str, Any]:
        """The status of the job."""
        return self._json("GET", "/status")

    def log(self, offset: int) -> bytes:
        """The log from a byte on, as much as one reply holds."""
        return self._request("GET", f"/log?offset={offset}")[:LOG_BYTES]

    def manifest(self) -> dict[str, Any]:
        """Size and SHA-256 of every file of the results. Transient while the pod reads them."""
        found = self._json("GET", "/files")
        if found.get("reading"):
            raise Transient("the pod is still reading its results")
        return found

    def read(self, path: str, offset: int, length: int) -> bytes:
        """A part of a file of the results."""
        query = urllib.parse.urlencode({"path": path, "offset": offset, "length": length})
        return self._request("GET", f"/file?{query}")

    def send_package(self, path: Path, pause: Callable[[float], None]) -> None:
        """Send the code in parts. `pause` is called after each and may raise to stop."""
        with path.open("rb") as file:
            offset = 0
            while part := file.read(PART_BYTES):
                self._request("PUT", f"/package?offset={offset}", part)
                offset += len(part)
                pause(0)

    def start(self, sha256: str, steps: list[tuple[str, Any]]) -> None:
        """Start the job with the package that was sent."""
        self._request("POST", "/start", json.dumps({"sha256": sha256, "steps": steps}).encode())

    def stop(self) -> None:
        """Ask the job to save and end."""
        self._request("POST", "/stop", b"")

    def finish(self) -> None:
        """Have the pod remove itself."""
        self._request("POST", "/finish", b"")

    def _json(self, method: str, path: str) -> dict[str, Any]:
        try:
            found = json.loads(self._request(method, path))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Transient("the pod's reply is not a JSON object")
        return found

    def _request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(
            self._address + path,
            data=body,
            method=method,
            headers={"Authorization": f"Bearer {self._token}", "User-Agent": "nanoarch"},
        )
        try:
            return self._bounded(lambda: _read(request), REPLY_SECONDS, self._given_up)
        except (CloudError, UserError):
            raise
        except urllib.error.HTTPError as error:
            code = error.code
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Transient(f"the pod does not answer ({type(error).__name__})") from None
        raise Transient(f"the pod's server replies HTTP {code}")


def _read(request: urllib.request.Request) -> bytes:
    with _OPENER.open(request, timeout=30) as response:
        return response.read(LARGEST_REPLY)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, which would send the token elsewhere."""

    def redirect_request(self, *about: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)
