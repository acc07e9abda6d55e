"""Which runs form a group, which of them are included, and what separates groups."""

from __future__ import annotations

import dataclasses

import pytest

from comparison.design import Design
from comparison.findings import compare
from comparison.groups import changes, conditions, find_baseline, group_runs, unlike
from comparison.runs import LoggedRun
from comparison.verdict_lines import verdict_line
from options import KEYS
from saved_configs import upgraded
from tests.simulated import DATA, decaying, simulated_arm, simulated_run, timed_run
from training_config import TrainingConfig

RMS = {"normalization": "rmsnorm"}


def words(findings, arm: str) -> str:
    row = next(row for row in findings.rows if row.group.name.startswith(f"arch-{arm}"))
    return verdict_line(row.verdict, row.terms)


# --- Gathering ---


def test_runs_that_differ_only_by_seed_form_a_group():
    runs = simulated_arm("plain", [3.0, 3.1, 3.2]) + simulated_arm("rms", [2.9, 3.0], model=RMS)
    plain, rms = group_runs(runs)
    assert (plain.n, rms.n) == (3, 2)
    assert plain.losses == {(1, 1): 3.0, (2, 2): 3.1, (3, 3): 3.2}
    assert plain.loss == pytest.approx(3.1)
    assert plain.deviation == pytest.approx(0.1)
    assert changes(rms, plain) == RMS


@pytest.mark.parametrize(
    "training",
    [
        {"run_name": "b", "out_dir": "elsewhere", "log_interval": 5, "eval_interval": 10},
        {"log_to": "csv,wandb"},
        {"arch_preset": "another way to say it", "device": "cuda", "dataset": "moved"},
    ],
)
def test_bookkeeping_keys_do_not_separate_groups(training):
    runs = [simulated_run(seed=1), simulated_run(seed=2, training=training)]
    assert [group.n for group in group_runs(runs)] == [2]


def test_equal_widths_given_differently_are_one_group():
    """Logs of earlier versions have the multiplier even where it made the default width."""
    width = {"ffn_multiplier": None, "ffn_multiple_of": 1, "ffn_hidden": 96}
    ways = (width, width | {"ffn_multiplier": 3.0}, width | {"ffn_multiple_of": 32})
    runs = [simulated_run(seed=seed, model=way) for seed, way in enumerate(ways)]
    assert [group.n for group in group_runs(runs)] == [3]
    other = simulated_run(seed=4, model=width | {"ffn_hidden": 128})
    assert [group.n for group in group_runs([*runs, other])] == [3, 1]


@pytest.mark.parametrize(
    "other",
    [
        {"model": RMS},
        {"training": {"learning_rate": 3e-4}},
        {"training": {"max_iters": 200}},
        {"training": {"max_minutes": 2.0}},
        {"data": {"fingerprint": "cafe"}},
        {"data": {"val_fingerprint": "cafe"}},
        {"flops_per_token": 7},
    ],
)
def test_other_differences_make_separately_named_groups(other):
    groups = group_runs([simulated_run(seed=1), simulated_run(seed=2, **other)])
    assert len({group.name for group in groups}) == 2


def test_groups_with_the_same_name_list_their_differences():
    runs = [simulated_run(seed=1), simulated_run(seed=2, training={"learning_rate": 3e-4})]
    assert [group.name for group in group_runs(runs)] == [
        "arch-plain [learning_rate=0.001]",
        "arch-plain [learning_rate=0.0003]",
    ]


def test_the_group_of_the_oldest_run_comes_first():
    runs = simulated_arm("b", [3.0], start="2025-01-02") + simulated_arm("a", [3.0])
    assert [group.name for group in group_runs(runs)] == ["arch-a", "arch-b"]


# --- Which runs count ---


def test_a_run_that_stopped_early_does_not_count():
    short = simulated_run(seed=3, curve=decaying(3.5, 40), status="interrupted")
    group, *_ = group_runs([*simulated_arm("plain", [3.0, 3.1]), short])
    assert group.n == 2
    assert group.left_out == ("plain-3 (interrupted): 40.00K of 100.0K tokens",)


def test_a_seed_counts_once_however_often_it_was_run():
    """Runs with the same seed are repetitions of one run and give no variance."""
    again = simulated_run(seed=1, loss=3.0, start="2025-02-01")
    findings = compare([simulated_run(seed=1, loss=3.0), again])
    assert findings.baseline.group.n == 1
    assert findings.notes == ("Excluded: plain-1: same seeds as plain-1.",)


@pytest.mark.parametrize(
    "end",
    [
        {"curve": [(0, 4.0), (100, None)]},
        {"curve": [(0, 4.0), (50, 3.5)], "status": "diverged"},
    ],
)
@pytest.mark.parametrize("side", ["plain", "wild"])
def test_an_arm_cannot_win_by_diverging(end, side):
    arms = {
        "plain": simulated_arm("plain", [3.0, 3.01, 3.02], start="2025-01-01"),
        "wild": simulated_arm("wild", [2.0, 2.02, 2.03], start="2025-01-02", model=RMS),
    }
    model = RMS if side == "wild" else None
    start = arms[side][0].start_time[:10]
    arms[side].append(simulated_run(side, 4, start=start, model=model, **end))
    findings = compare([*arms["plain"], *arms["wild"]])
    if side == "wild":
        assert words(findings, "wild").startswith("inconclusive: -0.9933 [")
        assert "better among finished runs, but 1 of 4 runs of the arm failed" in words(
            findings, "wild"
        )
    else:
        assert words(findings, "wild").startswith("better: -0.9933 [")
    assert f"Excluded: {side}-4: diverged." in findings.notes


