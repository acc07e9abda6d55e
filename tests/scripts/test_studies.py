"""The studies: what they ask for, and that a page reports what its runs show."""

from __future__ import annotations

import shlex

import pytest

import sweep
from comparison.findings import compare
from scripts import study_cpu, study_modern
from scripts.study import Study, report
from tests.simulated import simulated_arm

ARMS = {"baseline": [3.0, 3.02, 2.99], "arch_llama": [2.80, 2.81, 2.79], "bias=False": [3.0, 3.1]}


def manifest() -> dict:
    runs = {arm: [f"runs/{arm}-{seed}" for seed in (1, 2, 3)] for arm in ARMS}
    return {
        "command": "python sweep.py this",
        "arms": [
            {
                "name": arm,
                "solved": {"ffn_hidden": 341} if arm == "arch_llama" else {},
                "parameters": 1_000_000,
                "flops_per_token": 1_000_000,
                "tuned": {"learning_rate": "2e-3"},
                "allowance": 0.003,
            }
            for arm in ARMS
        ],
        "seeds": [[1, 1], [2, 2], [3, 3]],
        "tuning": {"trials": [{"learning_rate": "1e-3"}, {"learning_rate": "2e-3"}]},
        "runs": [{"arm": arm, "folder": folder} for arm in ARMS for folder in runs[arm]],
    }


@pytest.fixture
def page() -> str:
    machine = {"python": "3.11", "torch": "2.13", "cpu_count": 2, "commit": "c0ffee"}
    runs = []
    for day, (arm, losses) in enumerate(ARMS.items(), start=1):
        model = {"normalization": arm}
        made = simulated_arm(arm, losses, model=model, start=f"2025-01-0{day}")
        for run in made:
            run.environment.update(machine)
            run.config.update(sequence_length=64, dataset="tiny")
        runs += made
    return report(study_cpu.STUDY, compare(runs), manifest(), hours=1.25, plot="figure")


every_study = pytest.mark.parametrize("study", [study_cpu.STUDY, study_modern.STUDY])


@every_study
def test_it_asks_for_tuned_ablations_with_several_seeds(study: Study):
    options, rest = sweep.parser().parse_known_args(study.sweep_arguments)
    request = sweep.read_request(options, rest)
    assert sum(map(len, request.vary.values())) >= 6
    assert (request.match, request.design) == ("active_params", "ablation")
    assert request.seeds >= 5
    assert len(request.tune["learning_rate"]) >= 3


@every_study
def test_the_page_that_is_there_is_of_that_study(study: Study):
    page = study.page.read_text(encoding="utf-8")
    assert shlex.join(["python", "sweep.py", *study.sweep_arguments]) in page
    assert study.page.with_suffix(".png").exists()
    assert study.page.with_name(f"{study.name}-tuning.png").exists()


def test_every_verdict_is_told_by_the_arms_name_the_clearest_first(page):
    told = [line for line in page.splitlines() if line.startswith("- **")]
    assert told[0].startswith("- **arch_llama**: better: -0.2033 [")
    assert told[1].startswith("- **bias=False**: inconclusive: ")
    assert "GPT-2 ends at 3.0033 nats per character (sd 0.0153 over 3 seeds)" in page
    assert "| arch_llama | ffn_hidden=341 | 1,000,000 | 1,000,000 | 2e-3 |" in page


def test_what_it_took_is_told(page):
    assert "9 runs of 100.0K tokens (100 steps of 1,000) of `tiny`" in page
    assert "at commit c0ffee; the runs took 1.2 hours in total" in page.replace("\n", " ")
    assert "![Validation loss against budgets, and differences](figure.png)" in page
    assert "![Loss of each trial against the learning rate](figure-tuning.png)" in page
    assert "an allowance of 0.0030 to 0.0030 nats" in " ".join(page.split())
    assert "Every arm tried 2 learning rates on one seed" in page
    assert "{" not in page
