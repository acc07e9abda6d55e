"""Sweeps from end to end: what a person sees, and what lies in the folder afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

import sweep
import train
from comparison.findings import Findings
from errors import UserError
from experiment.jobs import ENDED, FAILED, Job, Outcome
from experiment.selection import select
from tests.integration.child import Child
from tests.integration.runs import Workshop, assert_same_course, log_of
from training.run_directory import locked

ARMS = ("--vary", "normalization=rmsnorm")
COURSE = ("--max_iters=8", "--eval_interval=4")


class InThisProcess:
    """An engine that trains where the test is, which saves the seconds that a process starts in."""

    workers = 1

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def run(self, jobs: Sequence[Job], stops: Callable[[], bool]) -> Iterator[Outcome | None]:
        for job in jobs:
            self.jobs.append(job)
            try:
                train.main(job.command[2:])
            except (UserError, RuntimeError) as error:
                status = job.status if job.status in ENDED else FAILED
                yield Outcome(job, status, 1.0, repr(error))
            else:
                yield Outcome(job, job.status, 1.0)


class Sweeps:
    """A folder for sweeps and a dataset to train on."""

    def __init__(self, dataset: Path, out_dir: Path):
        self._workshop = Workshop(dataset, out_dir)
        self.folder = out_dir / "sweeps" / "it"

    def argv(self, *arguments: str) -> list[str]:
        return [*self._workshop.argv(*arguments, run_name=None), "--name=it"]

    def __call__(self, *arguments: str) -> int:
        return sweep.main(self.argv(*arguments))

    @property
    def runs(self) -> dict[str, Path]:
        return {path.name: path for path in sorted(self.folder.glob("runs/*"))}

    @property
    def findings(self) -> Findings:
        return select([str(self.folder)], None, Path("out")).findings()


@pytest.fixture
def sweeps(dataset: Path, tmp_path: Path) -> Sweeps:
    return Sweeps(dataset, tmp_path / "out")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> InThisProcess:
    engine = InThisProcess()
    monkeypatch.setattr(sweep, "make_engine", lambda *_: engine)
    return engine


def configs(runs: dict[str, Path], key: str) -> list[Any]:
    return [log_of(run)["config"][key] for run in runs.values()]


# Runs in processes of their own


def test_a_sweep_and_the_same_again(
    sweeps: Sweeps, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*ARMS, *COURSE, "--seeds=2", "--workers=2")
    assert sweeps(*command) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "2 arms x 2 seeds from 1337 to 1338 (paired" in said.out
    assert re.search(r"^4/4  .*, seed \d+  val loss \d\.\d{4}  ", said.out, re.MULTILINE)
    assert list(sweeps.runs) == [
        *("baseline-s1337", "baseline-s1338"),
        *("normalization-rmsnorm-s1337", "normalization-rmsnorm-s1338"),
    ]
    assert configs(sweeps.runs, "seed") == configs(sweeps.runs, "data_seed") == [1337, 1338] * 2
    assert {log_of(run)["status"] for run in sweeps.runs.values()} == {"completed"}

    baseline, arm = sweeps.findings.rows
    assert {run.run_name for run in baseline.group.runs} == {"baseline-s1337", "baseline-s1338"}
    assert (arm.changes, arm.set_apart) == ({"normalization": "rmsnorm"}, ())
    assert arm.verdict.difference.paired
    assert "the baseline" in said.out  # the comparison
    page = sweeps.folder / "report.html"
    assert said.out.splitlines()[-1] == f"Report: {page}"
    shown = page.read_text(encoding="utf-8")
    for run in sweeps.runs:
        assert f'href="./runs/{run}/report.html"' in shown
    assert json.loads((sweeps.folder / "sweep.json").read_text())["command"].startswith("python sw")

    engine = InThisProcess()
    monkeypatch.setattr(sweep, "make_engine", lambda *_: engine)
    assert sweeps(*command) == 0
    assert "all of 4 runs are already done." in capsys.readouterr().out
    assert not engine.jobs

    assert sweeps(*ARMS, *COURSE, "--seeds=3") == 0
    assert "4 of 6 runs are already done." in capsys.readouterr().out
    assert [job.folder.name for job in engine.jobs] == [
        *("baseline-s1339", "normalization-rmsnorm-s1339")
    ]
    assert all(row.group.n == 3 for row in sweeps.findings.rows)


SLOWED = '''
import time
from pathlib import Path

from components.activations import ACTIVATIONS, GELU


@ACTIVATIONS.register("slowed", label="Slowed")
class Slowed(GELU):
    """GELU, which takes its time while a file exists."""

    def forward(self, x):
        if Path({file!r}).exists():
            time.sleep(0.1)
        return super().forward(x)
'''


@pytest.mark.slow
def test_a_stop_and_the_same_command_again(
    dataset: Path, sweeps: Sweeps, tmp_path: Path, engine: InThisProcess
) -> None:
    """Ends equal to a sweep that was not stopped, bit for bit."""
    slow, plugin = tmp_path / "slow", tmp_path / "slowed.py"
    plugin.write_text(SLOWED.format(file=str(slow)))
    parts = (f"--plugins={plugin}", "--activation=slowed")
    course = (*ARMS, *parts, "--max_iters=60", "--eval_interval=30", "--seeds=1")
    slow.touch()  # so that no run ends while the signal is on its way, which takes polls
    child = Child("sweep.py", sweeps.argv(*course), tmp_path / "child")
    metrics = sweeps.folder / "runs" / "baseline-s1337" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 2):
        assert child.running, child.output + child.errors
        time.sleep(0.02)
    child.send(signal.SIGINT)
    assert child.finish() == 1, child.errors
    assert "SIGINT received: sweep stopped; the same command continues it" in child.output
    assert log_of(sweeps.runs["baseline-s1337"])["status"] == "interrupted"
    assert list((sweeps.runs["baseline-s1337"] / "checkpoints").glob("step_*"))
    assert len(sweeps.runs) == 1

    slow.unlink()
    assert sweeps(*course) == 0
    whole = Sweeps(dataset, tmp_path / "whole")
    assert whole(*course) == 0
    assert len(log_of(sweeps.runs["baseline-s1337"])["starts"]) > 1
    for name, run in whole.runs.items():
        assert_same_course(sweeps.runs[name], run, 60)


@pytest.mark.slow  # two processes that a kill leaves, and a sweep beside
def test_a_kill_and_the_same_command_again(
    dataset: Path, sweeps: Sweeps, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run that goes on without its sweep is left alone; another plugin is refused."""
    slow, plugin = tmp_path / "slow", tmp_path / "slowed.py"
    plugin.write_text(SLOWED.format(file=str(slow)))
    course = (
        *("--vary", "position_encoding=rope", "--rope_theta=500", "--match=none"),
        *(f"--plugins={plugin}", "--activation=slowed", "--max_iters=60", "--eval_interval=30"),
        "--seeds=1",
    )
    slow.touch()
    child = Child("sweep.py", sweeps.argv(*course), tmp_path / "child")
    metrics = sweeps.folder / "runs" / "baseline-s1337" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 2):
        assert child.running, child.output + child.errors
        time.sleep(0.02)
    child.send(signal.SIGKILL)
    assert child.finish() == -signal.SIGKILL
    before = plugin.read_text()
    plugin.write_text(before.replace("0.1", "0.2"))
    with pytest.raises(UserError, match=r"baseline: source of slowed.py is \w+ there and \w+ here"):
        sweeps(*course)
    plugin.write_text(before)
    assert sweeps(*course) == 1  # trains the other arm, slowly
    assert "is being trained by process" in capsys.readouterr().err
    slow.unlink()
    while log_of(sweeps.runs["baseline-s1337"])["status"] == "running":
        time.sleep(0.1)
    assert sweeps(*course) == 0
    whole = Sweeps(dataset, tmp_path / "whole")
    assert whole(*course) == 0
    for name, run in whole.runs.items():
        assert_same_course(sweeps.runs[name], run, 60)