def test_failures_are_counted_with_their_uncertainty():
    runs = [
        *simulated_arm("plain", [3.0 + s / 100 for s in range(10)]),
        *simulated_arm("wild", [3.1 + s / 90 for s in range(6)], model=RMS, start="2025-01-02"),
        *(
            simulated_run("wild", s, model=RMS, start="2025-01-02", status="diverged")
            for s in range(7, 11)
        ),
    ]
    notes = compare(runs).notes
    assert "4 of 10 runs of arch-wild failed (12 to 74 % with 95 % confidence)." in notes
    assert any("4 of 10 against 0 of 10: p=0.043 (Fisher" in note for note in notes)


def test_a_run_that_ends_no_better_than_it_began_failed():
    runs = [simulated_run(seed=1, curve=[(0, 4.0), (100, 4.0)]), simulated_run(seed=2)]
    (group,) = group_runs(runs)
    assert (group.n, group.diverged) == (1, 1)
    begun = simulated_run(seed=1, curve=[(0, 4.0), (10, 4.1)], status="running")
    assert not begun.diverged


def test_a_run_far_above_its_arm_is_named_and_included():
    findings = compare(simulated_arm("plain", [3.0, 3.01, 3.02, 3.5]))
    assert findings.baseline.group.n == 4
    assert any(note.startswith("plain-4 ended at 3.5000, far above") for note in findings.notes)


# --- Comparable or not ---


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"data": {"fingerprint": "cafe" * 16}}, "data: tiny (cafecafe), not tiny (f00d)"),
        ({"data": {"tokenizer": "gpt2"}}, "tokenizer: gpt2, not bytes"),
        ({"data": {"val_fingerprint": "cafe"}}, "validation set: cafe, not beef"),
        ({"training": {"learning_rate": 3e-4}}, "learning_rate: 0.0003, not 0.001"),
        ({"training": {"batch_size": 8}}, "batch_size: 8, not 4"),
        ({"training": {"grad_clip": 1.0}}, "grad_clip: 1.0, not None"),
        ({"training": {"warmup_iters": 50}}, "warmup_iters: 0.50 of max_iters, not 0.05"),
        ({"training": {"lr_decay_iters": 90}}, "lr_decay_iters: 0.90 of max_iters, not -"),
    ],
)
def test_arms_with_other_conditions_are_never_judged(other, reason):
    plain = simulated_arm("plain", [3.0, 3.01, 2.99])
    rms = simulated_arm("rms", [2.5, 2.51, 2.52], model=RMS, start="2025-01-02")
    odd = simulated_arm("odd", [1.0, 1.01, 1.02], start="2025-01-03", **other)
    findings = compare([*plain, *odd, *rms])
    assert [row.group.name for row in findings.rows] == ["arch-plain", "arch-rms", "arch-odd"]
    row = findings.rows[2]
    assert row.set_apart == (reason,)
    assert (row.verdict.word, row.verdict.difference) == ("inconclusive", None)
    assert (row.at_equal, row.speedups, row.pareto) == ({}, {}, None)
    assert findings.rows[1].verdict == compare([*plain, *rms]).rows[1].verdict


def test_the_recipe_is_all_that_shapes_a_result():
    training = TrainingConfig().to_dict()
    (own,) = conditions(group_runs(simulated_arm("plain", [3.0], training=training)))
    shaping = {"sequence_length", "batch_size", "learning_rate", "weight_decay", "lr_schedule"}
    assert shaping <= set(own)
    outside = {"run_name", "out_dir", "log_interval", "seed", "data_seed", "dataset", "max_minutes"}
    assert not outside & set(own)


def other_data_without(*keys: str) -> list[LoggedRun]:
    """Runs of two arms with other datasets and validation tokens, whose logs lack some keys."""
    lacking = dict.fromkeys(keys)
    plain = {"dataset": "openwebtext", "eval_tokens": 1000}
    other = {"dataset": "shakespeare", "eval_tokens": 2000}
    return [
        *simulated_arm("plain", [3.0, 3.01, 2.99], training=plain, data=lacking),
        *simulated_arm(
            "rms", [2.0, 2.02, 1.98], training=other, data=lacking, model=RMS, start="2025-01-02"
        ),
    ]


@pytest.mark.parametrize(
    ("lacking", "reasons"),
    [
        (["fingerprint"], ["dataset: shakespeare, not openwebtext"]),
        (["val_fingerprint"], ["eval_tokens: 2000, not 1000"]),
        ([], []),
    ],
)
def test_without_a_fingerprint_the_key_is_compared(lacking, reasons):
    one, other = group_runs(other_data_without(*lacking))
    assert unlike(other, one) == reasons


def test_a_known_fingerprint_is_never_that_of_unknown_data():
    known = simulated_run("plain")
    unknown = simulated_run("plain", start="2025-01-02", data={"fingerprint": None})
    one, other = group_runs([known, unknown])
    assert unlike(other, one) == ["data: None, not tiny (f00d)"]


