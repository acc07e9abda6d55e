"""Stopping by signal: politely at first, at once the second time."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest

from training import signals
from training.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
class TestStopRequest:
    def test_first_is_noted(self, number: signal.Signals) -> None:
        with StopRequest() as stop:
            assert stop.requested is None
            signal.raise_signal(number)
            assert stop.requested == number.name

    def test_second_stops_at_once(
        self, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = SimpleNamespace(seconds=100.0)
        monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: now.seconds))
        with StopRequest():
            signal.raise_signal(signal.SIGTERM)
            now.seconds += 0.1
            signal.raise_signal(number)  # the same request, passed on by another process
            now.seconds += 0.3
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)

    def test_handlers_are_restored(self, number: signal.Signals) -> None:
        before = signal.getsignal(number)
        with StopRequest():
            assert signal.getsignal(number) != before
        assert signal.getsignal(number) == before
