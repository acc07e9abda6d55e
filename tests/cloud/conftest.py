"""A fake RunPod, simulated pods, and the command run against them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import configurator
from cloud import plan, runpod_deploy, watch
from cloud.make_work import make_work
from cloud.redaction import Redactor
from cloud.request import read_request
from cloud.timekeeping import StopSignals
from cloud.work import Work
from errors import UserError
from tests.cloud.fake_runpod import KEY, World
from tests.cloud.stub_pod import Behaviour, StubPod, VirtualClock
from tests.prepared import REPOSITORY

DONE, FAILED, LIMIT, LEFT = 0, 1, 3, 4
"""Exit statuses of a deployment."""

SECRET = "-".join(("wandb", "SECRET", "9876543210"))

RUN = [
    *(f"{REPOSITORY}/config/arch_llama.py", f"{REPOSITORY}/config/run_shakespeare.py"),
    *("--run_name=tried", "--max_iters=60", "--vocab_size=65"),
]


@pytest.fixture(scope="session")
def work() -> Work:
    """The work of a small run, made once; nothing of it is trained."""
    work = make_work(read_request(RUN), Redactor())
    few = dict(list(work.contents.files.items())[:3])
    return dataclasses.replace(
        work, contents=dataclasses.replace(work.contents, files=few, dataset=None)
    )


@dataclasses.dataclass
class Ended:
    """What a command came to."""

    status: int | None
    lines: list[str]

    @property
    def last(self) -> str:
        return self.lines[-1]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Cloud:
    """A world of simulated pods, and the deployer in it."""

    def __init__(self, folder: Path):
        self.clock = VirtualClock()
        self.world = World(folder, StubPod, lambda: self.clock.time)
        self.world.advance = self.clock.advance
        self.world.deployer_dead = lambda: self.clock.dead
        self.clock.on_advance.append(self._tick)
        self.at: list[tuple[float, Callable[[], None]]] = []
        self.folder = folder

    def _tick(self) -> None:
        with self.world.lock:
            for pod in self.world.alive:
                pod.inside.tick()
        for item in [item for item in self.at if item[0] <= self.clock.time]:
            self.at.remove(item)
            item[1]()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Have something happen when so much time has passed."""
        self.at.append((self.clock.time + seconds, action))

    def reclaim(self, remove: bool = False) -> None:
        """Take the running pod away, as of a higher bidder."""
        for pod in self.world.alive:
            if remove:
                self.world.remove(pod, "RunPod")
            else:
                pod.state = "EXITED"

    def deploy(self, *flags: str) -> Ended:
        """Run the command."""
        return self.command(*RUN, *flags)

    def command(self, *argv: str) -> Ended:
        """Run a command, as `run_cli` does."""
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            try:
                status = runpod_deploy.main(list(argv), self.clock)
            except Exception as error:
                status = getattr(error, "exit_status", None)
                if status is None:
                    raise
                print(error)
        return Ended(status, output.getvalue().splitlines())

    def deploy_until_killed(self, *flags: str) -> None:
        """Run the command in a thread, until the clock says that it is dead."""
        self.deploy_until_dead_or_done(*flags)
        assert self.clock.dead

    def deploy_until_dead_or_done(self, *flags: str) -> None:
        """The same, where it may end before."""
        output = io.StringIO()

        def run() -> None:
            with contextlib.suppress(UserError):
                runpod_deploy.main([*RUN, *flags], self.clock)

        with contextlib.redirect_stdout(output):
            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            while thread.is_alive() and not self.clock.dead:
                thread.join(0.01)
            thread.join(0.2)


@pytest.fixture
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, no proxy, no home, no keys but those of the tests."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("RUNPOD_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    secrets = tmp_path / "secrets.env"
    secrets.write_text(f"WANDB_API_KEY={SECRET}\n")
    secrets.chmod(0o600)
    return tmp_path


@pytest.fixture
def cloud(surroundings: Path, monkeypatch: pytest.MonkeyPatch, work: Work) -> Iterator[Cloud]:
    """Simulated pods; the work is known beforehand, so that no case takes long."""
    made = Cloud(surroundings)
    monkeypatch.setenv("RUNPOD_API_BASE_URL", made.world.address)
    monkeypatch.setenv("RUNPOD_POD_ADDRESS", made.world.address + "/pod/{pod}")
    monkeypatch.setenv("RUNPOD_S3_ADDRESS", made.world.address + "/s3")
    monkeypatch.setattr(runpod_deploy, "make_work", lambda request, redact: work)
    monkeypatch.setattr(plan, "needs_on_gpus", needs_once)
    monkeypatch.setattr("cloud.package._commit_alone", lambda folder: None)
    monkeypatch.setattr(StubPod, "behaviour", Behaviour())
    yield made
    made.world.close()


@functools.cache
def _needs_by_dtype(dtype: Any) -> Any:
    return _NEEDS(configurator.load(RUN), 1, dtype)


_NEEDS = plan.needs_on_gpus


def needs_once(settings: Any, workers: int, dtype: Any) -> Any:
    return _needs_by_dtype(dtype)


class NoSignals(StopSignals):
    """For a deployer that is not in the main thread, where no handler can be set."""

    def __enter__(self) -> NoSignals:
        return self

    def __exit__(self, *about: Any) -> None:
        pass


def check_money(cloud: Cloud, cap: float = 20.0) -> None:
    """No pod is left, and no more was spent than the cap and a poll."""
    assert cloud.world.alive == []
    rate = max((pod.rate for pod in cloud.world.rented), default=0.0)
    assert cloud.world.spent() <= cap + rate * watch.POLL_SECONDS / 3600 + 1e-6


def check_silence(cloud: Cloud, ended: Ended) -> None:
    """No secret is in what was printed, kept, or in any address or command."""
    kept = [
        path.read_text(errors="replace")
        for folder in ("out", "metrics")
        for path in (cloud.folder / folder).rglob("*")
        if path.is_file()
    ]
    tokens = {pod.env["NANOARCH_TOKEN"] for pod in cloud.world.rented}
    commands = [pod.command for pod in cloud.world.rented]
    for secret in {KEY, SECRET, *tokens}:
        assert all(
            secret not in text for text in (ended.text, *kept, *cloud.world.texts, *commands)
        )


def check(cloud: Cloud, ended: Ended, status: int, said: str, cap: float = 20.0) -> None:
    """What holds of every deployment, with its status and what its last line says."""
    check_money(cloud, cap)
    check_silence(cloud, ended)
    assert (ended.status, said in ended.last) == (status, True), ended.text
    assert "No pod is left." in ended.last, ended.text
    assert not {pod.removed_by for pod in cloud.world.rented} & {"dead man", ""}


def names(cloud: Cloud) -> list[tuple[str, str | None]]:
    """Where pods were rented, in order."""
    return [(pod.gpu.split()[-1], pod.region) for pod in cloud.world.rented]


@pytest.fixture
def long_run(monkeypatch):
    """Training takes ten hours, whatever was estimated."""
    monkeypatch.setattr(StubPod, "behaviour", Behaviour(train=36000.0, steps=600))