@pytest.mark.parametrize("key", ["dataset", "eval_tokens"])
def test_runs_without_fingerprints_are_grouped_by_the_keys(key):
    lacking = {"fingerprint": None, "val_fingerprint": None}
    runs = [
        simulated_run(seed=seed, training={key: value}, data=lacking)
        for seed, value in ((1, 1000), (2, 1000), (3, 2000))
    ]
    one, other = group_runs(runs)
    assert [run.config["seed"] for run in one.runs] == [1, 2]
    assert (one.name, other.name) == (f"arch-plain [{key}=1000]", f"arch-plain [{key}=2000]")
    known = [dataclasses.replace(run, data=DATA) for run in runs]
    assert len(group_runs(known)) == 1


@pytest.mark.parametrize(
    ("key", "caveat"),
    [
        (
            "fingerprint",
            "no fingerprint of the data in the log: compared by the name of the dataset",
        ),
        (
            "val_fingerprint",
            "no fingerprint of the validation set in the log: compared by eval_tokens",
        ),
    ],
)
def test_logs_without_a_fingerprint_say_so(key, caveat):
    plain = simulated_arm("plain", [3.0, 3.1], data={key: None})
    rms = simulated_arm("rms", [2.5, 2.52], model=RMS, start="2025-01-02", data={key: None})
    (row,) = compare([*plain, *rms]).rows[1:]
    assert row.caveats == (caveat,)


def runs_of_a_plugin(role: str) -> list[LoggedRun]:
    """Runs that differ in a key which no code here knows, whose log says what it is for."""
    return [
        dataclasses.replace(
            simulated_run(seed=seed, model={"my_key": value}), roles={"my_key": role}
        )
        for seed, value in ((1, 10), (2, 20))
    ]


@pytest.mark.parametrize("role", ["architecture", "recipe", "length", "data"])
def test_a_plugin_key_separates_arms_according_to_its_role(role):
    assert len(group_runs(runs_of_a_plugin(role))) == 2


@pytest.mark.parametrize("role", ["seed", "bookkeeping", "execution"])
def test_a_plugin_key_without_effect_on_results_does_not_separate_arms(role):
    assert len(group_runs(runs_of_a_plugin(role))) == 1


def test_a_recipe_key_of_a_plugin_is_a_condition():
    one, other = group_runs(runs_of_a_plugin("recipe"))
    assert unlike(other, one) == ["my_key: 20, not 10"]
    assert changes(other, one) == {}
    one, other = group_runs(runs_of_a_plugin("architecture"))
    assert unlike(other, one) == []
    assert changes(other, one) == {"my_key": 20}


@pytest.mark.parametrize(
    ("defaults", "varied", "found"),
    [
        ({"rope_theta"}, (), {"position_encoding": "rope"}),
        ({"rope_theta"}, ("rope_theta",), {"rope_theta": 1e4, "position_encoding": "rope"}),
        (set(), (), {"position_encoding": "rope", "rope_theta": 1e4}),
    ],
)
def test_defaults_of_a_part_that_one_arm_has_are_not_changes(defaults, varied, found):
    """As far as logs tell defaults, which those of earlier versions do not."""
    plain = simulated_run("plain", model={"position_encoding": "learned"})
    model = {"position_encoding": "rope", "rope_theta": 1e4}
    rope = dataclasses.replace(simulated_run("rope", model=model), defaults=frozenset(defaults))
    one, other = group_runs([plain, rope])
    assert changes(other, one, varied=varied) == found
    assert list(changes(other, one, varied=varied)) == list(found)
    lacking = {"position_encoding": "learned"} | ({} if defaults else {"rope_theta": None})
    assert changes(one, other) == lacking


def test_defaults_of_a_part_that_both_arms_have_are_changes():
    model = {"position_encoding": "rope"}
    one = simulated_run("one", model={**model, "rope_theta": 1e4})
    one = dataclasses.replace(one, defaults=frozenset({"rope_theta"}))
    other = simulated_run("other", model={**model, "rope_theta": 500.0})
    one, other = group_runs([one, other])
    assert changes(other, one) == {"rope_theta": 500.0}
    assert changes(one, other) == {"rope_theta": 1e4}


def as_logged_before(config: dict) -> dict:
    """A config of today as the version logged it that had AdamW only, and four schedules whose keys
    every run had."""
    later = ("optimizer", "objective", "z_loss_coef", "hang_timeout", "async_save")
    later += ("sample_interval", "sample_tokens", "console", "verbose")
    later += ("qk_clip", "log_attention_logits")
    later += ("parallelism", "shard_size", "tensor_parallel", "activation_checkpointing", "adapter")
    always = {"min_lr": None, "lr_decay_iters": None, "wsd_decay_fraction": 0.2}
    return {**always, **{key: value for key, value in config.items() if key not in later}}


