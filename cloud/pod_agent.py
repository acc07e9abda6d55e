"""What runs inside a pod: a dead-man switch, and a server that trains and hands out the results.

The start command writes this one file into the pod and starts it twice, so it imports the standard
library alone.

    python3 pod_agent.py dead_man    removes the pod when its time is up, whatever else happens
    python3 pod_agent.py serve       takes the code, trains, keeps status.json, serves the results

A container starts again when its command ends. What has happened is therefore kept in files: when
the pod began, that the job began, and that it is done (`done.json`, with the exit status).

Every request needs the token of the environment variable NANOARCH_TOKEN as a bearer token.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import http.server
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

STOP_BEFORE = 60.0
"""Seconds before the dead-man switch removes the pod, at most, when training is asked to save."""

ASK_SECONDS = 30.0
"""That a reply of RunPod's API is waited for."""

LOST_CONTACT = 3600.0
"""Seconds that a pod whose job is done waits for somebody to fetch the results."""

LOG_PART = 1 << 16
"""Bytes of the log that one request returns at most."""

READING_SECONDS = 20.0
"""That a request waits for the digests of the results."""

FILE_PART = 1 << 23
"""Bytes of a file that one request returns at most."""

LARGEST_REQUEST = 1 << 24
"""Bytes of a request's body; a proxy before the pod would refuse far more."""


def seconds_awake() -> float:
    """A clock that no change of the date moves, and that goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Place:
    """The pod's folders and limits, as its environment says.

    `home` is on the volume where there is one, so that what is in it outlives the pod; `code` is on
    the pod's own disk.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.run = environment["NANOARCH_RUN"]
        self.deployment = environment["NANOARCH_DEPLOYMENT"]
        self.token = environment["NANOARCH_TOKEN"]
        self.port = int(environment["NANOARCH_PORT"])
        self.code = environment["NANOARCH_CODE"]
        self.home = os.path.join(environment["NANOARCH_HOME"], self.run)
        self.out = os.path.join(self.home, "out")
        self.results = os.path.join(self.out, environment["NANOARCH_RESULTS"])
        self.seconds = float(environment["NANOARCH_SECONDS"])
        self.deadline = float(environment["NANOARCH_DEADLINE"])
        self.dollars = float(environment["NANOARCH_DOLLARS"])
        self.pod = environment.get("RUNPOD_POD_ID", "")
        self.key = environment.get("RUNPOD_API_KEY", "")
        self.api = environment.get("RUNPOD_API_BASE_URL", "https://api.runpod.io")
        for folder in (self.code, self.home, self.out):
            with contextlib.suppress(OSError):  # a full volume: what can be done is done
                os.makedirs(folder, exist_ok=True)

    def path(self, name: str) -> str:
        return os.path.join(self.code, name)


def write(path: str, content: str) -> bool:
    """Replace a file; False where the disk does not take it."""
    try:
        with open(path + ".tmp", "w", encoding="utf-8") as file:
            file.write(content)
        os.replace(path + ".tmp", path)
    except OSError:
        return False
    return True


def read(path: str) -> Any:
    """A JSON file, None where there is none that can be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


class Background:
    """A call that a thread makes; `result` is what it returns, None until then or on an error."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.result: Any = None
        self.call = call
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.result = self.call()


# Removing the pod


def ask(place: Place, query: str) -> Any:
    """What the API answers to a query, None on an error or after half a minute.

    A reply may come byte by byte for ever, which no time limit of a socket ends.
    """
    asked = Background(lambda: _ask(place, query))
    asked.thread.join(ASK_SECONDS)
    return asked.result


