"""A plan as it is printed, and the progress of its runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiment import progress
from experiment.budgets import Budget
from experiment.jobs import COMPLETED, FAILED, Job, Outcome
from experiment.overview import detects, overview
from experiment.plan import Plan
from experiment.progress import Progress, run_jobs
from tests.tiny_sweep import config_file, tiny_plan
from training.console import Console
from training_logger import format_count, format_duration, format_flops

NORMS = {"normalization": ("rmsnorm",)}
MANY = {"n_kv_head": ("1",), "ffn_type": ("swiglu",), "normalization": ("rmsnorm",)}


@pytest.fixture
def plan(tiny_dataset: Path, tmp_path: Path) -> Callable[..., Plan]:
    return lambda **asked: tiny_plan(tiny_dataset, tmp_path, **{"vary": NORMS, **asked})


def log(job: Job, loss: float, status: str = "completed") -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    text = {"status": status, "eval_steps": [{"val_loss": loss}], "summary": {"bad_steps": 0}}
    (job.folder / "run.json").write_text(json.dumps(text))


def seconds(plan: Plan, each: float = 60.0) -> dict[str, float]:
    return {arm.name: each for arm in plan.arms}


def lines_of(plan: Plan, **settings: Any) -> list[str]:
    """All but the folder's, whose length is not ours."""
    first, second, *lines = overview(plan, **settings).splitlines()
    assert (first, second) == (f"Sweep {plan.name}", f"  in {plan.folder}")
    return lines


# The overview