@pytest.mark.parametrize("keys", [{}, {"lr_schedule": "wsd"}, {"lr_schedule": "constant"}])
@pytest.mark.parametrize("arm", ["plain", "rms"])
def test_runs_of_a_version_with_adamw_alone_are_compared_with_those_of_today(keys, arm):
    now = TrainingConfig(max_iters=100, **keys).to_dict()
    roles = {key: str(KEYS[key].role) for key in now}
    old = simulated_run(seed=1, training=upgraded(as_logged_before(now)))
    model = RMS if arm == "rms" else None
    new = dataclasses.replace(simulated_run(arm, 2, training=now, model=model), roles=roles)
    if arm == "plain":
        assert len(group_runs([old, new])) == 1
    else:
        before, after = group_runs([old, new])
        assert unlike(after, before) == []
        assert changes(after, before) == RMS


def test_another_optimizer_is_another_recipe():
    runs = [
        dataclasses.replace(
            simulated_run(seed=seed, training=TrainingConfig(optimizer=name).to_dict()),
            roles={key: str(KEYS[key].role) for key in TrainingConfig(optimizer=name).to_dict()},
        )
        for seed, name in ((1, "adamw"), (2, "muon"))
    ]
    adamw, muon = group_runs(runs)
    assert "optimizer: muon, not adamw" in unlike(muon, adamw)
    tuned = [key for key in muon.config if key.startswith("muon_") or key == "optimizer"]
    assert unlike(muon, adamw, tuned) == []
    assert changes(muon, adamw, ["optimizer"]) == {"optimizer": "muon"}


def test_a_warm_up_of_whole_steps_is_the_same_share_of_another_length():
    short = {"max_iters": 30, "warmup_iters": 1}  # a 20th, rounded down
    plain, other = group_runs([simulated_run(), simulated_run(seed=2, training=short)])
    assert unlike(other, plain) == []


def test_validation_sets_of_the_same_data_differ_in_tokens_or_windows():
    own = {"data": {"val_fingerprint": "cafe", "val_tokens_read": 96}}
    other = {"data": {"val_fingerprint": "beef", "val_tokens_read": 2048}}
    length = {"training": {"sequence_length": 32}}
    one, two = group_runs(
        [simulated_run(**own, **length), simulated_run("b", start="2025-01-02", **other, **length)]
    )
    told = "validation set: 2,048 tokens in windows of 32, not 96 tokens in windows of 32"
    assert unlike(two, one) == [told]


def test_other_data_imply_another_validation_set():
    other = {"fingerprint": "cafe", "val_fingerprint": "cafe"}
    one, two = group_runs([simulated_run(), simulated_run("b", start="2025-01-02", data=other)])
    assert unlike(two, one) == ["data: tiny (cafe), not tiny (f00d)"]


def test_a_note_says_that_nothing_is_comparable():
    odd = simulated_run("odd", start="2025-01-02", data={"fingerprint": "cafe"})
    assert compare([simulated_run(), odd]).notes == (
        "No two groups are comparable. To compare architectures, train them under equal "
        "conditions: python sweep.py --arms A.py,B.py",
    )
    alike = simulated_run("rms", model=RMS, start="2025-01-03", data={"fingerprint": "cafe"})
    assert compare([simulated_run(), odd, alike]).further_notes[0] == (
        "No group is comparable with the baseline. --baseline=arch-odd is comparable with arch-rms."
    )
    assert compare([simulated_run()]).notes == ()


def test_tuned_keys_are_part_of_the_arm():
    settings = {"training": {"learning_rate": 3e-4}}
    plain, tuned = group_runs([simulated_run(), simulated_run("b", 2, model=RMS, **settings)])
    assert unlike(tuned, plain, ["learning_rate"]) == []
    assert changes(tuned, plain, ["learning_rate"]) == {**RMS, "learning_rate": 3e-4}


# --- Equal budgets of the final loss ---


def longer(flops_per_token: int) -> list:
    """An arm of twice the steps, its schedule stretched with them."""
    return simulated_arm(
        *("rms", [2.9, 2.91, 2.92]),
        model=RMS,
        start="2025-01-02",
        curve=decaying(2.9, 200),
        training={"max_iters": 200, "warmup_iters": 10},
        flops_per_token=flops_per_token,
    )


def test_final_losses_after_unequal_budgets_are_not_judged():
    findings = compare([*simulated_arm("plain", [3.0, 3.01, 3.02]), *longer(1_000_000)])
    assert words(findings, "rms").startswith(
        "inconclusive: final losses are at unequal budgets (200.0K and 100.0K tokens); see"
    )
    assert findings.rows[1].at_equal["tokens"].budget == 100_000


def test_equal_flops_are_an_equal_budget_too():
    runs = longer(500_000)
    runs = [r for r in runs if not r.eval_steps[-1].update(val_loss=2.9 + r.seeds[0] / 100)]
    findings = compare([*simulated_arm("plain", [3.0, 3.01, 3.03]), *runs])
    assert findings.rows[1].set_apart == ()
    assert words(findings, "rms").startswith("better: -")


@pytest.mark.parametrize(("device", "judged"), [("a CPU", True), ("a GPU", False)])
def test_equal_seconds_are_an_equal_budget_on_one_machine(device, judged):
    plain = simulated_arm("plain", [3.0, 3.01, 3.03])
    rms = [
        simulated_run(
            *("rms", seed, None),
            curve=decaying(2.9 + seed / 100, 200),
            training={"max_iters": 200, "warmup_iters": 10},
            seconds_per_step=0.05,
            device=device,
            start="2025-01-02",
        )
        for seed in (1, 2, 3)
    ]
    assert (compare([*plain, *rms]).rows[1].verdict.difference is not None) == judged