def _ask(place: Place, query: str) -> Any:
    """The same without the limit, with the key that RunPod gives a pod."""
    request = urllib.request.Request(
        place.api + "/graphql",
        data=json.dumps({"query": query}).encode(),
        headers={
            "Content-Type": "application/json",
            "Authorization": "Bearer " + place.key,
            "User-Agent": "nanoarch",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            answer = json.load(response)
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return answer if isinstance(answer, dict) and "errors" not in answer else None


def remove_pod(place: Place) -> None:
    """Remove this pod, again and again until that ends this process."""
    tries = 0
    while True:
        for action in ("Terminate", "Stop")[: 1 if tries < 3 else 2]:
            ask(
                place,
                "mutation { pod"
                + action
                + f'(input: {{ podId: "{place.pod}" }})'
                + ("" if action == "Terminate" else " { id }")
                + " }",
            )
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                verb = "remove" if action == "Terminate" else "stop"
                subprocess.run(
                    ["runpodctl", verb, "pod", place.pod],
                    timeout=60,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
        tries += 1
        time.sleep(min(60, 2**tries))


class Remaining:
    """The seconds that this pod has, by the strictest of its clocks.

    They are counted from the pod's first start, which a file keeps over restarts of the container;
    by a clock that only moves forward, and by the date; and there is a date at which it ends in any
    case. A clock that is wrong ends the pod too early, never too late.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.awake = seconds_awake()
        self.before = 0.0
        first = read(place.path("first-start.json"))
        known = isinstance(first, dict) and first.get("pod") == place.pod
        if known and isinstance(first.get("time"), float) and math.isfinite(first["time"]):
            self.first = first["time"]
            self.before = max(0.0, time.time() - self.first)
        else:
            self.first = time.time()
            about = {"pod": place.pod, "time": self.first}
            write(place.path("first-start.json"), json.dumps(about))
        self.limit = place.seconds

    def elapsed(self) -> float:
        return max(self.before + seconds_awake() - self.awake, time.time() - self.first)

    def seconds(self) -> float:
        return min(self.limit - self.elapsed(), self.place.deadline - time.time())

    def shorten_to_price(self, dollars_per_hour: float) -> None:
        """End when the dollars are spent, where the pod costs more than was thought."""
        if dollars_per_hour > 0:
            self.limit = min(self.limit, 3600 * self.place.dollars / dollars_per_hour)


def price_of_pod(place: Place) -> float | None:
    """Dollars per hour of this pod; None where the API does not say."""
    answer = ask(place, f'query {{ pod(input: {{ podId: "{place.pod}" }}) {{ costPerHr }} }}')
    try:
        return float(answer["data"]["pod"]["costPerHr"])
    except (KeyError, TypeError, ValueError):
        return None


def dead_man(place: Place) -> None:
    """Wait until the time is up or the job is over, and remove the pod."""
    remaining = Remaining(place)
    ask_price_at, price = 0.0, None
    while remaining.seconds() > 0 and not os.path.exists(place.path("finish")):
        if price is None and remaining.elapsed() >= ask_price_at:
            ask_price_at = remaining.elapsed() + 60
            price = price_of_pod(place)
            if price is not None:
                remaining.shorten_to_price(price)
        time.sleep(min(5.0, max(0.05, remaining.seconds()), 0.2 + remaining.seconds() / 10))
    remove_pod(place)


# The job


class Job:
    """Unpack, set up, smoke test, train; and what `status.json` says of it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.remaining = Remaining(place)
        self.lock = threading.Lock()
        self.process = None
        self.stopping = False
        self.contact = seconds_awake()
        self.phase, self.exit_code, self.error = "waiting", None, ""
        self.done_at = None
        self.digests = {}
        self.reading = None
        self.thread = None
        self._go_on()

    def _go_on(self) -> None:
        """Take up what was under way before the container started again."""
        done = read(os.path.join(self.place.home, "done.json"))
        done = done if isinstance(done, dict) else {}
        mine = done.get("deployment") == self.place.deployment
        # on a volume, a pod that failed must not be the end of the one that takes its place
        if mine and (done["phase"] == "done" or done.get("pod") == self.place.pod):
            self.exit_code, self.error = done["exit_code"], done.get("error", "")
            self._end(done["phase"])
        else:
            started = read(self.place.path("started.json"))
            if isinstance(started, dict):
                self.start(started["steps"])

    def start(self, steps: list) -> None:
        """Begin, once. Steps are (name, command): a list of arguments, or text for bash."""
        with self.lock:
            if self.thread is not None or self.phase != "waiting":
                return
            self.thread = threading.Thread(target=self._run, args=(steps,), daemon=True)
            self.phase = "unpack"
        write(self.place.path("started.json"), json.dumps({"steps": steps}))
        self.thread.start()

    def _run(self, steps: list) -> None:
        try:
            self._unpack()
            for name, command in steps:
                self.phase = name
                self.exit_code = self._execute(command)
                if self.exit_code or self.stopping:
                    break
            phase = "done" if self.phase == "train" and not self.stopping else "failed"
            phase = "stopped" if self.stopping else phase
            phase = "failed" if phase == "done" and self.exit_code else phase
            if phase == "failed":
                self.error = f"{self.phase} ended with exit status {self.exit_code}"
        except Exception as error:  # whatever it is: the pod must not train on without a state
            self.exit_code, phase = 1, "failed"
            self.error = f"{self.phase}: {type(error).__name__}: {error}"
        self._finish(phase)

    def _unpack(self) -> None:
        tree = self.place.path("tree")
        with tarfile.open(self.place.path("package.tar.gz")) as package:
            if hasattr(tarfile, "data_filter"):
                package.extractall(tree, filter="data")
            else:
                package.extractall(tree)
        carried = os.path.join(tree, "carried")
        if os.path.isdir(carried) and not os.path.isdir(self.place.results):
            os.makedirs(os.path.dirname(self.place.results), exist_ok=True)
            shutil.copytree(carried, self.place.results)
        link = os.path.join(tree, "code", "out")
        if not os.path.islink(link):
            os.symlink(self.place.out, link)

    def _execute(self, command: str | list[str]) -> int:
        """Run a step in the code's folder, its output added to the log; its exit status."""
        environment = dict(os.environ)
        for name in ("NANOARCH_TOKEN", "RUNPOD_API_KEY"):  # no business of the training
            environment.pop(name, None)
        environment["PATH"] = os.pathsep.join((self.place.path("venv/bin"), os.environ["PATH"]))
        arguments = ["bash", "-c", command] if isinstance(command, str) else list(command)
        with open(self.place.path("pod.log"), "ab") as log:
            log.write(f"\n[{self.phase}]\n".encode())
            log.flush()
            with self.lock:
                if self.stopping:
                    return 1
                self.process = subprocess.Popen(
                    arguments,
                    cwd=os.path.join(self.place.path("tree"), "code"),
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            return self.process.wait()

    def stop(self) -> None:
        """Ask training to save and end."""
        with self.lock:
            if self.stopping:  # a second signal would end train.py before it has saved
                return
            self.stopping = True
            process = self.process
            waiting = self.thread is None
        if process is not None and process.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGTERM)
        if waiting:
            self._finish("stopped")

    def _finish(self, phase: str) -> None:
        """Keep what the job came to: on the volume, where there is room."""
        done = {
            "deployment": self.place.deployment,
            "pod": self.place.pod,
            "phase": phase,
            "exit_code": self.exit_code,
            "error": self.error,
        }
        with contextlib.suppress(OSError):
            write(os.path.join(self.place.home, "manifest.json"), json.dumps(self.manifest()))
        write(os.path.join(self.place.home, "done.json"), json.dumps(done))
        self._end(phase)

    def _end(self, phase: str) -> None:
        self.phase = phase
        self.done_at = seconds_awake()

    @property
    def over(self) -> bool:
        return self.done_at is not None

    def status(self) -> dict[str, Any]:
        """What is known of the job, for status.json and for whoever asks."""
        progress = self._progress()
        return {
            "run": self.place.run,
            "deployment": self.place.deployment,
            "phase": self.phase,
            "over": self.over,
            "exit_code": self.exit_code,
            "error": self.error,
            "seconds": self.remaining.elapsed(),
            "seconds_left": self.remaining.seconds(),
            **progress,
        }

    def _progress(self) -> dict[str, Any]:
        """Steps done, the last validation loss, the newest checkpoint, runs that are complete."""
        found = {
            "iter": None,
            "val_loss": None,
            "evaluated": None,
            "checkpoint": None,
            "runs": None,
        }
        try:
            with open(os.path.join(self.place.results, "metrics.jsonl"), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_PART))
                lines = file.read().split(b"\n")
        except OSError:
            return {**found, "runs": self._complete_runs()}
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)
                found["iter"] = record["iter"]
                if record["kind"] == "eval":
                    found["val_loss"], found["evaluated"] = record["val_loss"], record["iter"]
        with contextlib.suppress(OSError):
            names = os.listdir(os.path.join(self.place.results, "checkpoints"))
            found["checkpoint"] = max((n for n in names if not n.startswith(".")), default=None)
        return found

    def _complete_runs(self) -> int:
        """How many runs of a sweep are complete."""
        count = 0
        for folder, _, names in os.walk(self.place.results):
            if "run.json" in names:
                with contextlib.suppress(AttributeError):
                    count += read(os.path.join(folder, "run.json")).get("status") == "completed"
        return count

    def manifest(self) -> dict[str, Any]:
        """The size and SHA-256 of every file of the results, by its path in them."""
        files = {}
        for folder, _, names in os.walk(self.place.results):
            for name in names:
                path = os.path.join(folder, name)
                if name == ".lock" or name.endswith(".tmp") or os.path.islink(path):
                    continue
                with contextlib.suppress(OSError):  # gone meanwhile
                    files[os.path.relpath(path, self.place.results)] = self._digest(path)
        return {"files": files}

    def manifest_soon(self) -> dict[str, Any] | None:
        """The manifest, or None while the files are read: a reply must not take too long."""
        with self.lock:
            if self.reading is None:
                self.reading = Background(self.manifest)
            reading = self.reading
        reading.thread.join(READING_SECONDS)
        if reading.thread.is_alive():
            return None
        with self.lock:
            self.reading = None
        return reading.result

    def _digest(self, path: str) -> dict[str, Any]:
        digest, size = hashlib.sha256(), 0
        about = os.stat(path)
        known = self.digests.get(path)
        if known and known[0] == (about.st_size, about.st_mtime_ns, about.st_ino):
            return known[1]
        with open(path, "rb") as file:
            for part in iter(lambda: file.read(FILE_PART), b""):
                digest.update(part)
                size += len(part)
        found = {"size": size, "sha256": digest.hexdigest()}
        if size == about.st_size:
            self.digests[path] = ((about.st_size, about.st_mtime_ns, about.st_ino), found)
        return found

    def supervise(self) -> None:
        """Keep status.json, save before the time is up, and end when nobody fetches the results."""
        evaluated, phase = None, None
        while True:
            status = self.status()
            if (status["evaluated"], self.phase) != (evaluated, phase):
                evaluated, phase = status["evaluated"], self.phase
                write(os.path.join(self.place.home, "status.json"), json.dumps(status))
            if self.remaining.seconds() < min(STOP_BEFORE, self.place.seconds / 10):
                self.stop()
            quiet = seconds_awake() - max(self.contact, self.done_at or 0)
            if self.over and quiet > LOST_CONTACT:
                finish(self.place)
            time.sleep(1)


def finish(place: Place) -> None:
    """Have the dead-man switch remove the pod now; by another process if it is not there."""
    if not write(place.path("finish"), "{}"):
        remove_pod(place)


# The server


class Handler(http.server.BaseHTTPRequestHandler):
    """GET /status /log /files /file; PUT /package; POST /start /stop /finish."""

    protocol_version = "HTTP/1.1"
    timeout = 60

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

    def _answer(self, actions: dict[str, Callable[[], tuple[int, bytes]]]) -> None:
        address = urllib.parse.urlsplit(self.path)
        self.asked = dict(urllib.parse.parse_qsl(address.query))
        given = self.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), b"Bearer " + self.server.place.token.encode()):
            self.close_connection = True
            return self._reply(401, b"{}")
        if address.path not in actions:
            self.close_connection = True
            return self._reply(404, b"{}")
        length = int(self.headers.get("Content-Length") or 0)
        if length > LARGEST_REQUEST:
            self.close_connection = True
            return self._reply(413, b"{}")
        self.body = self.rfile.read(length)
        self.server.job.contact = seconds_awake()
        try:
            status, content = actions[address.path]()
        except Exception as error:
            status = 500
            content = json.dumps({"error": f"{type(error).__name__}: {error}"}).encode()
        return self._reply(status, content)

    def _reply(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/octet-stream")
        self.end_headers()
        self.wfile.write(content)

    def _status(self) -> tuple[int, bytes]:
        return 200, json.dumps(self.server.job.status()).encode()

    def _log(self) -> tuple[int, bytes]:
        try:
            with open(self.server.place.path("pod.log"), "rb") as file:
                file.seek(int(self.asked.get("offset", 0)))
                return 200, file.read(LOG_PART)
        except FileNotFoundError:
            return 200, b""

    def _files(self) -> tuple[int, bytes]:
        found = self.server.job.manifest_soon()
        return 200, json.dumps({"reading": True} if found is None else found).encode()

    def _file(self) -> tuple[int, bytes]:
        root = os.path.realpath(self.server.place.results)
        path = os.path.realpath(os.path.join(root, self.asked["path"]))
        if os.path.commonpath((root, path)) != root:
            return 404, b"{}"
        try:
            with open(path, "rb") as file:
                file.seek(int(self.asked["offset"]))
                return 200, file.read(min(int(self.asked["length"]), FILE_PART))
        except OSError:
            return 404, b"{}"

    def _package(self) -> tuple[int, bytes]:
        with self.server.job.lock:
            if self.server.job.thread is not None:
                return 409, b'{"error": "the job has begun"}'
            path, offset = self.server.place.path("package.tar.gz"), int(self.asked["offset"])
            with open(path, "r+b" if os.path.exists(path) and offset else "wb") as file:
                file.seek(offset)
                file.write(self.body)
                file.truncate()
        return 200, b"{}"

    def _start(self) -> tuple[int, bytes]:
        order = json.loads(self.body)
        if self.server.job.phase != "waiting":
            return 200, b"{}"
        digest = hashlib.sha256()
        with open(self.server.place.path("package.tar.gz"), "rb") as file:
            for part in iter(lambda: file.read(FILE_PART), b""):
                digest.update(part)
        if digest.hexdigest() != order["sha256"]:
            return 409, b'{"error": "the package was damaged on its way"}'
        self.server.job.start(order["steps"])
        return 200, b"{}"

    def _stop(self) -> tuple[int, bytes]:
        self.server.job.stop()
        return 200, b"{}"

    def _finish(self) -> tuple[int, bytes]:
        self.server.job.stop()
        finish(self.server.place)
        return 200, b"{}"


def serve(place: Place) -> None:
    server = http.server.ThreadingHTTPServer(("0.0.0.0", place.port), Handler)
    server.daemon_threads = True
    server.place, server.job = place, Job(place)
    threading.Thread(target=server.job.supervise, daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    {"dead_man": dead_man, "serve": serve}[sys.argv[1]](Place(os.environ))