def test_a_folder_below_the_current_one_is_told_from_there(
    plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan()
    monkeypatch.chdir(tmp_path)
    expected = f"  in {made.folder.relative_to(tmp_path)}"
    assert overview(made).splitlines()[1] == expected


@pytest.mark.parametrize(
    "asked",
    [
        {"vary": MANY, "seeds": 12},
        {"tune": {"learning_rate": ("1e-3", "2e-3"), "beta1": ("0.8", "0.9")}},
        {"budget": Budget("minutes", 2)},
        {"match": "flops", "budget": Budget("flops", 1e9)},
    ],
)
def test_it_fits_a_screen(plan: Callable[..., Plan], asked: dict[str, Any]) -> None:
    made = plan(**asked)
    lines = lines_of(made, seconds=seconds(made), workers=3, gpus=2)
    assert max(map(len, lines)) <= 100


def test_arms_of_long_names_are_numbered(plan: Callable[..., Plan], tmp_path: Path) -> None:
    name = "an_architecture_" * 4
    made = plan(arms=[config_file(tmp_path, name, bias=True)])
    lines = lines_of(made, seconds=seconds(made))
    assert max(map(len, lines)) <= 100
    assert f"  3  {name}" in lines
    labels = [line.split()[0] for line in lines[lines.index(f"  3  {name}") + 1 :]]
    assert labels[:4] == ["arm", "1", "2", "3"]


def test_the_numbers_are_the_arms(plan: Callable[..., Plan]) -> None:
    made = plan(vary=MANY)
    lines = lines_of(made)
    assert len({arm.tokens for arm in made.arms}) == 1
    for arm in made.arms:
        rows = " ".join(line for line in lines if re.match(rf"\s*{re.escape(arm.name)}  ", line))
        for cell in (
            f"{arm.parameters:,}",
            format_flops(arm.flops_per_token),
            f"  {arm.settings.training.max_iters}  ",
            format_count(arm.tokens),
            format_flops(arm.flops),
        ):
            assert cell in rows
    swapped = next(arm for arm in made.arms if arm.name == "n_kv_head=1")
    said = " ".join(line.strip() for line in lines)
    assert f"n_kv_head=1: ffn_hidden={swapped.solved['ffn_hidden']}" in said


def test_what_is_equal_is_told(plan: Callable[..., Plan]) -> None:
    assert "Parameters match within 0.5 %; no width had to be adjusted." in overview(plan())
    assert "Sizes are not matched (--match=none)." in overview(plan(match="none"))
    assert "FLOPs per token match within 0.5 %" in overview(plan(match="flops"))
    assert f"Budget: {format_count(3200)} tokens per run." in overview(plan())
    timed = overview(plan(budget=Budget("minutes", 2)))
    assert "Budget: 2 minutes of training per run" in timed
    assert "steps  tokens" not in timed


def overview_of_experts(plan: Callable[..., Plan], **asked: Any) -> tuple[Plan, str]:
    made = plan(vary={"ffn_type": ("moe",)}, **asked)
    return made, " ".join(overview(made).split())


@pytest.mark.parametrize("match", ["active_params", "params", "flops", "none"])
def test_both_sizes_of_a_mixture_of_experts_are_told(plan: Callable[..., Plan], match: str) -> None:
    made, told = overview_of_experts(plan, match=match)
    baseline, moe = made.arms
    active, total = map(format_count, (moe.active_parameters, moe.parameters))
    ratio = moe.flops_per_token / baseline.flops_per_token
    assert (
        f"ffn_type=moe: {active} of {total} parameters are active per token; {ratio:.2f}x the "
        "FLOPs per token of the baseline."
    ) in told
    assert "baseline: " not in told
    if match == "active_params":
        assert "Active parameters match within 0.5 %" in told


@pytest.mark.parametrize(
    ("asked", "warned"),
    [
        ({"match": "params"}, r"(0\.\d\d)x the active parameters and (0\.\d\d)x the FLOPs"),
        (
            {"match": "params", "budget": Budget("flops", 1e9)},
            r"(0\.\d\d)x the active parameters of the",
        ),
        ({"match": "active_params"}, None),
        ({"match": "flops"}, None),
        ({"match": "none"}, None),
    ],
)
def test_a_warning_where_a_token_uses_much_more_or_less(
    plan: Callable[..., Plan], asked: dict[str, Any], warned: str | None
) -> None:
    made, told = overview_of_experts(plan, **asked)
    assert told.count("Warning") == (warned is not None)
    if warned:
        found = re.search(f"Warning: ffn_type=moe has {warned}", told).groups()
        baseline, moe = made.arms
        active = moe.active_parameters / baseline.active_parameters
        assert float(found[0]) == pytest.approx(active, abs=0.005)
        assert float(found[0]) < 0.9
        assert "a difference of more than 10 %; --match=active_params makes them equal." in told


def test_a_warning_of_flops_alone(plan: Callable[..., Plan]) -> None:
    """A window takes away FLOPs only."""
    flags = {"block_size": "384"}
    made = plan(flags=flags, vary={"sliding_window": ("16",)})
    baseline, arm = made.arms
    assert arm.parameters == baseline.parameters
    ratio = f"{arm.flops_per_token / baseline.flops_per_token:.2f}"
    assert (
        f"Warning: sliding_window=16 has {ratio}x the FLOPs per token of the baseline, a "
        "difference of more than 10 %; --match=flops makes them equal."
    ) in " ".join(overview(made).split())


def test_seeds_and_runs(plan: Callable[..., Plan]) -> None:
    told = overview(plan(seeds=4, tune={"learning_rate": ("1e-3", "2e-3")}, tune_seeds=3))
    told = " ".join(told.split())
    assert "2 trials of learning_rate for every arm, with seeds from 11337: 12 runs." in told
    assert "2 arms x 4 seeds from 1337 to 1340 (paired" in told
    assert "= 8 runs." in told


def test_keys_that_not_all_arms_are_tuned_over(plan: Callable[..., Plan]) -> None:
    tune = {"beta1": ("0.8", "0.9"), "lion_beta1": ("0.8", "0.9")}
    told = overview(plan(vary={"optimizer": ("lion",)}, tune=tune))
    assert (
        "2 trials for every arm (baseline: beta1; optimizer=lion: lion_beta1), with seeds from "
        "11337: 4 runs."
    ) in " ".join(told.split())


def test_time(plan: Callable[..., Plan]) -> None:
    made = plan(seeds=4)
    assert "Time" not in overview(made)
    assert "about 8.0 min for all runs with 1 worker," in overview(made, seconds(made))
    assert "about 4.0 min for all runs with 2 workers," in overview(made, seconds(made), 2)
    tuned = plan(seeds=4, tune={"learning_rate": ("1e-3", "2e-3")}, tune_seeds=3)
    assert "about 20.0 min for all runs" in overview(tuned, seconds(tuned))
    timed = plan(seeds=4, budget=Budget("minutes", 1))
    assert "excluding validation" in overview(timed, seconds(timed))


def test_gpus_that_are_shared_are_told(plan: Callable[..., Plan]) -> None:
    made = plan()
    assert "3 workers share 2 GPUs: the logged speed" in overview(made, workers=3, gpus=2)
    assert "share" not in "".join(lines_of(made, workers=2, gpus=2)[:-2])
    assert "workers share" not in overview(made, workers=8)
    each = "2 workers, of 2 processes each, share 3 GPUs: the logged speed"
    assert each in " ".join(overview(made, workers=2, gpus=3, processes=2).split())
    assert "speed" not in overview(made, workers=2, gpus=4, processes=2)
    timed = plan(budget=Budget("minutes", 1))
    for shared in ({"workers": 3, "gpus": 1}, {"workers": 2}):
        assert "a time budget buys unequal amounts of work" in " ".join(
            overview(timed, **shared).split()
        )
    assert "unequal amounts" not in overview(timed, workers=2, gpus=2)


def test_what_it_detects(plan: Callable[..., Plan]) -> None:
    assert detects(plan(seeds=1)).startswith("One seed gives no verdict")
    times = [
        float(re.search(r"power\): ([\d.]+) seed SDs", detects(plan(seeds=n)))[1]) for n in (2, 5)
    ]
    assert times[0] > 3 * times[1]
    more = detects(plan(seeds=5, vary=MANY))
    found = re.search(r"power\): ([\d.]+) seed SDs", more)
    assert float(found[1]) > times[1]  # the intervals of more arms are wider


def test_what_it_detects_in_nats_once_runs_are_done(plan: Callable[..., Plan]) -> None:
    made = plan(seeds=3)
    jobs = [job for job in made.final_jobs(made.tuned()) if job.arm == "baseline"]
    for job, loss in zip(jobs, (3.0, 3.1, 3.2), strict=True):
        log(job, loss)
    told = detects(made)
    times = float(re.search(r"power\): ([\d.]+) seed SDs", told)[1])
    found = re.search(r" = ([\d.]+) nats at the SD so far, 0.1000", told)
    assert float(found[1]) == pytest.approx(0.1 * times, abs=0.01)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.9, "1.0 min"),
        (90, "1.5 min"),
        (3599, "1.0 h"),
        (9000, "2.5 h"),
        (50 * 3600, "2.1 days"),
    ],
)
def test_durations(seconds: float, told: str) -> None:
    assert format_duration(seconds) == told