def test_final_losses_at_different_points_of_the_schedule_are_not_judged():
    """A learning rate that has not decayed yet raises the loss."""
    half = simulated_arm(
        *("rms", [3.0, 3.0, 3.0]),
        curve=decaying(3.2, 100),
        model=RMS,
        start="2025-01-02",
        training={"max_iters": 200, "warmup_iters": 10},
    )
    findings = compare([*simulated_arm("plain", [3.0, 3.01, 3.02]), *half])
    assert words(findings, "rms").startswith(
        "inconclusive: final losses are at unequal budgets (50 % and 100 % of the schedule); see"
    )


def test_interrupted_runs_are_not_judged_even_at_equal_lengths():
    half = {"training": {"max_iters": 200, "warmup_iters": 10}}
    plain = simulated_arm("plain", [3.0, 3.01, 3.02], **half)
    rms = simulated_arm("rms", [2.5, 2.52, 2.51], model=RMS, start="2025-01-02", **half)
    assert words(compare([*plain, *rms]), "rms") == (
        "inconclusive: runs end at 50 % of their schedule"
    )


def test_there_is_no_verdict_before_all_declared_seeds_have_finished():
    runs = [
        *simulated_arm("plain", [3.0, 3.01, 3.02]),
        *simulated_arm("rms", [2.5, 2.52], model=RMS, start="2025-01-02"),
    ]
    assert words(compare(runs, design=Design(seeds=3)), "rms") == (
        "inconclusive: 2 of 3 declared seeds of arch-rms have finished"
    )
    assert words(compare(runs, design=Design(seeds=2)), "rms").startswith("better: ")


def test_seeds_that_were_added_after_a_verdict_need_a_wider_interval():
    plain = simulated_arm("plain", [3.0 + 0.001 * s * (-1) ** s for s in range(8)])
    rms = simulated_arm("rms", [2.9 + 0.002 * s for s in range(8)], model=RMS, start="2025-01-02")

    def width(design: Design) -> float:
        low, high = compare([*plain, *rms], design=design).rows[1].verdict.interval
        return high - low

    declared = width(Design(seeds=8, looks=(8,)))
    assert width(Design(seeds=8)) == declared
    assert width(Design(seeds=8, looks=(3, 8))) > 1.5 * declared


def test_declared_arms_that_are_missing_widen_the_intervals():
    runs = [
        *simulated_arm("plain", [3.0, 3.01, 3.02]),
        *simulated_arm("rms", [2.5, 2.52, 2.53], model=RMS, start="2025-01-02"),
    ]
    few, many = (compare(runs, design=Design(arms=n)).rows[1].verdict for n in (1, 8))
    assert many.interval[0] < few.interval[0]
    assert compare(runs, design=Design(arms=8)).family == 8


def test_terms_name_what_is_equal_and_what_is_not():
    plain = simulated_arm("plain", [3.0, 3.01, 3.02])
    larger = simulated_arm("rms", [2.5, 2.52, 2.53], model=RMS, flops_per_token=1_200_000)
    same, larger = (compare([*plain, *runs]).rows[-1].terms for runs in (plain, larger))
    assert same == "at equal parameters, tokens and FLOPs"
    assert larger == "at equal parameters and tokens, 1.20x the FLOPs"


def test_keys_tuned_in_a_sweep_are_conditions_for_other_runs():
    def in_sweep(run: LoggedRun, sweep: str | None) -> LoggedRun:
        return dataclasses.replace(run, sweep=sweep)

    rate = {"training": {"learning_rate": 3e-4}}
    plain = [in_sweep(run, "a") for run in simulated_arm("plain", [3.0, 3.01, 3.03])]
    design = Design(studied={"a": ("learning_rate",)})
    for sweep, judged in (("a", True), ("b", False), (None, False)):
        rms = simulated_arm("rms", [2.5, 2.52, 2.51], model=RMS, start="2025-01-02", **rate)
        runs = [*plain, *(in_sweep(run, sweep) for run in rms)]
        row = compare(runs, design=design).rows[1]
        assert (row.set_apart == ()) == judged


# --- Code ---


def made_by(run: LoggedRun, **environment: object) -> LoggedRun:
    return dataclasses.replace(run, environment={**run.environment, **environment})


@pytest.mark.parametrize(
    ("one", "other", "groups"),
    [
        ({"source_sha256": "aa"}, {"source_sha256": "bb"}, 2),
        ({"source_sha256": "aa", "commit": "x"}, {"source_sha256": "aa", "commit": "y"}, 1),
        ({"source_sha256": None, "commit": "x"}, {"source_sha256": None, "commit": "y"}, 2),
        (
            {"source_sha256": None, "commit": "x", "dirty": True},
            {"source_sha256": None, "commit": "x", "dirty": False},
            2,
        ),
        ({"source_sha256": None}, {"source_sha256": None}, 1),
    ],
)
def test_runs_of_different_code_are_different_groups(one, other, groups):
    runs = [made_by(simulated_run(seed=s), **env) for s, env in ((1, one), (2, other))]
    found = group_runs(runs)
    assert len(found) == groups
    assert len({group.name for group in found}) == groups


