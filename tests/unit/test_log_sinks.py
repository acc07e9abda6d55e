"""Where the log goes besides its JSON files: what arrives there, also after a resumption, and what
happens where a sink fails."""

from __future__ import annotations

import csv
import importlib.util
import math
import sys
from types import SimpleNamespace

import pytest

from recipe.log_sinks import TAGS, curves_of, flat, missing_packages
from tests.unit.test_training_logger import log_eval, log_step, make_logger, metrics_lines, train
from training_logger import ResumePoint, read_metrics, set_aside_unfinished_log


def interrupted_run(run_dir, *sinks: str) -> None:
    """35 steps, then 40 from the checkpoint of step 20 on."""
    with make_logger(run_dir, sinks=sinks) as logger:
        train(logger, 5, 35)
    with make_logger(run_dir, sinks=sinks, resume=ResumePoint(20)) as logger:
        train(logger, 25, 40)


def test_every_number_of_a_line_has_a_curve_but_the_constant_ones(tmp_path):
    memory = dict.fromkeys(("allocated", "resident", "peak", "reserved"), 1.0)
    with make_logger(tmp_path) as logger:
        log_step(logger, 10, memory=memory)
        log_eval(logger, 10)
    seen = {key for line in metrics_lines(tmp_path) for key in flat(line)}
    left = {"kind", "iter", "wall_seconds", "gradients/mean", "gradients/std"}
    constant = {"mfu/achieved_tflops", "mfu/peak_tflops", "mfu/flops_per_token", "mfu/architecture"}
    assert seen == TAGS.keys() | left | constant
    assert len(set(TAGS.values())) == len(TAGS)


def test_a_line_is_flattened_and_has_no_curve_for_what_is_not_finite():
    line = {"iter": 3, "loss": None, "memory": {"peak": 5}, "mfu": {"mfu_percent": None}}
    assert flat(line) == {"iter": 3, "loss": None, "memory/peak": 5, "mfu/mfu_percent": None}
    assert curves_of(line) == {"memory/peak_bytes": 5}


def test_without_sinks_there_are_no_further_files(tmp_path):
    with make_logger(tmp_path) as logger:
        log_step(logger, 5)
    assert {path.name for path in tmp_path.iterdir()} == {
        "run.json",
        "metrics.jsonl",
        "report.html",
    }


# --- CSV ---


