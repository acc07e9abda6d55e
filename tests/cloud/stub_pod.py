"""A simulated pod: it speaks as `cloud/pod/server.py`, by a clock that tests move.

It has the dead-man switch of a real one, which removes it by its own clock, and says so
(`removed_by`), so that tests see whether the deployer or the switch removed a pod.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
import threading
import urllib.parse
from typing import Any

from cloud.timekeeping import Clock
from tests.cloud.fake_runpod import Rented, World

DATE = 1_800_000_000.0


class VirtualClock(Clock):
    """Time that passes only when somebody sleeps.

    Attributes:
        time: Seconds, as the world has them.
        lag: Seconds that this machine's clock missed, as one whose virtual machine was paused.
        jump: Seconds by which its date is wrong.
        dead: Whether the deployer was killed.
    """

    def __init__(self) -> None:
        self.time = 1000.0
        self.lag = 0.0
        self.jump = 0.0
        self.on_advance: list[Any] = []
        self.dead = False

    def now(self) -> float:
        return self.time - self.lag

    def date(self) -> float:
        return DATE + self.time + self.jump

    def sleep(self, seconds: float) -> None:
        if not self.dead:
            self.advance(max(seconds, 1e-6))  # less is lost in rounding, and would never pass
        if self.dead:  # as by kill -9: nothing of the deployer runs on, no handler either
            threading.Event().wait()

    def advance(self, seconds: float) -> None:
        """Let time pass, in steps that pods notice."""
        end = self.time + max(0.0, seconds)
        while self.time < end:
            self.time = min(end, self.time + 1.0)
            for action in self.on_advance:
                action()


@dataclasses.dataclass
class Behaviour:
    """How simulated pods behave.

    Attributes:
        boot: Seconds until the server answers.
        setup: Seconds before training.
        train: Seconds of training, from its first step.
        steps: Steps of it.
        fails: Phase that fails, with this exit status.
        disk_full: Training cannot save, and fails.
        never_boots: The server never answers.
    """

    boot: float = 60.0
    setup: float = 120.0
    train: float = 1200.0
    steps: int = 60
    fails: tuple[str, int] | None = None
    disk_full: bool = False
    never_boots: bool = False


class StubPod:
    """The inside of a simulated pod."""

    behaviour = Behaviour()

    def __init__(self, world: World, pod: Rented):
        self.world, self.pod = world, pod
        self.how = dataclasses.replace(self.behaviour)
        self.begun = world.time_of()
        self.package = bytearray()
        self.started: float | None = None
        self.stopped: float | None = None
        self.first_step = 0
        self.killed = False

    def kill(self) -> None:
        self.killed = True

    # Time

    def tick(self) -> None:
        """The dead-man switch."""
        seconds = float(self.pod.env["NANOARCH_SECONDS"])
        age = self.world.time_of() - self.begun
        date = DATE + self.world.time_of()
        if age >= seconds or date >= float(self.pod.env["NANOARCH_DEADLINE"]):
            self.world.remove(self.pod, "dead man")

    @property
    def age(self) -> float:
        return self.world.time_of() - self.begun

    def _phase(self) -> str:
        if self.started is None:
            return "waiting"
        passed = (self.stopped or self.world.time_of()) - self.started
        for name, end in (("setup", self.how.setup / 2), ("smoke", self.how.setup)):
            if passed < end:
                return "stopped" if self.stopped else name
            if self.how.fails and self.how.fails[0] == name:
                return "failed"
        if self._steps_done() >= self.how.steps:
            return "done"
        if (self.how.fails and self.how.fails[0] == "train") or self.how.disk_full:
            return "failed"
        return "stopped" if self.stopped else "train"

    def _steps_done(self) -> int:
        if self.started is None:
            return self.first_step
        passed = (self.stopped or self.world.time_of()) - self.started - self.how.setup
        done = self.first_step + int(max(0.0, passed) / self.how.train * self.how.steps)
        return min(self.how.steps, done)

    # What it answers

    def request(
        self, method: str, address: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, bytes]:
        with self.world.lock:
            if self.how.never_boots or self.age < self.how.boot:
                return 502, b"Bad gateway"
            token = self.pod.env["NANOARCH_TOKEN"]
            if headers.get("Authorization") != f"Bearer {token}":
                return 401, b"{}"
            parts = urllib.parse.urlsplit(address)
            asked = dict(urllib.parse.parse_qsl(parts.query))
            self.world.call_when(f"agent:{parts.path}")
            return getattr(self, "_" + parts.path.removeprefix("/"))(asked, body)

    def _status(self, asked: dict[str, str], body: bytes) -> tuple[int, bytes]:
        phase, done = self._phase(), self._steps_done()
        over = phase in ("done", "failed", "stopped")
        evaluated = 10 * (done // 10)
        where, status = self.how.fails or ("train", 1)
        self.world.call_when(f"phase:{phase}")
        return 200, json.dumps(
            {
                "deployment": self.pod.env["NANOARCH_DEPLOYMENT"],
                "phase": phase,
                "over": over,
                "exit_code": (status if phase == "failed" else 0) if over else None,
                "error": f"{where} ended with exit status {status}" if phase == "failed" else "",
                "iter": done or None,
                "val_loss": 3.0 - evaluated / 60 if done else None,
                "evaluated": evaluated or None,
                "checkpoint": f"step_{evaluated:08d}" if evaluated else None,
                "runs": None,
                "seconds": self.age,
                "seconds_left": float(self.pod.env["NANOARCH_SECONDS"]) - self.age,
            }
        ).encode()

    def _log(self, asked: dict[str, str], body: bytes) -> tuple[int, bytes]:
        whole = f"[{self._phase()}]\nstep {self._steps_done()}\n".encode()
        if self.how.disk_full:
            whole += b"OSError: [Errno 28] No space left on device\n"
        return 200, whole[int(asked["offset"]) :]

    def _package(self, asked: dict[str, str], body: bytes) -> tuple[int, bytes]:
        offset = int(asked["offset"])
        self.package[offset:] = body
        return 200, b"{}"

    def _start(self, asked: dict[str, str], body: bytes) -> tuple[int, bytes]:
        order = json.loads(body)
        if hashlib.sha256(self.package).hexdigest() != order["sha256"]:
            return 409, b"{}"
        if self.started is None:
            self.started = self.world.time_of()
            self.first_step = self._saved_step()
        return 200, b"{}"

    def _saved_step(self) -> int:
        """The step of the checkpoint that is on the volume, or came with the package."""
        if self.pod.volume:
            return self.world.volumes.setdefault(self.pod.volume, {}).get("step", 0)
        with tarfile.open(fileobj=io.BytesIO(bytes(self.package))) as package:
            for name in package.getnames():
                if name == "carried/metrics.jsonl":
                    lines = package.extractfile(name).read().splitlines()
                    return json.loads(lines[-1])["iter"] if lines else 0
        return 0

    def _stop(self, asked: dict[str, str], body: bytes) -> tuple[int, bytes]:
        if self.stopped is None and self._phase() not in ("done", "failed"):
            self.stopped = self.world.time_of()
        return 200, b"{}"

    def _finish(self, asked: dict[str, str], body: bytes) -> tuple[int, bytes]:
        self.world.remove(self.pod, "finish")
        return 200, b"{}"

    # What it leaves

    def files(self) -> dict[str, bytes]:
        """The results as they are now."""
        step = 10 * (self._steps_done() // 10)
        if self.pod.volume and not self.how.disk_full:
            self.world.volumes.setdefault(self.pod.volume, {})["step"] = step
        if not step:
            return {}
        lines = "".join(
            json.dumps(
                {"kind": "eval", "iter": at, "val_loss": 3.0 - at / 60, "wall_seconds": 1.0 * at}
            )
            + "\n"
            for at in range(10, step + 1, 10)
        )
        run = {
            "status": "completed" if step >= self.how.steps else "running",
            "summary": {"final_val_loss": 3.0 - step / 60},
        }
        return {
            "run.json": json.dumps(run).encode(),
            "metrics.jsonl": lines.encode(),
            f"checkpoints/step_{step:08d}/model.bin": f"weights at {step}".encode() * 1000,
        }

    def _files(self, asked: dict[str, str], body: bytes) -> tuple[int, bytes]:
        return 200, json.dumps(manifest_of(self.files())).encode()

    def _file(self, asked: dict[str, str], body: bytes) -> tuple[int, bytes]:
        content = self.files().get(asked["path"])
        if content is None:
            return 404, b"{}"
        begin = int(asked["offset"])
        return 200, content[begin : begin + int(asked["length"])]


def manifest_of(files: dict[str, bytes]) -> dict[str, Any]:
    return {
        "files": {
            path: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for path, content in files.items()
        }
    }
