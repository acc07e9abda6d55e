"""What a run came to."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.unit.test_training_logger import (
    ARCHITECTURE,
    log_eval,
    log_step,
    make_logger,
    metrics_lines,
    read_run,
    train,
)
from training.log_summary import RunningMedian, TimeLeft, summarize


def test_summary_of_a_run(tmp_path):
    rates = (1.0, 70.0, 90.0, 80.0)
    with make_logger(tmp_path) as logger:
        log_eval(logger, 0, val_loss=5.0)
        for index, rate in enumerate(rates, start=1):
            peak = {"resident": 1, "peak": 500 - index}
            log_step(logger, index * 10, tokens_per_second=rate, memory=peak, bad_steps=index // 2)
        log_eval(logger, 20, val_loss=2.0)
        log_eval(logger, 30, val_loss=math.nan)
        log_eval(logger, 40, val_loss=2.5)
    summary = read_run(tmp_path)["summary"]
    assert summary.pop("wall_seconds") > 0
    assert summary == {
        "final_val_loss": 2.5,
        "final_val_bits_per_byte": 2.5 / math.log(2),
        "best_val_loss": 2.0,
        "best_val_bits_per_byte": 2.0 / math.log(2),
        "best_val_iter": 20,
        "total_tokens": 40960,
        "total_flops": 40960 * ARCHITECTURE["flops_per_token"],
        "median_tokens_per_second": 80.0,  # the first interval is left out
        "median_mfu_percent": pytest.approx(100 * 80 * 854_654_976 / 123.4e9),
        "peak_memory_bytes": 499,
        "bad_steps": 2,
    }


def test_summary_of_a_run_that_did_nothing_yet():
    summary = summarize([], flops_per_token=10, wall_seconds=1.5)
    assert summary["wall_seconds"] == 1.5
    zero = {"total_tokens", "total_flops", "bad_steps"}
    assert {key for key, value in summary.items() if value == 0} == zero
    assert all(summary[key] is None for key in summary.keys() - zero - {"wall_seconds"})


def test_summary_uses_the_only_interval_there_is(tmp_path):
    with make_logger(tmp_path) as logger:
        log_step(logger, 10)
        assert logger.summary["median_tokens_per_second"] == 71.3


def test_the_running_median_is_the_median() -> None:
    median = RunningMedian()
    assert median.value is None
    for value, expected in ((3.0, 3.0), (None, 3.0), (1.0, 2.0), (2.0, 2.0), (9.0, 2.5)):
        median.add(value)
        assert median.value == expected


def test_a_summary_is_the_same_at_once_or_line_by_line(tmp_path: Path) -> None:
    with make_logger(tmp_path) as logger:
        train(logger, 5, 20)
    run = read_run(tmp_path)
    wall = run["summary"]["wall_seconds"]
    flops = run["architecture"]["flops_per_token"]
    lines = metrics_lines(tmp_path)
    assert summarize(lines, flops_per_token=flops, wall_seconds=wall) == run["summary"]


def test_time_left_follows_the_pace_since_the_first_line():
    left = TimeLeft()
    assert left.seconds is None
    left.update(0.1, wall_seconds=100.0, training_seconds=2.0)  # a slow start does not count
    assert left.seconds == pytest.approx(18.0)
    left.update(0.3, wall_seconds=120.0, training_seconds=6.0)  # 20 s for 0.2, validation included
    assert left.seconds == pytest.approx(70.0)
    left.update(1.0, wall_seconds=190.0, training_seconds=20.0)
    assert left.seconds == 0.0
