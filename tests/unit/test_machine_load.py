"""How much of the CPUs others use, against processes that use a known amount."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from training import machine_load
from training.machine_load import OtherLoad

BUSY = "import time; end = time.time() + 9\nwhile time.time() < end: pass"


@pytest.mark.parametrize(
    ("busy", "own", "share"), [(10.0, 10.0, 0.0), (10.0, 4.0, 0.15), (90.0, 0.0, 1.0)]
)
def test_the_share_is_what_others_used_of_all_cpus(monkeypatch, busy, own, share):
    moments = iter([(0.0, 100.0, 5.0), (10.0, 100.0 + busy, 5.0 + own)])
    monkeypatch.setattr(machine_load, "_cpu_seconds", lambda: next(moments))
    monkeypatch.setattr(machine_load.os, "cpu_count", lambda: 4)
    assert OtherLoad().share() == pytest.approx(share)


def test_work_of_this_process_and_its_children_is_its_own():
    load = OtherLoad()
    with subprocess.Popen([sys.executable, "-c", BUSY]) as child:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            sum(range(10_000))
        own = machine_load._cpu_seconds()[2] - load._before[2]
        child.kill()
    assert own > 1.0  # a second of this process, and what the child got
    ended = machine_load._cpu_seconds()[2] - load._before[2]
    assert ended >= own - 0.02
