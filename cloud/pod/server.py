"""The pod's HTTP server: it receives the code and the order, and serves status, log and results.

Every request needs the token of the environment variable NANOARCH_TOKEN as a bearer token.
"""

from __future__ import annotations

import hmac
import http.server
import json
import os
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any

from cloud.pod.dead_man import finish
from cloud.pod.job import WAITING, Job
from cloud.pod.listing import Listing, file_digest
from cloud.pod.place import PART_BYTES, Place, seconds_awake
from cloud.pod.supervisor import Supervisor

LOG_BYTES = 1 << 16
"""Maximum bytes of the log per reply."""

LARGEST_REQUEST = 1 << 24
"""Maximum bytes of a request's body."""

Reply = tuple[int, bytes]


class PodServer(http.server.ThreadingHTTPServer):
    """Serves one job."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], place: Place) -> None:
        self.place = place
        self.listing = Listing(place.results)
        self.job = Job(place, self.listing)
        self.supervisor = Supervisor(place, self.job)
        self.package_lock = threading.Lock()
        super().__init__(address, Handler)


class Handler(http.server.BaseHTTPRequestHandler):
    """GET /status /log /files /file; PUT /package; POST /start /stop /finish."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    server: PodServer

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(
            {"/status": self._status, "/log": self._log, "/files": self._files, "/file": self._file}
        )

    def do_PUT(self) -> None:
        self._answer({"/package": self._package})

    def do_POST(self) -> None:
        self._answer({"/start": self._start, "/stop": self._stop, "/finish": self._finish})

    def _answer(self, actions: dict[str, Callable[[], Reply]]) -> None:
        address = urllib.parse.urlsplit(self.path)
        action = actions.get(address.path)
        length = int(self.headers.get("Content-Length") or 0)
        refusal = None if self._has_token() else 401
        refusal = refusal or (404 if action is None else None)
        refusal = refusal or (413 if not 0 <= length <= LARGEST_REQUEST else None)
        if action is None or refusal:
            self.close_connection = True  # the body is not read
            return self._reply(refusal or 404, b"{}")
        self.asked = dict(urllib.parse.parse_qsl(address.query))
        self.body = self.rfile.read(length)
        self.server.supervisor.contact = seconds_awake()
        try:
            status, content = action()
        except Exception as error:
            status = 500
            content = json.dumps({"error": f"{type(error).__name__}: {error}"}).encode()
        return self._reply(status, content)

    def _has_token(self) -> bool:
        given = self.headers.get("Authorization", "").encode()
        return hmac.compare_digest(given, b"Bearer " + self.server.place.token.encode())

    def _reply(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/octet-stream")
        self.end_headers()
        self.wfile.write(content)

    # GET

    def _status(self) -> Reply:
        return 200, json.dumps(self.server.supervisor.status()).encode()

    def _log(self) -> Reply:
        return 200, _part(self.server.place.path("pod.log"), self._number("offset"), LOG_BYTES)

    def _files(self) -> Reply:
        found = self.server.listing.soon()
        return 200, json.dumps({"reading": True} if found is None else found).encode()

    def _file(self) -> Reply:
        root = os.path.realpath(self.server.place.results)
        path = os.path.realpath(os.path.join(root, self.asked["path"]))
        if os.path.commonpath((root, path)) != root or not os.path.isfile(path):
            return 404, b"{}"
        length = min(self._number("length"), PART_BYTES)
        return 200, _part(path, self._number("offset"), length)

    def _number(self, name: str) -> int:
        """A number of the query string that is not negative."""
        return max(0, int(self.asked.get(name, 0)))

    # PUT and POST

    def _package(self) -> Reply:
        """Write a part of the package. The same part may come twice."""
        with self.server.package_lock:
            if self.server.job.begun:
                return 409, b'{"error": "the job has begun"}'
            path, offset = self.server.place.path("package.tar.gz"), self._number("offset")
            with open(path, "r+b" if os.path.exists(path) and offset else "wb") as file:
                file.seek(offset)
                file.write(self.body)
                file.truncate()
        return 200, b"{}"

    def _start(self) -> Reply:
        """Start the job if the package has arrived undamaged."""
        order = json.loads(self.body)
        if self.server.job.phase != WAITING:
            return 200, b"{}"
        _, sha256 = file_digest(self.server.place.path("package.tar.gz"))
        if sha256 != order["sha256"]:
            return 409, b'{"error": "the package is damaged"}'
        self.server.job.start(order["steps"])
        return 200, b"{}"

    def _stop(self) -> Reply:
        self.server.job.stop()
        return 200, b"{}"

    def _finish(self) -> Reply:
        self.server.job.stop()
        finish(self.server.place)
        return 200, b"{}"


def _part(path: str, offset: int, length: int) -> bytes:
    """A part of a file; empty if there is no such file."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(length)
    except FileNotFoundError:
        return b""


def serve(place: Place) -> None:
    """Serve until the pod is removed."""
    server = PodServer(("0.0.0.0", place.port), place)
    threading.Thread(target=server.supervisor.supervise, daemon=True).start()
    server.serve_forever()
