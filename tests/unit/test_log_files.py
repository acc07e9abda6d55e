"""The files of a log on a disk that fills up, or that ends too soon."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from errors import UserError
from tests.unit.test_training_logger import log_step, make_logger, train
from training.log_files import MetricsFile
from training_logger import read_log


class TestDiskErrors:
    def test_half_a_line_is_taken_back(self, tmp_path: Path, monkeypatch) -> None:
        path = tmp_path / "metrics.jsonl"
        metrics = MetricsFile(path)
        metrics.append({"iter": 1})
        raw = metrics._file

        class Filling:
            """A file that has room for 5 more bytes."""

            def write(self, content: bytes) -> int:
                if raw.tell() > len('{"iter": 1}\n'):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return raw.write(content[:5])

            def __getattr__(self, name: str) -> Any:
                return getattr(raw, name)

        metrics._file = Filling()
        with pytest.raises(OSError, match="No space left"):
            metrics.append({"iter": 2})
        assert path.read_text() == '{"iter": 1}\n'

    def test_a_run_whose_end_cannot_be_written_says_so(self, tmp_path: Path, monkeypatch) -> None:
        """Not even as much as its status: the directory is gone."""
        logger = make_logger(tmp_path / "run")
        with pytest.raises(UserError, match=r"cannot write .*run.json: No such file"), logger:
            shutil.rmtree(tmp_path / "run")

    def test_where_all_of_it_does_not_fit_the_status_is_written(
        self, tmp_path: Path, monkeypatch
    ) -> None:
        real, sizes = os.fsync, []

        def small_disk(descriptor: int) -> None:
            sizes.append(os.fstat(descriptor).st_size)
            if sizes[-1] > 5000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        logger = make_logger(tmp_path).__enter__()
        for iter in range(1, 20):
            log_step(logger, iter)
        monkeypatch.setattr(os, "fsync", small_disk)
        with pytest.raises(UserError, match="No space left"):
            logger.__exit__(None, None, None)
        assert max(sizes) > 5000
        log = read_log(tmp_path)
        assert log["status"] == "failed"
        assert len(log["training_iterations"]) == 19
        left = sorted(path.name for path in tmp_path.iterdir())
        assert left == ["metrics.jsonl", "report.html", "run.json"]


def test_a_running_log_costs_the_same_however_long_it_is(tmp_path: Path, monkeypatch) -> None:
    """What is written for a record and an evaluation does not grow with those before."""
    written = []
    real = os.replace

    def replaced(source: Path, target: Path) -> None:
        written.append(os.path.getsize(source))
        real(source, target)

    with make_logger(tmp_path) as logger:
        monkeypatch.setattr(os, "replace", replaced)
        train(logger, 5, 200)
        monkeypatch.undo()
    assert len(written) == 40
    assert max(written) - min(written) < 2000  # the list of checkpoints, which a run prunes
