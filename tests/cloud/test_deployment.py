"""Deployments without trouble, and the cost cap."""

from __future__ import annotations

import csv

import pytest

from cloud.cost_log import COLUMNS
from tests.cloud.conftest import DONE, LIMIT, Cloud, check, names


def test_a_run_is_trained_and_brought_home(cloud: Cloud):
    ended = cloud.deploy()
    check(cloud, ended, DONE, "done: validation loss 2.0000 nats; results in out/tried.")
    assert names(cloud) == [("4090", "EU-RO-1")]
    home = cloud.folder / "out/tried"
    assert {path.name for path in home.iterdir()} == {"run.json", "metrics.jsonl", "checkpoints"}
    assert [path.name for path in (home / "checkpoints").iterdir()] == ["step_00000060"]


def test_costs_are_logged_at_changes_and_every_300_seconds(cloud: Cloud):
    ended = cloud.deploy()
    with (cloud.folder / "metrics/cost_log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    states = [row["state"] for row in rows]
    assert states[0] == "starting"
    assert states[-2:] == ["done", "ended"]
    assert states.count("train") == 5  # in 20 minutes
    times = [float(row["runtime_seconds"]) for row in rows]
    assert max(b - a for a, b in zip(times, times[1:], strict=False)) <= 301
    assert float(rows[-1]["cumulative_usd"]) == pytest.approx(cloud.world.spent(), rel=0.01)
    assert f"${float(rows[-1]['cumulative_usd']):.2f}" in ended.last


def test_a_dry_run_rents_nothing(cloud: Cloud):
    ended = cloud.deploy("--dry_run")
    assert ended.status == DONE
    assert cloud.world.rented == []
    prices = [line.split()[-1] for line in ended.lines if line.startswith("  1 x ")]
    assert prices == sorted(prices, key=float)
    assert "left out: NVIDIA Unheard Of in 3 places: peak speed unknown" in ended.text


def test_the_cap_holds_between_two_looks(cloud: Cloud, long_run):
    ended = cloud.deploy("--max_cost=1")
    check(cloud, ended, LIMIT, "stopped at the cost cap of $1.00; what was saved", cap=1)
    assert cloud.world.spent() > 0.9
    assert (cloud.folder / "out/tried/run.json").exists()