def test_plugins_and_starts_are_code():
    run = simulated_run()
    edited = dataclasses.replace(simulated_run(seed=2), plugins={"mine.py": "ff"})
    environment = run.environment
    resumed = dataclasses.replace(
        simulated_run(seed=3), environments=(environment, {**environment, "source_sha256": "bb"})
    )
    assert len(group_runs([run, edited, resumed])) == 3


def test_unfinished_seeds_are_a_caveat():
    """Stopping runs that go badly leaves fewer seeds, which is reported."""
    plain = simulated_arm("plain", [3.0, 3.01, 3.03, 3.02])
    rms = simulated_arm("rms", [2.5, 2.52, 2.51, 2.9], model=RMS, start="2025-01-02")
    rms[3] = dataclasses.replace(rms[3], eval_steps=rms[3].eval_steps[:3], status="interrupted")
    [row] = compare([*plain, *rms]).rows[1:]
    assert (row.verdict.word, row.verdict.difference.n) == ("better", 3)
    assert row.caveats == ("1 of 4 seeds of the arm have not finished and are excluded",)
    again = simulated_run("rms", 4, 2.53, model=RMS, start="2025-01-03")
    [row] = compare([*plain, *rms, again]).rows[1:]
    assert row.caveats == ()
    short = dataclasses.replace(plain[0], eval_steps=plain[0].eval_steps[:2])
    [row] = compare([short, *plain[1:], *rms[:3]], "arch-plain").rows[1:]
    assert row.caveats == ("1 of 4 seeds of the baseline have not finished and are excluded",)


def test_equal_seconds_are_named_where_nothing_else_is_equal():
    plain = simulated_arm("plain", [3.0, 3.01, 3.03])
    twice = [
        simulated_run(
            "rms",
            seed,
            model=RMS,
            training={"max_iters": 200, "warmup_iters": 10},
            curve=decaying(loss, 200),
            seconds_per_step=0.05,
        )
        for seed, loss in ((1, 2.5), (2, 2.52), (3, 2.51))
    ]
    [row] = compare([*plain, *twice], "arch-plain").rows[1:]
    assert row.verdict.word == "better"
    assert row.terms == "at equal parameters and seconds, 2.00x the tokens, 2.00x the FLOPs"


def test_settings_changed_on_resume_make_another_group():
    """A run whose learning rate was changed in mid-training is not comparable with others."""
    plain = simulated_arm("plain", [3.0, 3.01, 3.03])
    resumed = [
        dataclasses.replace(run, earlier_configs=({"learning_rate": 5e-3, "out_dir": "x"},))
        for run in simulated_arm("plain", [2.5, 2.51, 2.53], start="2025-01-02")
    ]
    findings = compare([*plain, *resumed])
    [row] = findings.rows[1:]
    assert row.set_apart == ("settings before it was resumed: learning_rate=0.005, not None",)
    assert row.verdict.word == "inconclusive"
    moved = [dataclasses.replace(run, earlier_configs=({"out_dir": "x"},)) for run in plain]
    assert len(group_runs([plain[0], *moved[1:]])) == 1


def test_a_plugin_changed_on_resume_makes_another_group():
    plain = [dataclasses.replace(run, plugins={"a.py": "f"}) for run in simulated_arm("p", [3, 4])]
    resumed = dataclasses.replace(plain[1], earlier_plugins=({"a.py": "0"},))
    groups = group_runs([plain[0], resumed])
    assert len({group.name for group in groups}) == 2
    [row] = compare([plain[0], resumed]).rows[1:]
    assert "plugins differs" in row.caveats


def test_an_eval_interval_changed_on_resume_is_a_caveat():
    plain = simulated_arm("plain", [3.0, 3.01, 3.03], training={"eval_interval": 25})
    rms = simulated_arm("rms", [2.5, 2.52, 2.51], model=RMS, training={"eval_interval": 25})
    rms[0] = dataclasses.replace(rms[0], earlier_configs=({"eval_interval": 50},))
    [row] = compare([*plain, *rms]).rows[1:]
    assert row.caveats == ("eval_interval differs (25, 50 against 25)",)


def test_what_differs_besides_the_architecture_is_named():
    plain = simulated_arm("plain", [3.0, 3.01, 3.03], training={"eval_interval": 25})
    rms = simulated_arm("rms", [2.5, 2.52, 2.51], model=RMS, training={"eval_interval": 50})
    rms = [made_by(run, source_sha256="beef", torch="2.12", host="b") for run in rms]
    (row,) = compare([*plain, *rms]).rows[1:]
    assert row.verdict.word == "better"
    assert row.caveats == (
        "eval_interval differs (50 against 25)",
        "source code differs (beef against c0de)",
        "torch version differs (2.12 against unknown)",
        "host differs (b against unknown)",
    )


def test_logs_without_a_digest_say_so():
    runs = [made_by(run, source_sha256=None) for run in simulated_arm("plain", [3.0, 3.1])]
    rms = simulated_arm("rms", [2.5, 2.52], model=RMS, start="2025-01-02")
    rms = [made_by(run, source_sha256=None) for run in rms]
    (row,) = compare([*runs, *rms]).rows[1:]
    assert row.caveats == ("no digest of the source code in the log: runs are grouped by commit",)
    dirty = [made_by(run, source_sha256=None, commit="c", dirty=True) for run in [*runs, *rms]]
    (row,) = compare(dirty).rows[1:]
    assert row.caveats[0].endswith("by commit, and had uncommitted changes, which may differ")


