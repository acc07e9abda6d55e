"""Optimizers, schedules and log sinks of a user's own, with options of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from configurator import key_table, load, read, settings_from_dict
from errors import ConfigError
from experiment.request import is_tunable, is_variable
from options import KEYS, Role
from recipe.optimizers import OPTIMIZERS
from tests import own_parts
from tests.saved_run import save_run
from tests.tiny_data import tiny_run_flags, write_tiny_dataset
from training.checkpoint import load_state, weight_shapes
from training.resume import find_start
from training_components import LR_SCHEDULES, TRAINING_REGISTRIES
from user_files import run_plugins

PARTS = '''
import torch
from options import option
from recipe.log_sinks import LOG_SINKS, Sink
from recipe.optimizers import OPTIMIZERS, PerParameter
from recipe.parameters import parameter_groups
from recipe.schedules import LR_SCHEDULES, Schedule


@OPTIMIZERS.register("signum", label="Signum", paper="Bernstein et al. 2018, arXiv 1802.04434")
class Signum(PerParameter):
    """Follow the sign of the averaged gradient."""

    class Options:
        signum_momentum: float = option(0.9, "Signum: share that is kept", at_least=0, below=1)

    def __init__(self, model, config):
        defaults = {"lr": config.learning_rate, "momentum": config.signum_momentum}
        super().__init__(parameter_groups(model, config.weight_decay), defaults)

    def update(self, parameter, gradient, state, group):
        if not state:
            state["average"] = torch.zeros_like(parameter)
        state["average"].lerp_(gradient, 1 - group["momentum"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(state["average"].sign(), alpha=group["lr"])


@LR_SCHEDULES.register("halving", label="Halving")
class Halving(Schedule):
    """Half the rate after every so many steps."""

    class Options:
        halve_every: int | None = option(
            None,
            "halving: steps; none: a third of max_iters",
            at_least=1,
            derive=lambda config: max(config.max_iters // 3, 1),
        )

    def rate(self, position):
        return self.config.learning_rate / 2 ** (position // self.config.halve_every)


@LOG_SINKS.register("lines", label="Lines", aliases=("rows",))
class Lines(Sink):
    """The loss of each line, in a text file."""

    class Options:
        lines_file: str = option("lines.txt", "lines: name of the file in the run's folder")

    def __init__(self, beginning):
        self.path = beginning.run_dir / beginning.config["lines_file"]
        self.path.write_text("".join(map(self.text, beginning.lines)))

    def text(self, line):
        return f"{line['iter']} {line.get('loss', line.get('val_loss'))}\\n"

    def record(self, line):
        with open(self.path, "a") as file:
            file.write(self.text(line))
'''

OWN = {"signum_momentum": Role.RECIPE, "halve_every": Role.RECIPE, "lines_file": Role.BOOKKEEPING}


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The flag that names the file of the parts, beside which the test runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts.py").write_text(PARTS)
    return "--plugins=parts.py"


@pytest.fixture
def registered(plugin: str) -> None:
    """The parts, as when the file has been named."""
    run_plugins("parts.py")


def problems(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(argv)
    return [problem.message for problem in caught.value.problems]


# Keys


def test_they_are_unknown_without_the_plugin():
    assert not OWN.keys() & key_table().keys()
    for key, value in (("optimizer", "signum"), ("lr_schedule", "halving"), ("log_to", "lines")):
        (message,) = problems(f"--{key}={value}")
        assert message.startswith(f"--{key}: unknown {key} '{value}'")


def test_the_roles_are_those_of_their_registries(registered):
    assert {key: KEYS[key].role for key in OWN} == OWN
    assert is_variable(KEYS["signum_momentum"])
    assert is_tunable(KEYS["halve_every"])
    assert not is_variable(KEYS["lines_file"])


def test_help_has_them_after_the_key_that_chooses_the_part(plugin, capsys):
    with pytest.raises(SystemExit):
        read([plugin, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--signum_momentum Signum: share that is kept [float; default 0.9; for " in text
    assert "halve_every" in text[text.index("--lr_schedule") :]
    assert "[one of csv, tensorboard, wandb, lines, rows; default '']" in text


def test_settings_have_the_keys_of_what_is_chosen_and_no_others(plugin, registered):
    settings = load([plugin, "--optimizer=signum", "--lr_schedule=halving", "--max_iters=60"])
    saved = settings.to_dict()
    assert (saved["signum_momentum"], saved["halve_every"]) == (0.9, 20)
    others = {"beta1", "beta2", "adam_eps", "min_lr", "lr_decay_iters", "lines_file"}
    assert not others & saved.keys()
    assert settings.origins["halve_every"] == "derived"
    assert settings_from_dict(saved).to_dict() == saved


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--signum_momentum=0.5"],
            "signum_momentum=0.5 belongs to optimizer=signum, which is not selected; drop it, or",
        ),
        (
            ["--optimizer=signum", "--beta1=0.5"],
            "beta1=0.5 belongs to optimizer=adamw or muon, which is not selected; drop it, or",
        ),
        (
            ["--lr_schedule=halving", "--wsd_decay_fraction=0.5"],
            "wsd_decay_fraction=0.5 belongs to lr_schedule=wsd, which is not selected; drop it",
        ),
        (
            ["--log_to=csv", "--lines_file=a"],
            "lines_file='a' belongs to log_to=lines, which is not selected; drop it, or select",
        ),
        (["--optimizer=signum", "--signum_momentum=1"], "signum_momentum=1.0 must be below 1."),
        (["--log_to=lines,lime"], "unknown log_to 'lime'; did you mean 'lines'? Choices: csv,"),
    ],
)
def test_what_is_refused(plugin, registered, flags, message):
    assert message in problems(plugin, *flags)[0]


@pytest.mark.parametrize(
    ("registry", "body", "message"),
    [
        ("OPTIMIZERS", "class Mine(torch.optim.SGD):", "Mine must subclass UpdateRule"),
        (
            "OPTIMIZERS",
            "class Mine(UpdateRule):\n    def __init__(self, model): ...",
            r"__init__ must accept \(model, config\)",
        ),
        ("LR_SCHEDULES", "class Mine:", "Mine must subclass Schedule"),
        ("LOG_SINKS", "class Mine:", "Mine must subclass Sink"),
        ("DTYPES", "class Mine:", "Mine must subclass ComputeType"),
    ],
)
def test_a_class_that_cannot_be_used_is_refused_with_an_example(registry, body, message, tmp_path):
    head, _, rest = body.partition("\n")
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom recipe.optimizers import UpdateRule\n"
        f"from training_components import {registry}\n"
        f'@{registry}.register("mine", label="Mine")\n{head}\n    """Mine."""\n{rest}\n'
    )
    with pytest.raises(ConfigError, match=message) as refused:
        run_plugins(str(tmp_path / "mine.py"))
    assert f"@{registry}.register" in str(refused.value)


def test_every_optimizer_and_schedule_has_options_that_are_keys_of_training():
    for registry in TRAINING_REGISTRIES.values():
        for name in registry.names:
            assert registry.entry(name).keys.keys() <= key_table().keys()
    assert "min_lr" not in LR_SCHEDULES.entry("constant").keys
    assert all("weight_decay" in OPTIMIZERS.entry(name).keys for name in OPTIMIZERS.names)


# Runs


def resumable(flags: list[str]) -> list[str]:
    return [flag for flag in flags if not flag.startswith("--max_iters")]


def run_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def test_a_run_trains_with_them_resumes_and_logs_them(plugin, tmp_path):
    flags = tiny_run_flags(write_tiny_dataset(tmp_path / "data"))
    where = [f"--out_dir={tmp_path / 'out'}", *flags]
    parts = ["--optimizer=signum", "--signum_momentum=0.5", "--lr_schedule=halving"]
    parts += ["--log_to=lines", "--halve_every=2"]
    with own_parts.forgotten():
        train.main([*where, plugin, *parts, "--run_name=run"])
    run = tmp_path / "out" / "run"
    log = run_of(run)
    wanted = {"signum_momentum": 0.5, "halve_every": 2, "lines_file": "lines.txt"}
    assert {key: log["config"][key] for key in wanted} == wanted
    assert {log["roles"][key] for key in ("signum_momentum", "halve_every")} == {"recipe"}
    assert [record["lr"] for record in log["training_iterations"]] == [5e-4, 1e-3, 5e-4]
    lines = (run / "lines.txt").read_text().splitlines()
    assert len(lines) == len(log["training_iterations"]) + len(log["eval_steps"])
    [checkpoint] = run.glob("checkpoints/step_*3")
    assert (checkpoint / "plugins" / "parts.py").read_text() == PARTS
    again = [*resumable(where), "--resume=run", "--max_iters=4", "--log_to=rows"]
    with own_parts.forgotten():
        train.main([*again, f"--plugins={checkpoint / 'plugins' / 'parts.py'}"])
    log = run_of(run)
    assert [record["lr"] for record in log["training_iterations"]][3:] == [5e-4]
    assert len((run / "lines.txt").read_text().splitlines()) == len(lines) + 2


def test_without_the_plugin_it_is_told_where_the_optimizer_is(plugin, tmp_path):
    with own_parts.forgotten():
        save_run(tmp_path / "out" / "run", flags=[plugin, "--optimizer=signum"])
    with pytest.raises(ValueError, match="trained with custom parts.*optimizer='signum'"):
        find_start(read([f"--out_dir={tmp_path / 'out'}", "--resume=run"]))


@pytest.mark.parametrize("name", OPTIMIZERS.names)
def test_a_run_of_each_optimizer_logs_its_options_and_the_cost_of_its_step(tmp_path, name, capsys):
    flags = tiny_run_flags(write_tiny_dataset(tmp_path / "data"))
    flags += [
        f"--out_dir={tmp_path}",
        "--run_name=run",
        f"--optimizer={name}",
        "--weight_decay=0.2",
    ]
    train.main(flags)
    log = run_of(tmp_path / "run")
    own = OPTIMIZERS.entry(name).keys
    assert own.keys() <= log["config"].keys()
    every = {key for other in OPTIMIZERS.names for key in OPTIMIZERS.entry(other).keys}
    assert not (every - own.keys()) & log["config"].keys()
    flops = log["architecture"]["optimizer_flops_per_step"]
    assert (flops > 0) == (name == "muon")
    report = " ".join(capsys.readouterr().out.split())
    assert f"; {name} (weight_decay 0.2), lr 0.001" in report
    assert (f"optimizer {flops:,} additional FLOPs per step" in report) == (name == "muon")
    losses = [record["loss"] for record in log["training_iterations"]]
    assert all(torch.isfinite(torch.tensor(losses)))
    [checkpoint] = (tmp_path / "run").glob("checkpoints/step_*3")
    assert load_state(checkpoint)["config"]["optimizer"] == name
    assert weight_shapes(checkpoint)
