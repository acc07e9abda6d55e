"""What a sweep runs, when it is another one, what tuning chooses, and its manifest."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import sweep
from components.norms import NORMS as NORMALIZATIONS
from data.dataset_writer import Document, write_dataset
from data.tokenizers import ByteTokenizer
from errors import ConfigError, UserError
from experiment.budgets import Budget
from experiment.jobs import COMPLETED, DIVERGED, TO_DO, Job
from experiment.manifest import (
    SWEEP_FILE,
    begun_with_other_code,
    read_sweep,
    refuse_another,
    write_manifest,
)
from experiment.plan import Plan
from tests.tiny_data import write_tiny_dataset
from tests.tiny_sweep import config_file, tiny_plan

NORMS = {"normalization": ("rmsnorm",)}
RATES = {"learning_rate": ("1e-3", "2e-3", "4e-3")}


@pytest.fixture
def plan(tiny_dataset: Path, tmp_path: Path) -> Plan:
    return tiny_plan(tiny_dataset, tmp_path, vary=NORMS, seeds=2)


@pytest.fixture
def tuning(tiny_dataset: Path, tmp_path: Path) -> Plan:
    return tiny_plan(tiny_dataset, tmp_path, vary=NORMS, seeds=2, tune=RATES, tune_seeds=2)


def flags_of(job: Job) -> dict[str, str]:
    texts = (text for text in job.arguments if text.startswith("--"))
    return dict(text.removeprefix("--").split("=", 1) for text in texts)


def log(job: Job, losses: list[float | None], status: str = "completed") -> None:
    """What the log of a run says, as far as a sweep reads it."""
    job.folder.mkdir(parents=True)
    evaluations = [{"iter": step, "val_loss": loss} for step, loss in enumerate(losses)]
    text = {"status": status, "eval_steps": evaluations}
    (job.folder / "run.json").write_text(json.dumps(text))


# Jobs


def test_the_first_seed_of_every_arm_comes_first(plan: Plan) -> None:
    assert [job.title for job in plan.final_jobs(plan.tuned())] == [
        *("baseline, seed 1337", "normalization=rmsnorm, seed 1337"),
        *("baseline, seed 1338", "normalization=rmsnorm, seed 1338"),
    ]


def test_seeds_are_paired(plan: Plan) -> None:
    flags = map(flags_of, plan.final_jobs(plan.tuned()))
    seeds = [(own["seed"], own["data_seed"]) for own in flags]
    assert seeds == [("1337", "1337")] * 2 + [("1338", "1338")] * 2


def test_seeds_begin_where_the_config_says(tiny_dataset: Path, tmp_path: Path) -> None:
    flags = {"seed": "5", "data_seed": "70"}
    plan = tiny_plan(tiny_dataset, tmp_path, flags=flags, vary=NORMS, seeds=2)
    assert plan.seeds == [(5, 70), (6, 71)]


def test_no_verdict_rests_on_a_seed_of_tuning(tuning: Plan) -> None:
    many = dataclasses.replace(tuning.request, seeds=1000, tune_seeds=1000)
    plan = dataclasses.replace(tuning, request=many)
    for verdict, trial in ((0, 0), (1, 1)):
        of_verdict = {seeds[verdict] for seeds in plan.seeds}
        assert not of_verdict & {seeds[trial] for seeds in plan.tuning_seeds}


def test_trials_come_in_turn_and_all_arms_have_the_same(tuning: Plan) -> None:
    jobs = tuning.tuning_jobs()
    assert len(jobs) == 3 * 2 * 2
    assert [(job.arm, flags_of(job)["learning_rate"]) for job in jobs[:5]] == [
        *[("baseline", "1e-3")] * 2,
        *[("normalization=rmsnorm", "1e-3")] * 2,
        ("baseline", "2e-3"),
    ]
    assert len({job.folder for job in jobs}) == len(jobs)


def test_where_runs_go(plan: Plan, tuning: Plan) -> None:
    job = plan.final_jobs(plan.tuned())[1]
    assert job.folder == plan.folder / "runs" / "normalization-rmsnorm-s1337"
    assert f"--out_dir={job.folder.parent}" in job.command
    assert "--run_name=normalization-rmsnorm-s1337" in job.command
    trial = tuning.tuning_jobs()[0]
    assert trial.folder == tuning.folder / "tuning" / "baseline-with-learning_rate-1e-3-s11337"


def test_a_folder_for_the_output_is_the_sweeps_alone(tiny_dataset: Path, tmp_path: Path) -> None:
    """train.py refuses a flag that comes twice."""
    flags = {"out_dir": "elsewhere"}
    plan = tiny_plan(tiny_dataset, tmp_path, flags=flags, vary=NORMS)
    assert plan.folder.parent == tmp_path / "elsewhere" / "sweeps"
    command = plan.final_jobs(plan.tuned())[0].command
    assert sum(text.startswith("--out_dir=") for text in command) == 1


def test_runs_are_grouped_in_a_tracker(tiny_dataset: Path, tmp_path: Path) -> None:
    plan = tiny_plan(tiny_dataset, tmp_path, vary=NORMS, flags={"log_to": "wandb"})
    assert {flags_of(job)["wandb_group"] for job in plan.final_jobs(plan.tuned())} == {
        plan.folder.name
    }
    own = {"log_to": "wandb", "wandb_group": "mine"}
    plan = tiny_plan(tiny_dataset, tmp_path, vary=NORMS, flags=own)
    assert {flags_of(job)["wandb_group"] for job in plan.final_jobs(plan.tuned())} == {"mine"}


def test_cost_and_length(plan: Plan, tiny_dataset: Path, tmp_path: Path) -> None:
    job = plan.final_jobs(plan.tuned())[0]
    assert job.cost == plan.baseline.flops
    assert job.length == ("iter", 100)
    budget = Budget("minutes", 2)
    timed = tiny_plan(tiny_dataset, tmp_path, vary=NORMS, budget=budget)
    job = timed.final_jobs(timed.tuned())[0]
    assert (job.cost, job.length) == (1.0, ("wall_seconds", 120.0))


def test_a_trial_that_cannot_be_trained_is_told_at_once(tiny_dataset: Path, tmp_path: Path) -> None:
    flags = {"min_lr": "1e-3"}
    with pytest.raises(ConfigError, match="arm baseline with learning_rate=1e-4: min_lr=0.001 is"):
        tiny_plan(
            *(tiny_dataset, tmp_path),
            flags=flags,
            vary=NORMS,
            tune={"learning_rate": ("1e-4", "1e-2")},
        )


# Identity


@pytest.mark.parametrize(
    "asked",
    [
        {"seeds": 7},
        {"match": "params"},
        {"flags": {"out_dir": "elsewhere"}},
        {"flags": {"keep_checkpoints": "5"}},
    ],
)
def test_what_leaves_it_the_same_sweep(
    plan: Plan, tiny_dataset: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    same = tiny_plan(tiny_dataset, tmp_path, **{"vary": NORMS, **asked})
    assert same.identity == plan.identity
    assert same.name == plan.name


@pytest.mark.parametrize(
    "asked",
    [
        {"vary": {"normalization": ("layernorm",)}},
        {"vary": {**NORMS, "bias": ("True",)}},
        {"flags": {"learning_rate": "2e-3"}},
        {"flags": {"seed": "1"}},
        {"match": "flops"},
        {"budget": Budget("tokens", 6400)},
        {"tune": RATES},
    ],
)
def test_what_makes_it_another(
    plan: Plan, tiny_dataset: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    other = tiny_plan(tiny_dataset, tmp_path, **{"vary": NORMS, **asked})
    assert other.name != plan.name


def test_other_text_makes_it_another(tmp_path: Path) -> None:
    dataset = write_tiny_dataset(tmp_path / "tiny")
    before = tiny_plan(dataset, tmp_path, vary=NORMS)
    write_dataset(
        [Document("train", ["other " * 100]), Document("val", ["text " * 100])],
        ByteTokenizer(),
        dataset,
        name="tiny",
        source="tests",
        separate=False,
    )
    assert tiny_plan(dataset, tmp_path, vary=NORMS).name != before.name


def test_parts_of_ones_own_are_known_by_their_source(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for table in ("_entries", "_canonical"):  # what is registered here is gone afterwards
        monkeypatch.setattr(NORMALIZATIONS, table, dict(getattr(NORMALIZATIONS, table)))
    plugin = tmp_path / "scale.py"
    text = (
        "from torch import nn\nfrom components.norms import NORMS\n"
        "@NORMS.register('scale_only', label='S')\nclass Scale(nn.Identity):\n    'A norm.'\n"
    )

    def planned(comment: str, **asked: Any) -> Plan:
        plugin.write_text(text + comment)
        flags = {"plugins": str(plugin), **asked.pop("flags", {})}
        return tiny_plan(tiny_dataset, tmp_path, flags=flags, vary=NORMS, **asked)

    one = planned("# one\n")
    one.folder.mkdir(parents=True)
    write_manifest(one, "python sweep.py")
    two = planned("# two\n")
    assert two.name != one.name
    [note] = begun_with_other_code(two.folder, two.identity)
    assert note.startswith(
        f"Note: {one.folder} contains the same sweep with different code: arms: "
    )
    assert "source of scale.py is " in note
    other = planned("# two\n", flags={"learning_rate": "2e-3"})
    assert not list(begun_with_other_code(other.folder, other.identity))
    named = planned("# two\n", name=one.name)
    with pytest.raises(UserError, match=r"baseline: source of scale.py is \w+ there and \w+ here"):
        sweep.with_seeds_of_before(named)


def test_what_a_plugin_imports_is_part_of_the_sweep_and_of_its_runs(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for table in ("_entries", "_canonical"):
        monkeypatch.setattr(NORMALIZATIONS, table, dict(getattr(NORMALIZATIONS, table)))
    monkeypatch.syspath_prepend(str(tmp_path))
    plugin, helper = tmp_path / "scale.py", tmp_path / "my_scale_helper.py"
    helper.write_text("FACTOR = 1.0\n")
    plugin.write_text(
        "from torch import nn\nfrom components.norms import NORMS\nimport my_scale_helper\n"
        "@NORMS.register('scale_only', label='S')\nclass Scale(nn.Identity):\n    'A norm.'\n"
    )
    asked = {"flags": {"plugins": str(plugin)}, "vary": NORMS, "name": "it"}
    one = tiny_plan(tiny_dataset, tmp_path, **asked)
    one.folder.mkdir(parents=True)
    write_manifest(one, "python sweep.py")
    job = one.final_jobs(one.tuned())[0]
    assert job.changed_files == []
    helper.write_text("FACTOR = 2.0\n")
    assert job.changed_files == [str(helper.resolve())]
    two = tiny_plan(tiny_dataset, tmp_path, **asked)
    with pytest.raises(
        UserError, match=r"source of import my_scale_helper is \w+ there and \w+ here"
    ):
        sweep.with_seeds_of_before(two)
    sys.modules.pop("my_scale_helper")


def test_names(plan: Plan, tiny_dataset: Path, tmp_path: Path) -> None:
    assert re.fullmatch(r"normalization-[0-9a-f]{8}", plan.name)
    arms = [config_file(tmp_path, name, arch_preset=name) for name in ("gpt2", "llama")]
    assert tiny_plan(tiny_dataset, tmp_path, arms=arms).name.startswith("gpt2-gpt2-llama-")
    assert tiny_plan(tiny_dataset, tmp_path, vary=NORMS, name="mine").folder.name == "mine"
    fast = [config_file(tmp_path, "run_fast", dropout=0.1)]
    assert tiny_plan(tiny_dataset, tmp_path, files=fast, vary=NORMS).name.startswith(
        "run_fast-normalization-"
    )


def test_a_sweep_named_after_the_default_preset_is_continued(
    plan: Plan, tiny_dataset: Path, tmp_path: Path
) -> None:
    """As earlier versions named it."""
    earlier = tiny_plan(tiny_dataset, tmp_path, vary=NORMS, name=f"legacy-{plan.name}")
    earlier.folder.mkdir(parents=True)
    assert tiny_plan(tiny_dataset, tmp_path, vary=NORMS).folder == plan.folder
    write_manifest(earlier, "python sweep.py")
    assert tiny_plan(tiny_dataset, tmp_path, vary=NORMS).folder == earlier.folder


# Choices


def losses_of(arm: str, losses: Mapping[str, list[float | None]], plan: Plan) -> None:
    for job in plan.tuning_jobs():
        rate = flags_of(job)["learning_rate"]
        if job.arm == arm and rate in losses:
            log(job, [9.0, losses[rate][job in plan.tuning_jobs()[1::2]]])


BASELINE = {"1e-3": [3.0, 3.2], "2e-3": [2.9, 3.1], "4e-3": [2.0, 4.4]}


def test_a_number_is_fitted_to_the_mean_losses(tuning: Plan) -> None:
    """3.1, 3.0 and 3.2 nats: the parabola is lowest 5/6 of a step above 1e-3."""
    losses_of("baseline", BASELINE, tuning)
    own = tuning.tuned()["baseline"]
    assert own.choice == {"learning_rate": "0.00178"}
    assert own.fit.optimum == pytest.approx(5 / 6)
    assert own.losses == pytest.approx((3.1, 3.0, 3.2))
    assert own.edges == ()


def test_the_lowest_mean_is_chosen_of_words(tiny_dataset: Path, tmp_path: Path) -> None:
    tune = {"lr_schedule": ("wsd", "linear", "cosine")}
    plan = tiny_plan(tiny_dataset, tmp_path, vary=NORMS, tune=tune)
    for job, loss in zip(plan.tuning_jobs()[::2], (3.1, 3.0, 3.15), strict=True):
        log(job, [9.0, loss])
    own = plan.tuned()["baseline"]
    assert own.choice == {"lr_schedule": "linear"}
    assert (own.fit, own.spread) == (None, pytest.approx(0.15))
    assert flags_of(plan.final_jobs({"baseline": own})[0])["lr_schedule"] == "linear"


@pytest.mark.parametrize(
    ("decays", "losses", "allowed"),
    [
        (("0.0", "0.1"), (2.1, 2.0, 2.15, 2.02, 2.11, 2.08), 0.2),
        (("0.0", "0.1", "0.2"), (2.1, 2.0, 2.1, 2.15, 2.02, 2.1, 2.11, 2.08, 2.1), 0.15),
    ],
)
def test_a_grid_of_two_keys_has_an_allowance(
    tiny_dataset: Path,
    tmp_path: Path,
    decays: tuple[str, ...],
    losses: tuple[float, ...],
    allowed: float,
) -> None:
    """With two values of one of the keys, its optimum may lie anywhere between."""
    tune = {"learning_rate": ("1e-3", "2e-3", "4e-3"), "weight_decay": decays}
    plan = tiny_plan(tiny_dataset, tmp_path, vary=NORMS, tune=tune)
    for job, loss in zip(plan.tuning_jobs()[::2], losses, strict=True):
        log(job, [9.0, loss])
    tuned = plan.tuned()
    assert plan.allowances(tuned)["baseline"] == pytest.approx(allowed)
    assert tuned["baseline"].edges == (
        ("learning_rate", "weight_decay") if len(decays) == 2 else ("learning_rate",)
    )


def test_nothing_that_finished_has_the_largest_allowance(tuning: Plan) -> None:
    losses_of("baseline", {rate: [None, None] for rate in BASELINE}, tuning)
    assert tuning.allowances(tuning.tuned())["baseline"] == pytest.approx(0.2)


def test_an_arm_has_its_allowance_while_others_are_tuned(tuning: Plan) -> None:
    losses_of("baseline", BASELINE, tuning)
    assert tuning.allowances(tuning.tuned()) == {"baseline": pytest.approx(0.2)}
    losses_of("normalization=rmsnorm", {key: [3.0, 3.0] for key in BASELINE}, tuning)
    found = tuning.allowances(tuning.tuned())
    assert found == {"baseline": pytest.approx(0.2), "normalization=rmsnorm": 0.0}


def test_an_arm_waits_for_all_of_its_trials(tuning: Plan) -> None:
    losses_of("baseline", {key: BASELINE[key] for key in ("1e-3", "2e-3")}, tuning)
    assert tuning.tuned() == {}
    assert tuning.final_jobs(tuning.tuned()) == []


def test_one_that_diverged_is_not_chosen(tuning: Plan) -> None:
    losses_of("baseline", {**BASELINE, "2e-3": [0.1, None]}, tuning)
    assert tuning.tuned()["baseline"].choice == {"learning_rate": "1e-3"}


def test_final_runs_have_what_was_chosen(tuning: Plan) -> None:
    losses_of("baseline", BASELINE, tuning)
    jobs = tuning.final_jobs(tuning.tuned())
    assert [job.arm for job in jobs] == ["baseline"] * 2
    assert {flags_of(job)["learning_rate"] for job in jobs} == {"0.00178"}
    assert all("seed 133" in job.title for job in jobs)


def test_an_optimum_at_the_edge_is_told(tuning: Plan) -> None:
    losses_of("baseline", {"1e-3": [2.0, 2.0], "2e-3": [2.1, 2.1], "4e-3": [2.3, 2.3]}, tuning)
    own = tuning.tuned()["baseline"]
    assert own.edges == ("learning_rate",)
    assert own.choice == {"learning_rate": "1e-3"}


# Status


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("completed", COMPLETED),
        ("diverged", DIVERGED),
        ("failed", TO_DO),
        ("interrupted", TO_DO),
        ("running", TO_DO),
    ],
)
def test_status(plan: Plan, status: str, expected: str) -> None:
    job = plan.final_jobs(plan.tuned())[0]
    assert (job.status, job.loss) == (TO_DO, None)
    log(job, [5.0, 4.0], status)
    assert (job.status, job.loss) == (expected, 4.0)


def test_a_damaged_log_is_of_a_run_to_do(plan: Plan) -> None:
    job = plan.final_jobs(plan.tuned())[0]
    job.folder.mkdir(parents=True)
    (job.folder / "run.json").write_text("{")
    assert (job.status, job.loss) == (TO_DO, None)


def test_the_share_done(plan: Plan) -> None:
    job = plan.final_jobs(plan.tuned())[0]
    assert job.share_done == 0
    job.folder.mkdir(parents=True)
    lines = [{"kind": "train", "iter": step, "wall_seconds": 1.0} for step in (10, 25)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (job.folder / "metrics.jsonl").write_text(text + '{"kind": "tr')
    assert job.share_done == 0.25
    timed = dataclasses.replace(job, length=("wall_seconds", 0.5))
    assert timed.share_done == 1.0
    (job.folder / "metrics.jsonl").write_text("")
    assert job.share_done == 0


# The manifest


def test_the_manifest(tuning: Plan) -> None:
    losses_of("baseline", BASELINE, tuning)
    tuning.folder.mkdir(parents=True, exist_ok=True)
    write_manifest(tuning, "python sweep.py")
    found = read_sweep(tuning.folder)
    baseline = tuple(tuning.folder / f"runs/baseline-s{seed}" for seed in (1337, 1338))
    assert found.runs == [*baseline]
    assert found.baseline == baseline
    assert found.tuned == {"baseline": {"learning_rate": "0.00178"}, "normalization=rmsnorm": None}
    assert found.allowances == {"baseline": pytest.approx(0.2), "normalization=rmsnorm": 0}
    assert found.at_edge == ()
    assert found.studied == ("learning_rate", "min_lr")
    assert (found.factors, found.seeds) == ((), 2)
    refuse_another(found, tuning.identity)
    document = json.loads((tuning.folder / SWEEP_FILE).read_text())
    assert document["arms"][0]["tuned"] == {"learning_rate": "0.00178"}
    assert document["arms"][0]["tuning"] == {
        "key": "learning_rate",
        "tried": ["1e-3", "2e-3", "4e-3"],
        "losses": pytest.approx([3.1, 3.0, 3.2]),
    }
    assert document["arms"][1]["tuned"] is None
    assert document["arms"][0]["parameters"] == tuning.baseline.parameters
    assert sum(run["tuning"] for run in document["runs"]) == 12


def test_factors_of_a_factorial_are_kept(tiny_dataset: Path, tmp_path: Path) -> None:
    vary = {**NORMS, "n_kv_head": ("1",)}
    plan = tiny_plan(tiny_dataset, tmp_path, vary=vary, design="factorial")
    plan.folder.mkdir(parents=True)
    write_manifest(plan, "python sweep.py")
    assert read_sweep(plan.folder).factors == ("normalization", "n_kv_head")


def test_runs_of_another_choice_are_not_gone_on_with(tuning: Plan) -> None:
    """The verdict would rest on two learning rates."""
    losses_of("baseline", BASELINE, tuning)
    tuning.folder.mkdir(parents=True, exist_ok=True)
    write_manifest(tuning, "python sweep.py")
    assert sweep.with_seeds_of_before(tuning).request == tuning.request
    log(tuning.final_jobs(tuning.tuned())[0], [4.0])
    assert sweep.with_seeds_of_before(tuning).request == tuning.request
    for path in (tuning.folder / "tuning").glob("baseline*2e-3*/run.json"):
        path.write_text(path.read_text().replace('"completed"', '"diverged"'))
    with pytest.raises(
        ValueError, match="baseline was tuned to learning_rate=0.00178 when .* trained"
    ):
        sweep.with_seeds_of_before(tuning)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": 99}'])
def test_what_is_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / SWEEP_FILE).write_text(text)
    with pytest.raises(ValueError, match=r"sweep.json: (damaged|not the manifest of a sweep)"):
        read_sweep(tmp_path)


def test_another_sweep_in_the_folder_is_refused(tiny_dataset: Path, tmp_path: Path) -> None:
    mine = {"name": "mine", "match": "none"}
    plan = tiny_plan(tiny_dataset, tmp_path, vary=NORMS, **mine)
    plan.folder.mkdir(parents=True)
    write_manifest(plan, "python sweep.py")
    for asked, difference in (
        (
            {"flags": {"learning_rate": "2e-3"}},
            "baseline: learning_rate is the default there and 0.002 here",
        ),
        ({"match": "params"}, "match is none there and params here"),
        (
            {"vary": {"bias": ("True",)}},
            "arms: normalization=rmsnorm is only there; arms: bias=True is only here",
        ),
    ):
        other = tiny_plan(tiny_dataset, tmp_path, **{"vary": NORMS, **mine, **asked})
        with pytest.raises(ValueError, match="contains another sweep") as error:
            sweep.with_seeds_of_before(other)
        assert difference in str(error.value)
        assert str(error.value).endswith(
            "Choose another --name, or undo the difference to continue that sweep."
        )


def test_fewer_seeds_than_before_are_as_many(tiny_dataset: Path, tmp_path: Path) -> None:
    before = tiny_plan(tiny_dataset, tmp_path, vary=NORMS, seeds=4)
    before.folder.mkdir(parents=True)
    write_manifest(before, "python sweep.py")
    for asked, seeds in ((2, 4), (5, 5)):
        plan = tiny_plan(tiny_dataset, tmp_path, vary=NORMS, seeds=asked)
        assert len(sweep.with_seeds_of_before(plan).seeds) == seeds


def test_seeds_are_added_after_a_look_at_any_arm(tiny_dataset: Path, tmp_path: Path) -> None:
    """The runs of another arm failed, and nothing says that a verdict was printed."""
    vary = {"normalization": ("rmsnorm",), "position_encoding": ("rope",)}
    before = tiny_plan(tiny_dataset, tmp_path, vary=vary, seeds=2)
    more = tiny_plan(tiny_dataset, tmp_path, vary=vary, seeds=3)
    before.folder.mkdir(parents=True)
    write_manifest(before, "python sweep.py")
    baseline, rmsnorm, _ = before.arms
    tuned = before.tuned()
    for arm, looks in ((baseline, ()), (rmsnorm, (2,))):
        assert sweep.with_seeds_of_before(more).looks == ()
        for job in before.final_jobs({arm.name: tuned[arm.name]}):
            log(job, [3.0])
        assert sweep.with_seeds_of_before(before).looks == ()
        assert sweep.with_seeds_of_before(more).looks == looks