def test_seeds_that_share_the_order_of_the_data_are_pointed_out():
    runs = [
        dataclasses.replace(run, config={**run.config, "data_seed": 7})
        for run in simulated_arm("plain", [3.0, 3.1])
    ]
    assert any(note.startswith("All runs share data_seed=7") for note in compare(runs).notes)


# --- Equal minutes ---


def test_runs_of_equal_minutes_count_whatever_their_steps():
    runs = [timed_run("plain", seed, 3.0, steps) for seed, steps in ((1, 100), (2, 80), (3, 120))]
    (group,) = group_runs(runs)
    assert (group.n, group.left_out, group.progress) == (3, (), 1.0)


def test_a_run_of_fewer_seconds_than_its_limit_does_not_count():
    runs = [timed_run("plain", seed, 3.0, 100) for seed in (1, 2)]
    short = timed_run("plain", 3, 3.5, 100, seconds=30, status="interrupted")
    (group,) = group_runs([*runs, short])
    assert group.n == 2
    assert group.left_out == ("plain-3 (interrupted): 30 of 60 seconds",)


def test_a_run_that_did_all_steps_before_its_minutes_were_spent_counts():
    steps_first = {"training": {"max_iters": 100}}
    runs = [timed_run("plain", s, 3.0, 100, seconds=40 + 5 * s, **steps_first) for s in (1, 2)]
    (group,) = group_runs([*runs, timed_run("plain", 3, 3.0, 98, **steps_first)])
    assert (group.n, group.progress) == (3, 1.0)


def timed_arms(device: str = "a CPU", seconds: float = 60.0) -> list:
    """An arm that does 100 steps in its minute, and a faster one that is better."""
    plain = [timed_run("plain", s, 3.0 + s / 100, 100) for s in (1, 2, 3)]
    settings = {"device": device, "seconds": seconds, "model": RMS, "start": "2025-01-02"}
    return [*plain, *(timed_run("rms", s, 2.5 + s / 99, 150, **settings) for s in (1, 2, 3))]


def test_final_losses_after_equal_minutes_are_judged():
    """A step that began in time may end a little later."""
    for seconds in (60.0, 60.4):
        findings = compare(timed_arms(seconds=seconds))
        assert findings.rows[1].set_apart == ()
        assert words(findings, "rms").startswith("better: -")


def test_equal_minutes_on_different_machines_are_not_an_equal_budget():
    said = words(compare(timed_arms(device="a GPU")), "rms")
    assert said.startswith(
        "inconclusive: final losses are at unequal budgets (150.0K and 100.0K tokens); see"
    )


def test_an_arm_that_has_spent_half_of_its_minutes_is_not_judged():
    said = words(compare(timed_arms(seconds=30.0)), "rms")
    assert said.startswith(
        "inconclusive: final losses are at unequal budgets (50 % and 100 % of the schedule); see"
    )


def test_minutes_are_a_length_not_part_of_the_recipe():
    plain, longer = group_runs(
        [
            timed_run("plain", 1, 3.0, 100),
            timed_run("plain", 1, 2.9, 200, training={"max_minutes": 2.0}),
        ]
    )
    assert unlike(longer, plain) == []
    assert longer.name == "arch-plain [max_minutes=2.0]"


# --- The baseline ---


@pytest.fixture
def three():
    groups = [("gpt", None), ("gpt-rms", RMS), ("llama", {"ffn_type": "swiglu"})]
    return group_runs([simulated_run(arm, model=model) for arm, model in groups])


def test_the_baseline_is_found_by_name_or_by_the_start_of_a_runs_name(three):
    assert find_baseline(three, None) is three[0]
    assert find_baseline(three, "arch-llama") is three[2]
    assert find_baseline(three, "lla") is three[2]
    assert find_baseline(three, "gpt-rms") is three[1]


def test_a_baseline_of_two_groups_or_none_is_refused(three):
    with pytest.raises(ValueError, match=r"=gpt matches several groups: arch-gpt; arch-gpt-rms"):
        find_baseline(three, "gpt")
    with pytest.raises(ValueError, match=r"'arch-lama'; did you mean 'arch-llama'"):
        find_baseline(three, "arch-lama")


# --- Notes ---


def test_speeds_of_different_machines_are_not_compared():
    plain = simulated_arm("plain", [3.0, 3.01, 3.02])
    fast = simulated_arm("rms", [3.0, 3.02, 3.01], model=RMS, device="a GPU", start="2025-01-02")
    findings = compare([*plain, *fast])
    assert set(findings.axes) == {"tokens", "flops"}
    assert (
        "Seconds are not compared: the runs differ in device, threads or compile (a CPU, a GPU)."
        in findings.notes
    )
    assert findings.rows[1].caveats == ("device differs (a GPU against a CPU)",)
    assert [row.pareto for row in findings.rows] == [None, None]


