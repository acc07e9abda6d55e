"""The stopwatch of training, on a clock that the test moves."""

from __future__ import annotations

import pytest
import torch

from training import clock
from training.clock import Stopwatch

CPU = torch.device("cpu")


class Time:
    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 100.0
        monkeypatch.setattr(clock.time, "perf_counter", lambda: self.now)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


class TestStopwatch:
    def test_counts_only_while_it_runs(self, time: Time) -> None:
        watch = Stopwatch(CPU)
        watch.start()
        time.now += 2
        watch.stop()
        time.now += 50  # a validation
        watch.start()
        time.now += 3
        watch.stop()
        assert watch.total == 5

    def test_starting_and_stopping_twice_is_as_once(self, time: Time) -> None:
        watch = Stopwatch(CPU)
        watch.start()
        time.now += 1
        watch.start()
        time.now += 1
        watch.stop()
        time.now += 1
        watch.stop()
        assert watch.total == 2

    def test_laps_leave_out_what_is_between(self, time: Time) -> None:
        watch = Stopwatch(CPU)
        watch.start()
        time.now += 4
        assert watch.lap() == 4
        time.now += 1
        watch.stop()
        time.now += 10
        watch.start()
        time.now += 2
        assert watch.lap() == 3
        assert watch.total == 7

    def test_goes_on_from_an_earlier_session(self, time: Time) -> None:
        watch = Stopwatch(CPU, total=60.0)
        watch.start()
        time.now += 5
        assert watch.lap() == 5
        assert watch.total == 65

    def test_reading_neither_stops_nor_waits(
        self, time: Time, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(clock, "synchronize", lambda device: pytest.fail("waited"))
        watch = Stopwatch(CPU, total=60.0)
        assert watch.read() == 60
        watch.start()
        time.now += 2
        assert watch.read() == 62
        time.now += 3
        assert watch.read() == 65
        assert watch.lap() == 5
        assert watch.read() == watch.total == 65

    def test_stopping_waits_for_the_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        waited = []
        monkeypatch.setattr(clock, "synchronize", waited.append)
        watch = Stopwatch(CPU)
        watch.stop()
        assert waited == []
        watch.start()
        watch.stop()
        assert waited == [CPU]
