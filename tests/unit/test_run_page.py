"""The page of a run without a browser: when it is written, what it keeps, what it costs."""

from __future__ import annotations

import json
import random
import time

import pytest

from pages.thinning import with_spikes
from tests.study import HOSTILE
from tests.unit.test_comparison_report import Page
from tests.unit.test_training_logger import log_eval, log_step, make_logger, read_run, train
from training.run_page.page import LEAST_SECONDS, MOST_SHARE, RunPage
from training.run_page.series import MOST_POINTS, PANELS
from training_logger import ResumePoint


def shown(folder) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def drawn(folder) -> dict:
    """What the page draws."""
    return json.loads(shown(folder).scripts["run-data"])


def curve_of(data: dict, panel: str, name: str) -> dict:
    (found,) = (own for own in data["panels"] if own["name"] == panel)
    return next(own for own in found["curves"] if own["name"] == name)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# --- Thinning ---


def test_thinning_keeps_ends_and_spikes_however_often():
    random.seed(3)
    points = [(x, random.random()) for x in range(5000)]
    points[1234], points[4321] = (1234, 50.0), (4321, -50.0)
    once = with_spikes(points, 100, lambda point: point[1])
    twice = with_spikes(once, 20, lambda point: point[1])
    for kept, most in ((once, 100), (twice, 20)):
        assert len(kept) <= most
        assert kept == sorted(kept)
        assert {points[0], points[-1], (1234, 50.0), (4321, -50.0)} <= set(kept)
    assert with_spikes(points[:7], 7, lambda point: point[1]) == points[:7]


# --- What it shows ---


def test_a_finished_run_shows_all_that_was_logged(tmp_path):
    with make_logger(tmp_path) as logger:
        log_eval(logger, 0)
        train(logger, 5, 20)
    data = drawn(tmp_path)
    assert not data["live"]
    assert [panel["name"] for panel in data["panels"]] == [panel.name for panel in PANELS]
    log = read_run(tmp_path)
    steps, evals = log["training_iterations"], log["eval_steps"]
    training = curve_of(data, "loss", "training")
    assert training["steps"] == [record["iter"] for record in steps]
    assert training["values"] == pytest.approx([record["loss"] for record in steps], rel=1e-5)
    validation = curve_of(data, "loss", "validation")
    assert validation["steps"] == [0, 10, 20]
    assert validation["values"] == pytest.approx([record["val_loss"] for record in evals], rel=1e-5)
    texts = shown(tmp_path).texts
    assert "completed" in "".join(texts)
    assert {"max_iters", "a CPU", "tiny"} - set(texts) <= {"max_iters"}


def test_values_far_apart_get_a_logarithmic_axis_and_none_is_lost(tmp_path):
    with make_logger(tmp_path) as logger:
        for iter in range(1, 20):
            log_step(logger, iter, loss=3.0 if iter != 7 else 30_000.0)
            log_step(logger, iter, loss=float("nan"))
    (loss,) = (panel for panel in drawn(tmp_path)["panels"] if panel["name"] == "loss")
    assert loss["logarithmic"]
    assert max(loss["curves"][0]["values"]) == 30_000
    assert len(loss["curves"][0]["values"]) == 19


def test_names_and_texts_are_never_markup(tmp_path):
    settings = {"config": {"key": HOSTILE}, "plugins": {HOSTILE: "c0de"}}
    with make_logger(tmp_path, environment={"device": f"{HOSTILE} \udcff"}, **settings) as logger:
        logger.log_sample(iter=1, tokens_seen=1, prompt=HOSTILE, text=f"{HOSTILE}\x00\udfff")
    page = shown(tmp_path)
    assert not [attributes for _, attributes in page.tags if "onerror" in attributes]
    assert [tag for tag, _ in page.tags].count("script") == 2  # data, and the page's own
    assert HOSTILE in "".join(page.texts)


def test_the_machine_is_described_and_not_named(tmp_path):
    environment = {"device": "a CPU of some kind", "host": "machine-of-mine"}
    with make_logger(tmp_path, environment=environment, config={"out_dir": "/home/me", "key": 7}):
        pass
    texts = "".join(shown(tmp_path).texts)
    assert "a CPU of some kind" in texts
    assert "/home/me" not in texts
    assert "machine-of-mine" not in texts
    assert read_run(tmp_path)["environment"]["host"] == "machine-of-mine"


def test_nothing_is_asked_of_another_address(tmp_path):
    with make_logger(tmp_path) as logger:
        train(logger, 5, 20)
        running = shown(tmp_path)
    ended = shown(tmp_path)
    for page, live in ((running, True), (ended, False)):
        (policy,) = (a["content"] for _, a in page.tags if a.get("http-equiv"))
        assert policy.startswith("default-src 'none'; ")
        assert ("connect-src 'self'" in policy) == live
        assert not [a for _, a in page.tags if "src" in a]


