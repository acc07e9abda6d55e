"""A RunPod of our own on 127.0.0.1: its GraphQL API, its proxy to the pods, its volumes.

RunPod's SDK talks to it over HTTP. It keeps its own account of what pods cost, which is the
truth that tests compare with, and it can fail in every way that a test asks for (`Fault`).

Its pods either are simulated (`stub_pod.py`), by a clock that tests move, or run their start
command for real (`real_pod.py`).
"""

from __future__ import annotations

import base64
import dataclasses
import http.server
import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KEY = "-".join(("rpa", "TESTKEY", "0123456789"))  # in no file as a whole: such files are not sent

GPUS = {
    "NVIDIA GeForce RTX 4090": (24, 0.69),
    "NVIDIA A100-SXM4-80GB": (80, 1.74),
    "NVIDIA H100 80GB HBM3": (80, 2.99),
    "NVIDIA Unheard Of": (48, 0.05),
}
"""Memory in GB and dollars per hour."""

REGIONS = ("EU-RO-1", "US-KS-2", "CA-MTL-1")

NO_INSTANCES = (
    "There are no longer any instances available with the requested specifications. Please refresh "
    "and try again."
)
NO_INSTANCES_LATER = (
    "There are no longer any instances available with the request specifications. Please try again "
    "later."
)


@dataclasses.dataclass
class Fault:
    """What goes wrong with some requests.

    Attributes:
        operation: account, offers, pods, pod, create, terminate, agent; or "any".
        kind: What happens, see `_Handler`. "drop": no reply, nothing done. "done_no_reply": no
            reply, but done. "done_with_error": an error, but done. "lie": a reply that says done,
            nothing done. "empty": a list without the newest pod. "echo": an error that quotes the
            query. "slow": takes 20 s.
        times: How many requests.
        skip: Requests of that operation before it begins.
    """

    operation: str
    kind: str
    times: int = 1
    skip: int = 0


class World:
    """All of RunPod: what there is, what was rented, what it cost.

    Args:
        folder: For volumes and pods that run for real.
        make_pod: Makes the inside of a pod, see `stub_pod.StubPod`.
        time_of: The time in seconds.
    """

    def __init__(
        self,
        folder: Path,
        make_pod: Callable[[World, Rented], Any],
        time_of: Callable[[], float] = time.monotonic,
    ):
        self.folder, self._make_pod, self.time_of = folder, make_pod, time_of
        self.lock = threading.RLock()
        self.rented: list[Rented] = []
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.texts: list[str] = []
        self.balance = 100.0
        self.surcharge = 0.0
        self.prices = dict(GPUS)
        self.regions = REGIONS
        self.capacity: Callable[[str, str | None], bool] = lambda gpu, region: True
        self.when: dict[str, Callable[[], None]] = {}
        """Called once when an operation is asked for: before:create, after:create, ..."""
        self.replies: dict[str, Callable[[str, str | None], Any]] = {}
        """What answers an operation in the place of this."""
        self.hidden: dict[str, float] = {}
        """Pods that nobody is told of until that time."""
        self.hidden_for: dict[str, float] = {}
        """The same, in seconds from the creation of the pod."""
        self.volumes: dict[str, dict[str, Any]] = {}
        """The files of network volumes."""
        self.network_volumes = {"vol1": "US-KS-2", "vol2": "EU-RO-1"}
        """Data centers of the account's network volumes."""
        self.deployer_dead: Callable[[], bool] = lambda: False
        self.advance: Callable[[float], None] = lambda seconds: None
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.world = self  # type: ignore[attr-defined]
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        with self.lock:
            for pod in self.alive:
                self.remove(pod, "end of the test")
        self._server.shutdown()
        self._server.server_close()

    # What there is

    @property
    def alive(self) -> list[Rented]:
        return [pod for pod in self.rented if pod.ended is None]

    def spent(self, prefix: str = "") -> float:
        """Dollars that pods have cost in truth."""
        return sum(
            pod.rate * ((self.time_of() if pod.ended is None else pod.ended) - pod.begun) / 3600
            for pod in self.rented
            if pod.name.startswith(prefix)
        )

    def remove(self, pod: Rented, by: str) -> None:
        if pod.ended is None:
            pod.ended, pod.removed_by = self.time_of(), by
            pod.inside.kill()

    def fault(self, *operations: str) -> str | None:
        """The kind of fault that strikes a request, which counts as one of its times."""
        for fault in self.faults:
            if fault.operation in operations and fault.times > 0:
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault.kind
        return None

    def call_when(self, moment: str) -> None:
        action = self.when.pop(moment, None)
        if action is not None:
            action()