def csv_lines(run_dir) -> list[dict]:
    """The rows of metrics.csv without their empty cells."""
    with open(run_dir / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert not any(None in row for row in rows)  # no row is longer than the header
    return [{key: cell for key, cell in row.items() if cell} for row in rows]


def as_text(lines) -> list[dict]:
    """Lines of metrics.jsonl as a table has them: flat, every value as text, None as nothing."""
    return [{k: str(v) for k, v in flat(line).items() if v is not None} for line in lines]


def test_the_table_equals_the_lines_as_they_come(tmp_path):
    with make_logger(tmp_path, sinks=["csv"]) as logger:
        assert csv_lines(tmp_path) == []
        for write in (log_eval, log_step, log_step, log_eval):
            write(logger, len(metrics_lines(tmp_path)))
            assert csv_lines(tmp_path) == as_text(metrics_lines(tmp_path))
        log_step(logger, 50, loss=math.nan, memory={"allocated": 1, "reserved": 2})  # new columns
        assert csv_lines(tmp_path) == as_text(metrics_lines(tmp_path))
    assert len(csv_lines(tmp_path)) == 5
    assert (tmp_path / "metrics.csv").read_text().count("kind,wall_seconds,iter") == 1


def test_the_table_equals_the_lines_after_a_resumption(tmp_path):
    interrupted_run(tmp_path, "csv")
    assert csv_lines(tmp_path) == as_text(metrics_lines(tmp_path))
    iters = [row["iter"] for row in csv_lines(tmp_path)]
    assert iters == [str(i) for i in (5, 10, 10, 15, 20, 20, 25, 30, 30, 35, 40, 40)]


def test_a_table_that_begins_at_a_resumption_has_what_came_before(tmp_path):
    with make_logger(tmp_path) as logger:
        train(logger, 5, 20)
    with make_logger(tmp_path, sinks=["csv"], resume=ResumePoint(10)) as logger:
        assert csv_lines(tmp_path) == as_text(metrics_lines(tmp_path))
        train(logger, 15, 20)
    assert csv_lines(tmp_path) == as_text(metrics_lines(tmp_path))


# --- TensorBoard ---


def scalars_of(run_dir) -> dict[str, list[tuple[int, float]]]:
    """Of each curve (step, value) in order, as TensorBoard reads them."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulators.EventAccumulator(str(run_dir / "tensorboard"))
    found.Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def expected_curves(run_dir) -> dict[str, dict[int, float]]:
    curves: dict[str, dict[int, float]] = {}
    for line in metrics_lines(run_dir):
        for name, value in curves_of(line).items():
            curves.setdefault(name, {})[line["iter"]] = value
    return curves


def assert_same_curves(run_dir) -> None:
    found, expected = scalars_of(run_dir), expected_curves(run_dir)
    assert found.keys() == expected.keys()
    for name, points in found.items():
        assert dict(points) == pytest.approx(expected[name]), name  # TensorBoard has float32
        steps = [step for step, _ in points]
        assert steps == sorted(steps)


def test_tensorboard_has_the_curves_and_the_config(tmp_path):
    pytest.importorskip("tensorboard", reason="see requirements-dev.txt")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with make_logger(tmp_path, sinks=["tensorboard"]) as logger:
        log_step(logger, 5)
        assert scalars_of(tmp_path)["loss/train"] == [(5, pytest.approx(10 / 6))]  # at once
        train(logger, 10, 20)
    assert_same_curves(tmp_path)
    assert {"loss/val", "loss/val_bits_per_byte", "speed/mfu_percent"} <= scalars_of(
        tmp_path
    ).keys()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    [text] = events.Tensors("config/text_summary")
    assert "| n_layer | 12 |" in text.tensor_proto.string_val[0].decode()


def test_tensorboard_forgets_what_is_done_again(tmp_path):
    pytest.importorskip("tensorboard", reason="see requirements-dev.txt")
    interrupted_run(tmp_path, "tensorboard")
    assert_same_curves(tmp_path)
    steps = [step for step, _ in scalars_of(tmp_path)["loss/train"]]
    assert steps == [5, 10, 15, 20, 25, 30, 35, 40]


@pytest.mark.parametrize("before", [[], ["tensorboard"]])
def test_tensorboard_that_missed_a_session_has_it_all_the_same(tmp_path, before):
    pytest.importorskip("tensorboard", reason="see requirements-dev.txt")
    with make_logger(tmp_path, sinks=before) as logger:
        train(logger, 5, 10)
    with make_logger(tmp_path, resume=ResumePoint(10)) as logger:
        train(logger, 15, 30)
    with make_logger(tmp_path, sinks=["tensorboard"], resume=ResumePoint(20)) as logger:
        train(logger, 25, 30)
    assert_same_curves(tmp_path)
    assert [step for step, _ in scalars_of(tmp_path)["loss/val"]] == [10, 20, 30]


def test_tensorboard_forgets_a_run_whose_log_was_discarded(tmp_path):
    pytest.importorskip("tensorboard", reason="see requirements-dev.txt")
    with make_logger(tmp_path, sinks=["tensorboard"]) as logger:
        train(logger, 5, 20)
        logger.interrupted()
    set_aside_unfinished_log(tmp_path)
    with make_logger(tmp_path, sinks=["tensorboard"]) as logger:
        train(logger, 5, 10)
    assert_same_curves(tmp_path)


# --- Weights & Biases ---


class FakeWandb:
    """What WandbSink calls, noted; its runs outlive it, as on a server."""

    def __init__(self):
        self.inits: list[dict] = []
        self.logged: list[tuple[int, dict]] = []
        self.exit_codes: list[int] = []
        self.failure: Exception | None = None

    def init(self, **settings) -> SimpleNamespace:
        known = settings["id"] in [earlier["id"] for earlier in self.inits]
        self.inits.append(settings)
        return SimpleNamespace(
            resumed=known,
            log=self.log,
            finish=lambda exit_code: self.exit_codes.append(exit_code),
        )

    def log(self, numbers, step) -> None:
        if self.failure:
            raise self.failure
        self.logged.append((step, numbers))


@pytest.fixture
def wandb(monkeypatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return fake


def test_wandb_gets_the_run_and_its_curves(tmp_path, wandb, monkeypatch):
    with make_logger(tmp_path, sinks=["wandb"]) as logger:
        train(logger, 5, 10)
    [settings] = wandb.inits
    assert (settings["project"], settings["name"]) == ("nanoarch", "tiny-run")
    assert settings["config"] == {"learning_rate": 1e-3, "n_layer": 12}
    assert (settings["resume"], settings["dir"]) == ("allow", str(tmp_path))
    lines = metrics_lines(tmp_path)
    assert wandb.logged == [(line["iter"], curves_of(line)) for line in lines]
    assert wandb.exit_codes == [0]
    monkeypatch.setenv("WANDB_PROJECT", "thesis")
    with make_logger(tmp_path / "other", sinks=["wandb"]):
        pass
    assert wandb.inits[1]["project"] == "thesis"
    config = {"wandb_project": "paper", "wandb_group": "norms"}
    with make_logger(tmp_path / "third", sinks=["wandb"], config=config):
        pass
    assert (wandb.inits[2]["project"], wandb.inits[2]["group"]) == ("paper", "norms")
    assert wandb.inits[1]["id"] != settings["id"]  # of another run, though its name is the same


def test_a_resumed_run_goes_on_in_its_wandb_run(tmp_path, wandb):
    interrupted_run(tmp_path, "wandb")
    first, second = wandb.inits
    assert first["id"] == second["id"]
    iters = [step for step, _ in wandb.logged]
    assert iters == [5, 10, 10, 15, 20, 20, 25, 30, 30, 35] + [25, 30, 30, 35, 40, 40]


def test_a_wandb_run_that_begins_at_a_resumption_has_what_came_before(tmp_path, wandb):
    with make_logger(tmp_path) as logger:
        train(logger, 5, 20)
    with make_logger(tmp_path, sinks=["wandb"], resume=ResumePoint(10)) as logger:
        train(logger, 15, 15)
    assert [step for step, _ in wandb.logged] == [5, 10, 10, 15]


def test_a_run_that_fails_has_failed_in_wandb(tmp_path, wandb):
    with pytest.raises(RuntimeError), make_logger(tmp_path, sinks=["wandb"]):
        raise RuntimeError
    assert wandb.exit_codes == [1]


def test_the_real_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="pip install wandb; it is too large to ask for")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    with make_logger(tmp_path, sinks=["wandb"]) as logger:
        train(logger, 5, 10)
    with make_logger(tmp_path, sinks=["wandb"], resume=ResumePoint(10)) as logger:
        train(logger, 15, 20)
    files = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len({file.name for file in files}) == 1  # one run, of two sessions
    contents = [file.read_bytes() for file in files]
    for name in ("loss/train", "loss/val", "optimizer/lr", "n_layer", "tiny-run"):
        assert any(name.encode() in content for content in contents), name


# --- What goes wrong ---


def test_a_sink_that_fails_is_given_up_once_and_the_run_goes_on(tmp_path, wandb, capsys):
    with make_logger(tmp_path, sinks=["csv", "wandb"]) as logger:
        log_step(logger, 5)
        wandb.failure = OSError("the network is away")
        train(logger, 10, 20)
    told = [line for line in capsys.readouterr().out.splitlines() if "disabled" in line]
    assert told == ["log_to='wandb' failed (OSError: the network is away) and is disabled."]
    assert [step for step, _ in wandb.logged] == [5]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 6
    assert csv_lines(tmp_path) == as_text(metrics_lines(tmp_path))


def test_a_sink_that_fails_at_the_end_does_not_fail_the_run(tmp_path, wandb, monkeypatch, capsys):
    def refuse(exit_code):
        raise RuntimeError("no")

    with make_logger(tmp_path, sinks=["wandb"]) as logger:
        monkeypatch.setattr(wandb, "exit_codes", SimpleNamespace(append=refuse))
        log_step(logger, 5)
    out = capsys.readouterr().out
    assert "log_to='wandb' failed (RuntimeError: no) and is disabled." in out
    assert any(line.startswith("completed in ") for line in out.splitlines())


def test_a_sink_that_cannot_start_stops_the_run_before_it_has_a_log(tmp_path, wandb, monkeypatch):
    def refuse(**settings):
        raise RuntimeError("not logged in")

    monkeypatch.setattr(wandb, "init", refuse)
    message = r"log_to='wandb' cannot start \(RuntimeError: not logged in\); fix that, or change"
    with pytest.raises(ValueError, match=message):
        make_logger(tmp_path, sinks=["csv", "wandb"]).__enter__()
    with make_logger(tmp_path, sinks=["csv"]):  # the folder holds no run yet
        pass


def test_packages_that_are_missing_are_named(monkeypatch):
    assert missing_packages(["csv"]) == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert missing_packages(["csv"]) == []
    assert missing_packages(["csv", "wandb", "tensorboard"]) == ["wandb", "tensorboard"]