# Progress


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def metrics(job: Job, step: int) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    line = {"kind": "train", "iter": step, "wall_seconds": 1.0}
    (job.folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_lines_of_progress(plan: Callable[..., Plan], clock: Clock, capsys: Any) -> None:
    made = plan(seeds=2)
    jobs = made.final_jobs(made.tuned())
    capsys.readouterr()
    with Progress(jobs, Console()) as shown:
        for job in jobs:
            clock.seconds += 60
            log(job, 3.25)
            shown.show(Outcome(job, COMPLETED, 60.0))
    assert printed(capsys) == [
        "1/4  baseline, seed 1337  val loss 3.2500  1.0 min  about 3.0 min left",
        "2/4  normalization=rmsnorm, seed 1337  val loss 3.2500  1.0 min  about 2.0 min left",
        "3/4  baseline, seed 1338  val loss 3.2500  1.0 min  about 1.0 min left",
        "4/4  normalization=rmsnorm, seed 1338  val loss 3.2500  1.0 min",
    ]


def test_time_left_where_runs_go_on(plan: Callable[..., Plan], clock: Clock, capsys: Any) -> None:
    """A run of which nine tenths were done before leaves a tenth, beside a whole one."""
    made = plan(seeds=1)
    jobs = made.final_jobs(made.tuned())
    metrics(jobs[0], 90)
    capsys.readouterr()
    with Progress(jobs, Console()) as shown:
        clock.seconds += 10
        log(jobs[0], 3.25)
        shown.show(Outcome(jobs[0], COMPLETED, 10.0))
    assert printed(capsys)[0].endswith("val loss 3.2500  10 s  about 1.7 min left")


def test_runs_under_way_count(plan: Callable[..., Plan], clock: Clock, capsys: Any) -> None:
    made = plan(seeds=1)
    jobs = made.final_jobs(made.tuned())
    capsys.readouterr()
    with Progress(jobs, Console()) as shown:
        clock.seconds += 30
        metrics(jobs[1], 50)
        log(jobs[0], 3.25)
        shown.show(Outcome(jobs[0], COMPLETED, 30.0))
    assert printed(capsys)[0].endswith("about 10 s left")


def test_how_soon_a_run_fails_tells_nothing(
    plan: Callable[..., Plan], clock: Clock, capsys: Any
) -> None:
    made = plan(seeds=1)
    jobs = made.final_jobs(made.tuned())
    capsys.readouterr()
    with Progress(jobs, Console()) as shown:
        clock.seconds += 3
        shown.show(Outcome(jobs[0], FAILED, 3.0))
        clock.seconds += 27
        metrics(jobs[1], 25)
        shown.show(None)
        assert shown._share_done == 0.25
    assert printed(capsys) == ["1/2  baseline, seed 1337  failed  3 s"]


def test_a_run_that_was_all_but_over(plan: Callable[..., Plan], capsys: Any) -> None:
    made = plan(seeds=1)
    jobs = made.final_jobs(made.tuned())[:1]
    metrics(jobs[0], 100)
    capsys.readouterr()
    with Progress(jobs, Console()) as shown:
        shown.show(Outcome(jobs[0], FAILED, 1.0))
    assert printed(capsys) == ["1/1  baseline, seed 1337  failed  1 s"]


class Recorder:
    """An engine that runs nothing."""

    workers = 1

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def run(self, jobs: list[Job], stops: Callable[[], bool]) -> Any:
        self.jobs += jobs
        yield from (Outcome(job, FAILED, 1.0, "why") for job in jobs)


class Stop:
    requested: str | None = None


def test_what_is_done_is_not_run_again(plan: Callable[..., Plan], capsys: Any) -> None:
    made, engine = plan(seeds=1), Recorder()
    jobs = made.final_jobs(made.tuned())
    log(jobs[0], 3.0)
    capsys.readouterr()
    failed = run_jobs(jobs, engine, Stop(), Console())
    assert engine.jobs == [jobs[1]]
    assert [outcome.job for outcome in failed] == [jobs[1]]
    assert printed(capsys)[0] == "1 of 2 runs are already done."
    log(jobs[1], 3.0)
    assert run_jobs(jobs, engine, Stop(), Console()) == []
    assert printed(capsys) == ["all of 2 runs are already done."]


def test_nothing_is_begun_after_a_stop(plan: Callable[..., Plan]) -> None:
    made, engine, stop = plan(seeds=1), Recorder(), Stop()
    stop.requested = "SIGINT"
    assert run_jobs(made.final_jobs(made.tuned()), engine, stop, Console()) == []
    assert not engine.jobs
