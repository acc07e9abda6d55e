"""Random schedules of faults: whatever happens, no pod is left and the cap holds."""

from __future__ import annotations

import json
import os
import random
import signal

import pytest

from cloud import runpod_deploy
from tests.cloud.conftest import Cloud, Ended, NoSignals, check_money, check_silence
from tests.cloud.fake_runpod import Fault
from tests.cloud.stub_pod import Behaviour, StubPod

SCHEDULES = 60

OPERATIONS = (
    *("account", "offers", "pods", "pod", "create", "create", "terminate", "agent", "any"),
    *("agent:/status", "agent:/package", "agent:/start", "agent:/files", "agent:/file"),
    *("agent:/stop", "agent:/finish", "agent:/log"),
)
OF_THE_API = (
    *("401", "403", "429", "500", "malformed", "odd", "drop", "done_no_reply", "slow", "echo"),
    *("none", "no_capacity", "no_capacity_later", "empty", "lie", "validation", "dear"),
    *("done_with_error", "unavailable"),
)
OF_THE_POD = ("500", "drop", "malformed", "slow", "damaged")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Schedule:
    """What goes wrong in one deployment, drawn from a seed."""

    def __init__(self, seed: int):
        self.draw = draw = random.Random(seed)
        self.faults = [self._fault() for _ in range(draw.randint(0, 8))]
        self.behaviour = Behaviour(
            boot=draw.choice((5.0, 60.0, 400.0)),
            setup=draw.choice((20.0, 120.0, 900.0)),
            train=draw.choice((100.0, 1200.0, 5000.0, 40000.0)),
            steps=draw.choice((10, 60, 600)),
            fails=draw.choice((None,) * 8 + (("smoke", 1), ("train", 1), ("setup", 2))),
            never_boots=draw.random() < 0.03,
        )
        self.cap = draw.choice((0.4, 1.0, 5.0, 20.0))
        self.hours = draw.choice((0.5, 1.0, 4.0, 12.0))
        place = draw.choice(((), (), ("--community",), ("--volumes=US-KS-2=vol1",)))
        self.flags = [
            *(f"--max_cost={self.cap}", f"--max_hours={self.hours}", *place),
            *(["--spot"] if draw.random() < 0.3 else []),
            *(["--wait", "--max_wait=20"] if draw.random() < 0.3 else []),
        ]
        self.events = [
            (draw.uniform(0, 6000), draw.choice(("reclaim", "vanish", "jump", "pause", "silent")))
            for _ in range(draw.randint(0, 4))
        ]
        self.signals = [
            (draw.uniform(0, 4000), draw.choice(SIGNALS))
            for _ in range(draw.choice((0, 0, 0, 1, 2)))
        ]
        self.killed_at = draw.uniform(1, 3000) if draw.random() < 0.15 else None
        self.hidden = draw.uniform(0, 200) if draw.random() < 0.2 else 0.0
        self.surcharge = draw.choice((0.0, 0.0, 0.2))

    def _fault(self) -> Fault:
        draw = self.draw
        operation = draw.choice(OPERATIONS)
        kinds = OF_THE_POD if operation.startswith("agent") else OF_THE_API
        times = draw.choice((1, 1, 2, 4, 10))
        return Fault(operation, draw.choice(kinds), times, skip=draw.randint(0, 60))

    def arrange(self, cloud: Cloud) -> None:
        """Have it all happen."""
        cloud.world.faults += self.faults
        cloud.world.surcharge = self.surcharge
        for pod in range(1, 20):
            if self.hidden and self.draw.random() < 0.5:
                cloud.world.hidden_for[f"pod{pod}x"] = self.hidden
        actions = {
            "reclaim": cloud.reclaim,
            "vanish": lambda: cloud.reclaim(remove=True),
            "jump": lambda: setattr(cloud.clock, "jump", self.draw.uniform(-1e7, 1e7)),
            "pause": lambda: setattr(cloud.clock, "lag", cloud.clock.lag + 300),
            "silent": lambda: self._silence(cloud),
        }
        for seconds, name in self.events:
            cloud.after(seconds, actions[name])
        for seconds, number in self.signals if self.killed_at is None else []:
            cloud.after(seconds, lambda number=number: os.kill(os.getpid(), number))
        if self.killed_at is not None:
            cloud.after(self.killed_at, lambda: setattr(cloud.clock, "dead", True))

    def _silence(self, cloud: Cloud) -> None:
        for pod in cloud.world.alive:
            pod.inside.how.never_boots = True


def check_ending(schedule: Schedule, cloud: Cloud, ended: Ended) -> None:
    """The status is that of what happened, and the last line says so."""
    numbers = {128 + number for _, number in schedule.signals}
    assert ended.status in {0, 1, 2, 3, *numbers}, ended.text
    assert ended.last.strip()
    if ended.status == 0:
        assert ended.last.startswith("done")
        run = json.loads((cloud.folder / "out/tried/run.json").read_text())
        assert run["status"] == "completed"
    if ended.status == 3:
        assert ended.last.startswith("stopped at the")
    if cloud.world.rented:
        assert "No pod is left." in ended.last, ended.text


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_a_random_schedule_of_faults(seed, cloud: Cloud, monkeypatch):
    schedule = Schedule(seed)
    schedule.arrange(cloud)
    monkeypatch.setattr(StubPod, "behaviour", schedule.behaviour)
    if schedule.killed_at is None:
        ended = cloud.deploy(*schedule.flags)
        print(ended.text)
        check_ending(schedule, cloud, ended)
        check_silence(cloud, ended)
    else:
        monkeypatch.setattr(runpod_deploy, "StopSignals", NoSignals)
        cloud.deploy_until_dead_or_done(*schedule.flags)
        cloud.clock.advance(3600 * schedule.hours + 60)
    check_money(cloud, schedule.cap)