@pytest.mark.parametrize(("key", "comparable"), [("attention_backend", True), ("compile", False)])
def test_speeds_are_compared_by_the_keys_that_both_have(key, comparable):
    """A mixer without attention has no option of it, and runs on the same machine."""
    with_key = {"compile": False, "attention_backend": "auto"}
    own = {"compile": False} if key == "attention_backend" else with_key | {"compile": True}
    plain = simulated_arm("plain", [3.0, 3.01, 3.02], training=with_key)
    rms = simulated_arm("rms", [3.0, 3.02, 3.01], model=RMS, training=own, start="2025-01-02")
    findings = compare([*plain, *rms])
    assert ("seconds" in findings.axes) == comparable
    assert ("Seconds are not compared" in " ".join(findings.notes)) != comparable


@pytest.mark.parametrize("load", [None, 0.5])
def test_seconds_of_runs_that_shared_their_machine_are_not_compared(load):
    plain = simulated_arm("plain", [3.0, 3.01, 3.02])
    rms = simulated_arm("rms", [3.0, 3.02, 3.01], model=RMS, start="2025-01-02")
    rms[0] = dataclasses.replace(rms[0], other_load=load)
    findings = compare([*plain, *rms])
    assert set(findings.axes) == {"tokens", "flops"}
    assert any(note.startswith("Seconds are not compared: rms-1 shared") for note in findings.notes)


def test_no_group_in_the_pareto_set_is_dominated():
    arms = {
        "plain": ([3.0, 3.01], {}),
        "slow": ([2.9, 2.91], {"seconds_per_step": 0.2}),
        "bad": ([3.2, 3.21], {"seconds_per_step": 0.2}),
        "small": ([3.2, 3.21], {"summary": {"peak_memory_bytes": 1}}),
        "once": ([1.0], {}),
    }
    runs = [
        run
        for day, (arm, (losses, settings)) in enumerate(arms.items(), start=1)
        for run in simulated_arm(arm, losses, start=f"2025-01-0{day}", **settings)
    ]
    assert [row.pareto for row in compare(runs).rows] == [True, True, False, True, None]


# --- What to run next


@pytest.mark.parametrize(
    ("arms", "command"),
    [
        (
            [("a", {"arch_preset": "gpt2"}), ("b", {"arch_preset": "llama", "bias": False})],
            "python sweep.py --arch_preset=gpt2 --dataset=tiny --max_iters=100 --batch_size=4 "
            "--learning_rate=0.001 --vary arch_preset=llama --seeds=5",
        ),
        (
            [
                ("a", {"arch_preset": "gpt2"}),
                ("b", {"arch_preset": "gpt2", **RMS}),
                ("c", {"arch_preset": "gpt2", "bias": False}),
            ],
            "python sweep.py --arch_preset=gpt2 --dataset=tiny --max_iters=100 --batch_size=4 "
            "--learning_rate=0.001 --vary normalization=rmsnorm --vary bias=False --seeds=5",
        ),
        (
            [("a", {"arch_preset": "gpt2"}), ("b", {"arch_preset": "gpt2", **RMS, "bias": False})],
            None,
        ),
    ],
)
def test_single_runs_are_descriptive_with_a_command_for_verdicts(arms, command):
    runs = [
        simulated_run(
            name,
            loss=3.0 - day / 10,
            model={k: v for k, v in keys.items() if k != "arch_preset"},
            training={"arch_preset": keys["arch_preset"], "dataset": "tiny"},
            start=f"2025-01-0{day}",
        )
        for day, (name, keys) in enumerate(arms, start=1)
    ]
    [note] = [note for note in compare(runs).notes if note.startswith("Each arm has one run")]
    assert note.endswith(f"For verdicts: {command}" if command else "or use sweep.py.")


def test_a_seed_shared_by_all_runs_is_noted():
    runs = [
        dataclasses.replace(run, config=run.config | {"seed": 7})
        for run in (
            *simulated_arm("a", [3.00, 3.02, 3.01]),
            *simulated_arm("b", [2.90, 2.93, 2.91], model=RMS),
        )
    ]
    [note] = [own for own in compare(runs).notes if "All runs share" in own]
    assert note.startswith("All runs share seed=7: the intervals cover the randomness of the order")


def test_a_confidence_sequence_needs_pairs_and_says_so():
    runs = [
        *simulated_arm("a", [3.00, 3.02, 3.01, 2.99]),
        *(simulated_run("b", seed, 2.9 + seed / 1e4, model=RMS) for seed in range(11, 15)),
    ]
    verdict = compare(runs, design=Design(seeds=4, looks=(2,))).rows[1].verdict
    assert verdict.reason == "fewer than 2 shared seeds, which intervals after adding seeds require"


def test_effects_after_added_seeds_are_those_of_a_confidence_sequence():
    cells = [(norm, bias) for norm in ("layernorm", "rmsnorm") for bias in (True, False)]
    runs = []
    for k, (norm, bias) in enumerate(cells):
        losses = [3 + 0.01 * (k > 0) + 0.001 * ((7 * seed + 3 * k) % 5) for seed in range(6)]
        model = {"normalization": norm, "bias": bias}
        runs += simulated_arm(f"{norm}-{bias}", losses, model=model, start=f"2025-01-0{k + 1}")
    declared = compare(runs, design=Design(seeds=6)).effects
    looked = compare(runs, design=Design(seeds=6, looks=(3, 6))).effects
    for one, other in zip(declared, looked, strict=True):
        widths = [high - low for low, high in (one.contrast.interval, other.contrast.interval)]
        assert widths[1] > 1.3 * widths[0]