@pytest.mark.slow  # each process imports torch
def test_runs_of_two_processes(
    sweeps: Sweeps, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are the runs of one process: the losses agree, and the sweep takes them for done."""
    course = (*ARMS, *COURSE, "--seeds=1", "--batch_size=4")
    assert sweeps(*course, "--gpus_per_run=2") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Each run uses 2 processes, started by torchrun on one machine." in said
    whole = Sweeps(dataset, tmp_path / "whole")
    assert whole(*course) == 0
    for name, run in whole.runs.items():
        one, two = log_of(run), log_of(sweeps.runs[name])
        assert (one["environment"]["device_count"], two["environment"]["device_count"]) == (1, 2)
        expected = [step["val_loss"] for step in one["eval_steps"]]
        assert [step["val_loss"] for step in two["eval_steps"]] == pytest.approx(expected, abs=1e-5)
    capsys.readouterr()
    assert sweeps(*course) == 0
    assert "all of 2 runs are already done." in capsys.readouterr().out


@pytest.mark.slow
def test_a_stop_of_runs_of_two_processes(sweeps: Sweeps, tmp_path: Path) -> None:
    """Their workers save and end; one process goes on with them."""
    course = (*ARMS, "--max_iters=3000", "--eval_interval=3000", "--seeds=1")
    child = Child("sweep.py", sweeps.argv(*course, "--gpus_per_run=2"), tmp_path / "child")
    metrics = sweeps.folder / "runs" / "baseline-s1337" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 2):
        assert child.running, child.output + child.errors
        time.sleep(0.02)
    child.send(signal.SIGINT)
    assert child.finish() == 1, child.errors
    assert "SIGINT received: sweep stopped; the same command continues it" in child.output
    run = sweeps.runs["baseline-s1337"]
    assert log_of(run)["status"] == "interrupted"
    assert list((run / "checkpoints").glob("step_*"))
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            assert str(run.parent) not in " ".join(process.cmdline())
    assert len(sweeps.runs) == 1


# Runs in this process


BREAKS = '''
from components.norms import NORMS, RMSNorm


@NORMS.register("breaks", label="Breaks")
class Breaks(RMSNorm):
    """Raises an error for sequences that are longer than those of the check before a run."""

    def forward(self, x):
        if x.shape[1] > 8:
            raise RuntimeError("out of luck")
        return super().forward(x)
'''


def test_an_arm_that_fails_and_one_that_diverges(
    sweeps: Sweeps, tmp_path: Path, engine: InThisProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first is told and the rest goes on, the second is a result; only the first is retried."""
    plugin = tmp_path / "breaks.py"
    plugin.write_text(BREAKS)
    command = (
        *("--vary", "normalization=breaks", "--vary", "learning_rate=1e30", "--max_bad_steps=1"),
        *(*COURSE, "--seeds=1", f"--plugins={plugin}", "--match=none"),
    )
    assert sweeps(*command) == 1
    said = capsys.readouterr()
    assert said.err.count("FAILED: ") == 1
    assert "FAILED: normalization=breaks, seed 1337\nRuntimeError('out of luck')" in said.err
    assert re.search("baseline, seed 1337  val loss", said.out)
    assert re.search("learning_rate=1e30, seed 1337  diverged", said.out)
    assert "the arm has 0 finished runs (1 failed)" in " ".join(
        said.out.split()
    )  # the comparison tells of the one that diverged

    engine.jobs.clear()
    assert sweeps(*command) == 1
    assert [job.arm for job in engine.jobs] == ["normalization=breaks"]


RENAMED = '''
from torch import nn

from components.ffns import FFNS, StandardFFN


class Renamed(StandardFFN):
    """The standard network; the names of its weights decide other initial numbers."""

    name = ""

    def __init__(self, config):
        super().__init__(config)
        self.add_module(self.name, self._modules.pop("up"))

    def forward(self, x, context):
        return self.dropout(self.down(self.activation(self._modules[self.name](x))))


@FFNS.register("one_copy", label="One")
class One(Renamed):
    """A copy."""

    name = "one"


@FFNS.register("other_copy", label="Other")
class Other(Renamed):
    """Another copy."""

    name = "other"
'''


@pytest.mark.slow
def test_one_architecture_under_three_names(
    sweeps: Sweeps, tmp_path: Path, engine: InThisProcess
) -> None:
    """No copy is better or worse, tuned or not; the copies do differ by chance."""
    plugin = tmp_path / "renamed.py"
    plugin.write_text(RENAMED)
    command = (
        *("--vary", "ffn_type=one_copy,other_copy", f"--plugins={plugin}"),
        *("--tune", "learning_rate=1e-3,3e-3,9e-3", "--max_iters=40", "--eval_interval=40"),
    )
    assert sweeps(*command) == 0
    verdicts = [row.verdict for row in sweeps.findings.rows[1:]]
    assert [verdict.difference.n for verdict in verdicts] == [5, 5]
    assert {verdict.word for verdict in verdicts} <= {"equal", "inconclusive"}
    assert all(verdict.difference.value for verdict in verdicts)


def test_a_sweep_is_no_worker_of_torchrun(
    sweeps: Sweeps, engine: InThisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with pytest.raises(UserError, match="start it without torchrun"):
        sweeps(*ARMS, *COURSE)
    assert not engine.jobs


def test_tuning(sweeps: Sweeps, engine: InThisProcess, capsys: pytest.CaptureFixture[str]) -> None:
    command = (*ARMS, *COURSE, "--tune", "learning_rate=1e-6,1e-2", "--seeds=2")
    assert sweeps(*command) == 0
    said = capsys.readouterr().out
    for arm in ("baseline", "normalization=rmsnorm"):
        assert f"tuned {arm}: learning_rate=1e-2" in said
    assert configs(sweeps.runs, "learning_rate") == [1e-2] * 4
    assert configs(sweeps.runs, "seed") == [1337, 1338] * 2
    trials = [log_of(run)["config"] for run in sweeps.folder.glob("tuning/*")]
    assert len(trials) == 4
    assert {config["seed"] for config in trials} == {11337}
    _, arm = sweeps.findings.rows
    assert arm.group.n == 2
    assert not arm.set_apart


def test_each_run_is_what_the_plan_says(sweeps: Sweeps, engine: InThisProcess) -> None:
    """Also of keys that one arm has, tuned or not."""
    tune = ("--tune", "beta1=0.7,0.8", "--tune", "lion_beta1=0.6,0.7")
    vary = ("--vary", "optimizer=lion", "--vary", "ffn_type=moe")
    arguments = (*vary, *tune, *COURSE, "--n_experts=4", "--lion_beta2=0.5", "--seeds=1")
    assert sweeps(*arguments) == 0
    options, rest = sweep.parser().parse_known_args(sweeps.argv(*arguments))
    plan = sweep.make_plan(sweep.read_request(options, rest), Path.cwd())
    placed = {"out_dir", "run_name", "resume", "seed", "data_seed"}
    for arm, own in plan.tuned().items():
        [trial] = [trial for trial in plan.trials[arm] if trial.choice == own.choice]
        [job] = [job for job in plan.final_jobs(plan.tuned()) if job.arm == arm]
        log, planned = log_of(job.folder), trial.arm.settings.to_dict()
        assert {k: v for k, v in log["config"].items() if k not in placed} == {
            k: v for k, v in planned.items() if k not in placed
        }
        assert log["architecture"]["active_parameters"] == trial.arm.active_parameters
    assert not any(row.set_apart for row in sweeps.findings.rows)


def test_until_sure_adds_seeds_for_undecided_arms(
    sweeps: Sweeps, engine: InThisProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    """The learning rate is decided at the first look, the norm is not at any."""
    vary = ("--vary", "learning_rate=1e-3,1e-2", "--vary", "normalization=rmsnorm")
    command = (*vary, "--max_iters=12", "--eval_interval=12", "--until_sure", "--max_seeds=6")
    assert sweeps(*command, "--margin=1e-6") == 0
    manifest = json.loads((sweeps.folder / "sweep.json").read_text())
    assert manifest["schedule"] == [{"n": 5, "alpha": 0.025}, {"n": 6, "alpha": 0.025}]
    assert manifest["looks"] == [5, 6]
    counts = {row.group.arm: row.group.n for row in sweeps.findings.rows}
    assert counts == {"baseline": 6, "learning_rate=1e-2": 5, "normalization=rmsnorm": 6}
    assert sweeps.findings.rows[1].verdict.difference.n == 5
    said = " ".join(capsys.readouterr().out.split())
    assert "inconclusive after 5 seeds: normalization=rmsnorm" in said
    assert "looks at 5, 6 seeds share the error rate" in said
    trained = len(engine.jobs)
    assert sweeps(*command, "--margin=1e-6") == 0
    assert len(engine.jobs) == trained  # nothing is left to train
    with pytest.raises(UserError, match="max_seeds is 6 there and 9 here"):
        sweeps(*command[:-1], "--max_seeds=9", "--margin=1e-6")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--until_sure", "--seeds=3"), "--until_sure chooses the seeds itself; drop --seeds"),
        (("--max_seeds=9",), "--max_seeds needs --until_sure"),
    ],
)
def test_seeds_are_asked_for_in_one_way(
    sweeps: Sweeps, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        sweeps(*ARMS, *COURSE, *flags)


def test_seeds_that_are_added_after_a_verdict_are_known(
    sweeps: Sweeps, engine: InThisProcess
) -> None:
    for seeds in (2, 3):
        assert sweeps(*ARMS, *COURSE, f"--seeds={seeds}") == 0
    assert sweeps.findings.design.undeclared_looks == (2,)
    assert any("confidence sequence" in note for note in sweeps.findings.notes)


@pytest.mark.slow
def test_a_trial_that_is_missing_holds_its_arm_back(
    sweeps: Sweeps,
    engine: InThisProcess,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lose(self: InThisProcess, jobs: Sequence[Job], stops: object) -> Iterator[Outcome]:
        lost = [job for job in jobs if "rmsnorm with" in job.title]
        yield from (Outcome(job, FAILED, 1.0, "lost") for job in lost)
        yield from of_old(self, [job for job in jobs if job not in lost], stops)

    of_old = InThisProcess.run
    monkeypatch.setattr(InThisProcess, "run", lose)
    command = (*ARMS, *COURSE, "--tune", "learning_rate=1e-3,1e-2", "--seeds=1")
    assert sweeps(*command) == 1
    said = capsys.readouterr()
    assert "tuned normalization=rmsnorm: waiting for its trials" in said.out
    assert list(sweeps.runs) == ["baseline-s1337"]
    monkeypatch.setattr(InThisProcess, "run", of_old)
    assert sweeps(*command) == 0
    assert len(sweeps.runs) == 2


def test_equal_flops(sweeps: Sweeps, engine: InThisProcess) -> None:
    command = ("--vary", "n_layer=2", "--match=none", "--budget", "flops=6e8", "--seeds=1")
    assert sweeps(*command, "--eval_interval=50") == 0
    one, two = (log_of(run) for run in sweeps.runs.values())
    assert one["config"]["max_iters"] > two["config"]["max_iters"]
    spent = [log["summary"]["total_flops"] for log in (one, two)]
    assert spent == pytest.approx([6e8, 6e8], rel=0.01)
    _, arm = sweeps.findings.rows
    assert "unequal budgets" not in arm.verdict.reason  # other tokens, but equal FLOPs


@pytest.mark.slow
def test_equal_minutes(sweeps: Sweeps, engine: InThisProcess) -> None:
    assert sweeps(*ARMS, "--budget", "minutes=0.02", "--seeds=1", "--eval_interval=1000") == 0
    for run in sweeps.runs.values():
        log = log_of(run)
        assert log["status"] == "completed"
        assert log["eval_steps"][-1]["seconds"] == pytest.approx(1.2, abs=0.3)
        rates = [record["lr"] for record in log["training_iterations"]]
        assert rates[-1] < 0.2 * max(rates)
    _, arm = sweeps.findings.rows
    assert not arm.set_apart


@pytest.mark.slow  # 8 runs
def test_effects_of_the_factors_named(sweeps: Sweeps, engine: InThisProcess) -> None:
    """Also where the widths that make sizes equal differ between the arms."""
    vary = ("--vary", "n_kv_head=1", "--vary", "normalization=rmsnorm", "--design=factorial")
    assert sweeps(*vary, *COURSE, "--seeds=2") == 0
    assert len(set(configs(sweeps.runs, "ffn_hidden"))) > 1
    findings = sweeps.findings
    assert [effect.changes for effect in findings.effects] == [
        ("n_kv_head=1",),
        ("normalization=rmsnorm",),
        ("n_kv_head=1", "normalization=rmsnorm"),
    ]
    loss = {
        (g.config["n_kv_head"], g.config["normalization"]): g.loss
        for g in (row.group for row in findings.rows)
    }
    norms = ("layernorm_nobias", "rmsnorm")
    expected = sum(loss[1, norm] - loss[2, norm] for norm in norms) / 2
    assert findings.effects[0].contrast.estimate.value == pytest.approx(expected)


# What a person reads


def test_the_plan_alone(sweeps: Sweeps, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweeps(*ARMS, *COURSE, "--dry_run", "--workers=2") == 0
    said = capsys.readouterr().out
    assert re.search(r"Time: about \S+ (s|min) for all runs with 2 workers", said)
    assert not sweeps.folder.exists()


def test_the_plan_for_other_programs(sweeps: Sweeps, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweeps(*ARMS, *COURSE, "--seeds=3", "--dry_run", "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    plan = json.loads(line)
    assert plan["runs"] % 3 == 0
    assert plan["runs"] > 3
    assert plan["flops"] > 0
    assert plan["minutes"] is None
    assert (plan["workers"], plan["gpus_per_run"]) == (None, 1)
    assert Path(plan["folder"]).name == plan["name"]
    assert plan["baseline"]["n_embd"] > 0
    assert not any("seeds" in argument for argument in plan["rest"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*ARMS, "--seeds=0"), "--seeds=0 must be from 1 to 10,000."),
        ((*ARMS, "--workers=0"), "--workers=0 must be from 1 to 1,000."),
        ((*ARMS, "--gpus_per_run=0"), "--gpus_per_run=0 must be from 1 to 1,000."),
        (
            (*ARMS, "--gpus_per_run=4"),
            "batch_size=2 sequences does not divide among 4 workers; use batch_size=4, or",
        ),
        (
            (*ARMS, "--gpus_per_run=2", "--parallelism=none"),
            "but 2 were started; drop it",
        ),
        ((*ARMS, "--tune_seeds=-1"), "--tune_seeds=-1 must be from 1 to 10,000."),
        ((*ARMS, "--dataset=nowhere"), "unknown dataset 'nowhere'."),
        (("--vary", "bias"), "cannot parse --vary 'bias'; write --vary key=value,value"),
        (
            (*ARMS, "--json"),
            "--json has no effect without --dry_run; add --dry_run or drop --json.",
        ),
        ((*ARMS, "--print_config"), "--print_config is an option of train.py; see --dry_run."),
        ((*ARMS, "--nlayer=3"), "unknown key 'nlayer'; did you mean 'n_layer'?"),
        ((*ARMS, "--dry-run"), "there is no option --dry-run; did you mean --dry_run?"),
        ((*ARMS, "--worker=2"), "there is no option --worker; did you mean --workers?"),
        ((*ARMS, "absent.py"), "no file 'absent.py'"),
        ((*ARMS, "--max_minutes=1"), "use --budget minutes=1, which"),
        ((*ARMS, "--out_dir=/proc/none"), "/proc/none"),
        ((*ARMS, "--budget", "minutes"), "cannot parse 'minutes'; write tokens=20M"),
    ],
)
def test_refusals(sweeps: Sweeps, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as error:
        sweeps(*arguments)
    assert message in str(error.value)
    assert not sweeps.folder.exists()


def test_another_sweep_of_the_name(sweeps: Sweeps, engine: InThisProcess) -> None:
    assert sweeps(*ARMS, "--max_iters=0", "--seeds=1", "--match=none") == 0
    with pytest.raises(UserError, match="baseline: weight_decay is the default there and 0.2 here"):
        sweeps(*ARMS, "--max_iters=0", "--seeds=1", "--match=none", "--weight_decay=0.2")


def test_two_at_a_time_in_a_folder(sweeps: Sweeps) -> None:
    with (
        locked(sweeps.folder),
        pytest.raises(UserError, match=rf"process {os.getpid()}; .* choose another --name\."),
    ):
        sweeps(*ARMS, *COURSE)


# Series of sweeps


@pytest.mark.slow  # 18 runs
def test_a_ladder_ends_with_its_page(
    dataset: Path, tmp_path: Path, engine: InThisProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    sweeps = Sweeps(dataset, tmp_path / "out")
    assert sweeps(*ARMS, "--ladder", "tokens=128,512,2048", "--seeds=3", "--eval_interval=4") == 0
    said = capsys.readouterr().out
    page = sweeps.folder / "report.html"
    assert said.splitlines()[-1] == f"Report: {page}"
    assert "normalization=rmsnorm: compute multiplier" in said
    shown = page.read_text(encoding="utf-8")
    for rung in ("tokens-128", "tokens-512", "tokens-2048"):
        assert f'href="./../it-{rung}/report.html"' in shown
        assert (sweeps.folder.with_name(f"it-{rung}") / "report.html").is_file()
    assert len(engine.jobs) == 18


@pytest.mark.slow  # 10 runs
def test_several_baselines_end_with_their_page(
    dataset: Path, tmp_path: Path, engine: InThisProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for name, bias in (("plain", True), ("lean", False)):
        files.append(tmp_path / f"{name}.py")
        files[-1].write_text(f"bias = {bias}\n")
    sweeps = Sweeps(dataset, tmp_path / "out")
    command = ("--vary", "bias=False", *COURSE, "--seeds=2")
    assert sweeps(*ARMS, *command, "--baselines", ",".join(map(str, files))) == 0
    said = capsys.readouterr().out
    page = sweeps.folder / "report.html"
    assert said.splitlines()[-1] == f"Report: {page}"
    assert "bias=False was tested on plain only: a sweep skips values that its baseline" in said
    shown = page.read_text(encoding="utf-8")
    for name in ("plain", "lean"):
        assert f'href="./../it-{name}/report.html"' in shown
