"""What unit tests share: data that takes no time."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from experiment import engines, jobs
from experiment.jobs import Job
from tests.stand_in import STAND_IN
from tests.tiny_data import write_tiny_dataset


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list:
    """A stand-in for the package `datasets`; records what was asked of it."""
    asked = []

    def load_dataset(path, name=None, **options):
        asked.append((path, name, options))
        return ({"text": f"page {n}", "url": "u"} for n in range(1000))

    fake = types.ModuleType("datasets")
    fake.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return asked


@pytest.fixture
def _stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run a script of the tests, and engines look often."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(jobs, "TRAIN", script)
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(engines, "POLL_SECONDS", 0.02)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Job]:
    """Makes the job of a deed of the stand-in."""

    def job(deed: str, name: str = "a", **settings: object) -> Job:
        own = {
            "arm": name,
            "title": name,
            "folder": tmp_path / "sweep" / "runs" / name,
            "arguments": (deed,),
            "directory": tmp_path,
            "files": {},
            "cost": 1.0,
            "length": ("iter", 1),
        }
        return Job(**{**own, **settings})

    return job