@dataclasses.dataclass
class Rented:
    """A pod, as RunPod knows it."""

    id: str
    name: str
    gpu: str
    region: str | None
    rate: float
    begun: float
    env: dict[str, str]
    command: str
    disk_gb: int
    volume: str | None
    spot: bool
    cuda: list[str] = dataclasses.field(default_factory=list)
    state: str = "RUNNING"
    ended: float | None = None
    removed_by: str = ""
    inside: Any = None


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    @property
    def world(self) -> World:
        return self.server.world  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        self._any()

    def do_PUT(self) -> None:
        self._any()

    def do_POST(self) -> None:
        self._any()

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.world.lock:
            self.world.texts.append(self.path)
        if self.path == "/graphql":
            self._graphql(body)
        elif self.path.startswith("/pod/"):
            self._proxy(body)
        elif self.path.startswith("/s3/"):
            self._s3()
        else:
            self._reply(404, b"")

    def _reply(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.close()

    # GraphQL

    def _graphql(self, body: bytes) -> None:
        query = json.loads(body)["query"]
        operation = operation_of(query)
        self.world.call_when(f"before:{operation}")
        with self.world.lock:
            self.world.requests.append(operation)
            fault = self.world.fault(operation, "any")
        if fault == "hang":
            time.sleep(1.0)
        with self.world.lock:
            result = None if fault == "hang" else self._result(query, operation, fault)
        self.world.call_when(f"after:{operation}")
        if result is None:
            self._drop()
        else:
            status, answer = result
            self._reply(
                status, answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            )

    def _result(self, query: str, operation: str, fault: str | None) -> tuple[int, Any] | None:
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if key == KEY and self.world.deployer_dead():
            return None
        pods_key = any(pod.env.get("RUNPOD_API_KEY") == key for pod in self.world.rented)
        if fault == "401" or (key != KEY and not pods_key):
            return 401, {"errors": [{"message": "Unauthorized"}]}
        if fault == "403":
            return 403, _error("Forbidden: permission denied")
        if fault == "429":
            return 429, {"error": "Too many requests"}
        if fault == "500":
            return 500, b"<html>Internal Server Error</html>"
        if fault == "malformed":
            return 200, b'{"data": {"myself": {"pods": [{"id"'
        if fault == "odd":
            return 200, {"data": None}
        if fault == "validation":
            return 400, _error('Field "gpuCount" of type "Int!" is wrong')
        if fault == "unavailable":
            return 200, _error("This service is not available at the moment.")
        if fault == "echo":
            return 400, _error(f"Syntax Error: cannot parse {query}")
        if fault == "drop":
            return None
        if fault == "slow":
            self.world.advance(20.0)
        answer = self.world.replies.get(operation) or getattr(self, f"_{operation}")
        done = answer(query, fault)
        if fault == "done_with_error":
            return 200, _error("Cannot return null for non-nullable field Machine.podHostId.")
        return None if fault == "done_no_reply" else (200, done)

    def _account(self, query: str, fault: str | None) -> Any:
        world = self.world
        spending = sum(pod.rate for pod in world.alive) + world.surcharge * bool(world.alive)
        balance = world.balance - world.spent()
        return {"data": {"myself": {"clientBalance": balance, "currentSpendPerHr": spending}}}

    def _centres(self, query: str, fault: str | None) -> Any:
        return {"data": {"dataCenters": [{"id": name} for name in self.world.regions]}}

    def _user(self, query: str, fault: str | None) -> Any:
        volumes = [
            {"id": name, "name": name, "size": 50, "dataCenterId": region}
            for name, region in self.world.network_volumes.items()
        ]
        return {"data": {"myself": {"id": "u", "pubKey": None, "networkVolumes": volumes}}}

    def _offers(self, query: str, fault: str | None) -> Any:
        asked = re.findall(r"(at\d+): lowestPrice\(input: \{([^}]*)\}\)", query)
        kinds = []
        for gpu, (memory, price) in self.world.prices.items():
            kind: dict[str, Any] = {"id": gpu, "memoryInGb": memory}
            for alias, given in asked:
                found = re.search(r'dataCenterId: "([^"]*)"', given)
                region = found[1] if found else None
                there = region is None or region in self.world.regions
                kind[alias] = {
                    "uninterruptablePrice": price if there else None,
                    "minimumBidPrice": round(price / 2, 4) if there else None,
                    "stockStatus": "Low",
                }
            kinds.append(kind)
        return {"data": {"gpuTypes": kinds}}

    def _pods(self, query: str, fault: str | None) -> Any:
        pods = [shown(pod, self.world) for pod in self.world.alive]
        if fault == "empty":
            pods = pods[:-1]
        pods = [pod for pod in pods if self._is_told(pod["id"])]
        return {"data": {"myself": {"pods": pods}}}

    def _pod(self, query: str, fault: str | None) -> Any:
        wanted = re.search(r'podId: "([^"]*)"', query)[1]
        found = [shown(pod, self.world) for pod in self.world.alive if pod.id == wanted]
        found = found if self._is_told(wanted) else []
        return {"data": {"pod": found[0] if found and fault != "empty" else None}}

    def _is_told(self, pod_id: str) -> bool:
        return self.world.hidden.get(pod_id, 0.0) <= self.world.time_of()

    def _create(self, query: str, fault: str | None) -> Any:
        world = self.world
        spot = "podRentInterruptable" in query
        name = "podRentInterruptable" if spot else "podFindAndDeployOnDemand"
        given = parse_input(query)
        if fault == "none":
            return {"data": {name: None}}
        if fault == "no_capacity" or not world.capacity(given["gpuTypeId"], given["dataCenterId"]):
            return _error(NO_INSTANCES)
        if fault == "no_capacity_later":
            return _error(NO_INSTANCES_LATER)
        price = world.prices[given["gpuTypeId"]][1]
        rate = (given["bidPerGpu"] if spot else price) * given["gpuCount"]
        if fault == "dear":
            rate *= 3
        if spot and given["bidPerGpu"] < price / 2:
            return _error("Your bid is below the minimum of this machine.")
        volume = given.get("networkVolumeId")
        pod = Rented(
            id=f"pod{len(world.rented) + 1}x",
            name=given["name"],
            gpu=given["gpuTypeId"],
            region=given["dataCenterId"],
            rate=rate,
            begun=world.time_of(),
            env={pair["key"]: pair["value"] for pair in given["env"]},
            command=given["dockerArgs"],
            disk_gb=given["containerDiskInGb"],
            volume=volume,
            spot=spot,
            cuda=given.get("allowedCudaVersions", []),
        )
        pod.env |= {"RUNPOD_POD_ID": pod.id, "RUNPOD_API_KEY": f"podkey-{pod.id}"}
        world.rented.append(pod)
        if pod.id in world.hidden_for:
            world.hidden[pod.id] = world.time_of() + world.hidden_for[pod.id]
        pod.inside = world._make_pod(world, pod)
        return {"data": {name: {"id": pod.id, "env": [], "machineId": "m", "imageName": "i"}}}

    def _terminate(self, query: str, fault: str | None) -> Any:
        wanted = re.search(r'podId: "([^"]*)"', query)[1]
        mine = self.headers.get("Authorization", "").removeprefix("Bearer ") != KEY
        if all(pod.id != wanted for pod in self.world.alive):
            return _error("pod not found to terminate")
        for pod in self.world.alive:
            if pod.id == wanted and fault != "lie":
                self.world.remove(pod, "itself" if mine else "the deployer")
        return {"data": {"podTerminate": None}}

    def _stop(self, query: str, fault: str | None) -> Any:
        return {"data": {"podStop": None}}

    # The proxy and the volumes

    def _proxy(self, body: bytes) -> None:
        _, _, pod_id, rest = self.path.split("/", 3)
        with self.world.lock:
            fault = self.world.fault("agent", "agent:/" + rest.partition("?")[0])
            pod = next((pod for pod in self.world.alive if pod.id == pod_id), None)
        if fault in ("drop", "done_no_reply"):
            return self._drop()
        if fault == "malformed":
            return self._reply(200, b"<html>")
        if fault == "damaged" and rest.startswith("file?"):
            return self._reply(200, b"?")
        if fault == "slow":
            self.world.advance(20.0)
            fault = None
        if fault or pod is None or pod.state != "RUNNING":
            return self._reply(502, b"Bad gateway")
        status, content = pod.inside.request(self.command, "/" + rest, dict(self.headers), body)
        return self._reply(status, content)

    def _s3(self) -> None:
        assert "AWS4-HMAC-SHA256" in self.headers["Authorization"]
        _, _, volume, key = self.path.split("/", 3)
        content = self.world.volumes.get(volume, {}).get(key.partition("?")[0])
        if callable(content):
            content = content()
        if content is None:
            return self._reply(404, b"<Error><Code>NoSuchKey</Code></Error>")
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if part:
            begin, end = int(part[1]), int(part[2])
            total = len(content)
            content = content[begin : end + 1]
            about = {"Content-Range": f"bytes {begin}-{begin + len(content) - 1}/{total}"}
            return self._reply(206, content, about)
        return self._reply(200, content)


def operation_of(query: str) -> str:
    for pattern, name in (
        (r"podFindAndDeployOnDemand|podRentInterruptable", "create"),
        (r"podTerminate", "terminate"),
        (r"podStop", "stop"),
        (r"clientBalance", "account"),
        (r"networkVolumes", "user"),
        (r"dataCenters", "centres"),
        (r"gpuTypes", "offers"),
        (r"pod\(input", "pod"),
        (r"pods\s*\{", "pods"),
    ):
        if re.search(pattern, query):
            return name
    raise AssertionError(f"the fake does not know {query}")


def shown(pod: Rented, world: World) -> dict[str, Any]:
    return {
        "id": pod.id,
        "name": pod.name,
        "desiredStatus": pod.state,
        "costPerHr": pod.rate,
        "uptimeSeconds": int(max(0, world.time_of() - pod.begun)),
        "env": [f"{name}={value}" for name, value in pod.env.items()],
        "dockerArgs": pod.command,
        "machine": {"gpuDisplayName": pod.gpu},
    }


def _error(message: str) -> dict[str, Any]:
    return {"errors": [{"message": message}], "data": None}


def parse_input(query: str) -> dict[str, Any]:
    """The input of a mutation: GraphQL's literals, so that bad quoting is an error here, too."""
    start = query.index("input: {") + len("input: ")
    text, place = query[start:], 0

    def skip() -> None:
        nonlocal place
        while text[place] in " \n,":
            place += 1

    def value() -> Any:
        nonlocal place
        skip()
        if text[place] == '"':
            found, place = json.JSONDecoder(strict=True).raw_decode(text, place)
            return found
        if text[place] in "{[":
            return braced() if text[place] == "{" else bracketed()
        found = re.match(r"[-\w.]+", text[place:])
        place += len(found[0])
        word = found[0]
        return (
            {"true": True, "false": False, "null": None}.get(word)
            if word
            in (
                "true",
                "false",
                "null",
            )
            else (float(word) if "." in word else int(word))
            if word[0].isdigit()
            else word
        )

    def braced() -> dict[str, Any]:
        nonlocal place
        place += 1
        found = {}
        while True:
            skip()
            if text[place] == "}":
                place += 1
                return found
            name = re.match(r"\w+", text[place:])[0]
            place += len(name)
            assert text[place] == ":", text[place : place + 40]
            place += 1
            found[name] = value()

    def bracketed() -> list[Any]:
        nonlocal place
        place += 1
        found = []
        while True:
            skip()
            if text[place] == "]":
                place += 1
                return found
            found.append(value())

    return braced()


def script_of(command: str) -> str:
    """The script that a pod's command unpacks."""
    import gzip

    packed = re.fullmatch(r"bash -c 'echo (\S+) \| base64 -d \| gunzip \| bash'", command)
    return gzip.decompress(base64.b64decode(packed[1])).decode()
