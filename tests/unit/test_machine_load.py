"""How much of the CPUs others use, against processes that use a known amount."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from training import machine_load
from training.machine_load import OtherLoad

BUSY = "import time\nwhile time.process_time() < 0.5: pass"


@pytest.mark.parametrize(
    ("busy", "own", "share"), [(10.0, 10.0, 0.0), (10.0, 4.0, 0.15), (90.0, 0.0, 1.0)]
)
def test_the_share_is_what_others_used_of_all_cpus(monkeypatch, busy, own, share):
    moments = iter([(0.0, 100.0, 5.0), (10.0, 100.0 + busy, 5.0 + own)])
    monkeypatch.setattr(machine_load, "_cpu_seconds", lambda _: next(moments))
    monkeypatch.setattr(machine_load.os, "cpu_count", lambda: 4)
    assert OtherLoad().share() == pytest.approx(share)


def test_work_of_this_process_and_its_children_is_its_own():
    before = machine_load._cpu_seconds(psutil.Process())[2]
    end = time.process_time() + 0.5
    while time.process_time() < end:
        sum(range(10_000))
    alone = machine_load._cpu_seconds(psutil.Process())[2] - before
    assert 0.4 < alone < 1.0
    subprocess.run([sys.executable, "-c", BUSY], check=True)
    assert machine_load._cpu_seconds(psutil.Process())[2] - before > alone + 0.4


SIBLING = """
from training.machine_load import OtherLoad, psutil
alone, together = OtherLoad(), OtherLoad(of_parent=True)
own = [load._process.pid for load in (alone, together)]
print(*own, psutil.Process().pid, psutil.Process().ppid())
"""


def test_workers_of_one_parent_count_as_one():
    done = subprocess.run(
        [sys.executable, "-c", SIBLING],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    alone, together, own, parent = map(int, done.stdout.split())
    assert (alone, together) == (own, parent)


def test_a_parent_that_has_gone_leaves_the_last_share(monkeypatch):
    def gone(_):
        raise psutil.NoSuchProcess(1)

    load = OtherLoad(of_parent=True)
    before = load.share()
    monkeypatch.setattr(machine_load, "_cpu_seconds", gone)
    assert load.share() == before