# --- When it is written ---


def fake_run(status: str = "running") -> dict:
    summary = dict.fromkeys(
        (
            *("final_val_loss", "best_val_loss", "best_val_iter", "median_tokens_per_second"),
            *("median_mfu_percent", "peak_memory_bytes"),
        )
    )
    return {
        "run_name": "x",
        "status": status,
        "start_time": "2025-01-01T00:00:00",
        "end_time": None,
        "config": {},
        "roles": {},
        "plugins": {},
        "architecture": {},
        "environment": {},
        "data": {},
        "summary": summary | {"total_tokens": 0, "wall_seconds": 0.0, "bad_steps": 0},
    }


def test_it_is_written_at_most_every_few_seconds_and_always_at_the_end(tmp_path):
    clock, written = Clock(), []
    page = RunPage(tmp_path, print, clock)
    for tenth in range(100):
        clock.now = tenth / 10
        before = page.path.stat().st_mtime_ns if page.path.exists() else None
        page.refresh(fake_run(), None)
        if page.path.stat().st_mtime_ns != before:
            written.append(clock.now)
    assert written == [0, 2, 4, 6, 8]
    page.refresh(fake_run("completed"), None)
    assert "completed" in page.path.read_text(encoding="utf-8")


def test_a_slow_disk_makes_it_rarer(tmp_path, monkeypatch):
    clock, written = Clock(), []

    def slow(*_, **__):
        clock.now += 0.5
        written.append(clock.now)

    monkeypatch.setattr("training.run_page.page.write_atomically", slow)
    page = RunPage(tmp_path, print, clock)
    while clock.now < 2000:
        clock.now += 1
        page.refresh(fake_run(), None)
    assert 0.5 * (len(written) - 1) <= MOST_SHARE * 2000 + 0.5
    assert len(written) > 15
    assert LEAST_SECONDS < 0.5 / MOST_SHARE


def test_a_failure_is_said_once_and_ends_no_run(tmp_path, capsys):
    (tmp_path / "run" / "report.html").mkdir(parents=True)
    with make_logger(tmp_path / "run") as logger:
        train(logger, 5, 20)
    assert read_run(tmp_path / "run")["status"] == "completed"
    assert capsys.readouterr().out.count("cannot be written") == 1


def test_a_resumed_run_goes_on_with_its_curves_and_samples(tmp_path):
    with make_logger(tmp_path) as logger:
        train(logger, 5, 10)
        logger.log_sample(iter=10, tokens_seen=1, prompt="kept ", text="text")
        train(logger, 15, 15)
        run_id, records = logger.run_id, logger.records
        train(logger, 20, 20)
        logger.log_sample(iter=20, tokens_seen=1, prompt="dropped ", text="text")
    resume = ResumePoint(step=15, run_id=run_id, logged=records)
    with make_logger(tmp_path, resume=resume) as logger:
        train(logger, 20, 30)
    assert curve_of(drawn(tmp_path), "loss", "training")["steps"] == [5, 10, 15, 20, 25, 30]
    texts = shown(tmp_path).texts
    assert "kept " in texts
    assert "dropped " not in texts


# --- What it costs ---


def test_it_stays_small_however_long_the_run(tmp_path):
    page = RunPage(tmp_path, print, Clock())
    for step in range(1, 60_001):
        page.add(
            {
                "kind": "train",
                "iter": step,
                "tokens_seen": step * 500_000,
                "wall_seconds": step * 1.234,
                "loss": 3 + random.random() if step != 31_415 else 77.7,
                "lr": 1e-3 * random.random(),
                "tokens_per_second": 1e5 * random.random(),
                "memory": {"allocated": 1e9, "peak": 2e9 + step},
                "gradients": {"norm": random.random()},
            }
        )
    page.refresh(fake_run("completed"), 60_000)
    assert page.path.stat().st_size < 400_000
    training = curve_of(drawn(tmp_path), "loss", "training")
    assert len(training["values"]) <= MOST_POINTS
    assert 77.7 in training["values"]
    assert training["steps"][0] == 1
    assert training["steps"][-1] == 60_000


def test_a_record_takes_microseconds(tmp_path):
    page = RunPage(tmp_path, print, Clock())
    page.refresh(fake_run(), None)  # what is written at first is before the loop
    record = {
        **{"kind": "train", "iter": 1, "tokens_seen": 1, "wall_seconds": 1.0, "loss": 3.0},
        **{"lr": 1.0, "tokens_per_second": 1.0, "memory": {"peak": 1}, "gradients": {"norm": 1}},
    }
    run, start = fake_run(), time.thread_time()
    for _ in range(5000):
        page.add(record)
        page.refresh(run, None)
    assert (time.thread_time() - start) / 5000 < 200e-6
