"""The command lines of a sweep's runs: train.py reads from each what the plan says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import configurator
import sweep
from configurator import Settings
from errors import ConfigError
from experiment.arms import Arm
from experiment.jobs import Job
from experiment.plan import Plan
from experiment.tuning import Tuned
from interop.starting_model import new_settings
from tests.parametrized import one_in
from tests.tiny_sweep import config_file, tiny_plan
from user_files import read_config_file

OF_A_RUN = {"out_dir", "run_name", "resume", "seed", "data_seed"}
FOUR_LAYERS = {"n_layer": "4"}

ASKED: dict[str, dict[str, Any]] = {
    "keys of one arm's part": {
        "vary": {"position_encoding": ("rope", "alibi"), "normalization": ("rmsnorm",)},
        "flags": {"rope_theta": "500", "rope_fraction": "0.5"},
    },
    "parts of every combination": {
        "vary": {"position_encoding": ("rope",), "ffn_type": ("moe", "swiglu")},
        "flags": {"rope_theta": "50", "n_experts": "4"},
        "design": "factorial",
    },
    "patterns": {
        "vary": {
            "mixer": ("gated_deltanet*2+attention", "attention+short_conv*"),
            "sliding_window": ("8*2+none",),
        },
        "flags": FOUR_LAYERS,
    },
    "optimizers and schedules": {
        "vary": {"optimizer": ("lion", "muon"), "lr_schedule": ("wsd", "constant")},
        "flags": {"lion_beta2": "0.5", "beta2": "0.6", "wsd_decay_fraction": "0.3"},
    },
    "trials that choose parts": {
        "vary": {"normalization": ("rmsnorm",)},
        "flags": {"lion_beta2": "0.5", "beta2": "0.6"},
        "tune": {"optimizer": ("adamw", "lion"), "lion_beta1": ("0.7", "0.8")},
    },
    "trials of other sizes": {
        "vary": {"normalization": ("rmsnorm",)},
        "flags": {"ffn_type": "moe"},
        "tune": {"n_experts": ("4", "8")},
        "match": "params",
    },
}


def jobs_of(plan: Plan) -> Iterator[tuple[Job, Arm]]:
    """Every run, and the arm that it is to be trained as."""
    for arm in plan.arms:
        trials = plan.trials[arm.name]
        for trial in trials:
            yield from ((job, trial.arm) for job in plan.trial_jobs(arm.name, trial))
        trained_as, choice = (trials[-1].arm, trials[-1].choice) if trials else (arm, {})
        tuned = {arm.name: Tuned(trained_as, choice)}
        yield from ((job, trained_as) for job in plan.final_jobs(tuned))


def values(settings: Settings) -> dict[str, Any]:
    return {k: value for k, value in settings.to_dict().items() if k not in OF_A_RUN}


def check(plan: Plan) -> None:
    for job, arm in jobs_of(plan):
        said = new_settings(configurator.read(job.command[2:]))
        assert values(said.for_data(plan.dataset.vocab_size)) == values(arm.settings), job.title


@pytest.mark.parametrize("name", one_in(3, list(ASKED)))
def test_a_run_reads_the_plan_from_its_command(
    tiny_dataset: Path, tmp_path: Path, name: str
) -> None:
    check(tiny_plan(tiny_dataset, tmp_path, seeds=1, **ASKED[name]))


def test_files_set_keys_that_only_some_arms_have(tiny_dataset: Path, tmp_path: Path) -> None:
    """Their warm-up is scaled to the budget, too."""
    keys = {"lion_beta2": 0.5, "rope_theta": 123.0, "warmup_iters": 10, "max_iters": 200}
    common = config_file(tmp_path, "common", **keys)
    arms = [
        config_file(tmp_path, "hybrid", mixer="gated_deltanet+attention", linear_kernel=2),
        config_file(tmp_path, "turned", position_encoding="rope", rope_fraction=0.5),
    ]
    flags = {"n_layer": "2", "warmup_iters": None, "max_iters": None}
    vary = {"optimizer": ("lion",)}
    plan = tiny_plan(
        tiny_dataset, tmp_path, files=[common], arms=arms, flags=flags, vary=vary, seeds=1
    )
    check(plan)


OWN_NORM = '''
from components.norms import NORMS, NormOptions, RMSNorm
from options import option


@NORMS.register("own_norm", label="Own")
class OwnNorm(RMSNorm):
    """RMSNorm with an option of its own."""

    class Options(NormOptions):
        own_norm_gain: float = option(1.0, "an option", above=0)


normalization = "own_norm"
'''


@pytest.fixture
def own_norm(tmp_path: Path) -> Path:
    """The config file of an arm that registers a part."""
    path = tmp_path / "own_norm.py"
    path.write_text(OWN_NORM)
    return path


def test_a_key_that_only_one_arm_knows_is_given_to_it_alone(
    tiny_dataset: Path, tmp_path: Path, own_norm: Path
) -> None:
    """The processes of the others do not register the part, so they would refuse the key."""
    read_config_file(str(own_norm), {})  # as a sweep does with the files of all arms
    asked = {"vary": {"normalization": ("rmsnorm",)}, "flags": {"own_norm_gain": "2"}}
    plan = tiny_plan(tiny_dataset, tmp_path, arms=[own_norm], seeds=1, **asked)
    given = {job.arm: "--own_norm_gain=2" in job.arguments for job, _ in jobs_of(plan)}
    assert given == {"baseline": False, "normalization=rmsnorm": False, "own_norm": True}
    told = " ".join(text for job, _ in jobs_of(plan) for text in job.arguments)
    assert told.count("own_norm_gain") == 1


def test_a_part_that_only_the_file_of_another_arm_registers(
    tiny_dataset: Path, tmp_path: Path, own_norm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    read_config_file("own_norm.py", {})
    vary = {"normalization": ("rmsnorm", "rmsnorm+own_norm")}
    asked = {"vary": vary, "arms": [Path("own_norm.py")], "flags": {"n_layer": "2"}}
    with pytest.raises(ConfigError) as error:
        tiny_plan(tiny_dataset, tmp_path, **asked)
    [problem] = error.value.problems
    assert problem.message == (
        "arm normalization=rmsnorm+own_norm: normalization=own_norm is registered by own_norm.py, "
        "which is not a file of this arm; give all arms --plugins=own_norm.py."
    )


CONTRIBUTING = Path(sweep.__file__).with_name("CONTRIBUTING.md").read_text(encoding="utf-8")
PLUGIN, CONFIG = re.findall(r"```python\n(.*?)```", CONTRIBUTING, re.DOTALL)[:2]


def test_parts_of_a_plugin(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_parts.py").write_text(PLUGIN, encoding="utf-8")
    Path("my_config.py").write_text(CONFIG.partition("n_layer")[0], encoding="utf-8")
    options, rest = sweep.parser().parse_known_args(
        [
            *("my_config.py", "--vary", "mixer=attention,mingru", "--vary", "optimizer=adamw"),
            *("--tune", "signum_momentum=0.8,0.95", "--tune", "beta1=0.8,0.95"),
            *("--mingru_kernel=2", "--kerple_form=power", f"--dataset={tiny_dataset}"),
            *("--n_layer=4", "--n_head=2", "--n_embd=32", "--block_size=16", "--seeds=1"),
        ]
    )
    plan = sweep.make_plan(sweep.read_request(options, rest), tmp_path)
    assert [len(trials) for trials in plan.trials.values()] == [2] * 4
    check(plan)
