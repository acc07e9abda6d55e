"""config/run_*.py: each composes with every architecture, and its comment says what it does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from configurator import Settings, load
from data.batches import Shares
from model_builder import GPT
from model_presets import PRESETS
from options import KEYS, Role
from tests.tiny import tiny_file
from training.hardware import PEAK_TFLOPS
from user_files import read_config_file

CONFIG = Path(__file__).parents[2] / "config"
ARCHITECTURES = sorted(
    f"arch_{name}.py" for name in PRESETS.keys() - {"legacy"} if not tiny_file(name).exists()
)
"""Those without sizes."""

RUNS = sorted(path.name for path in CONFIG.glob("run_*.py"))
RECIPES = [
    *("run_fineweb_1.3b.py", "run_fineweb_124m.py", "run_laptop.py"),
    *("run_openwebtext_124m.py", "run_shakespeare.py"),
]
"""Those whose comment says what training takes; the others serve a script."""

PLANNED = [name for name in RECIPES if name != "run_laptop.py"]
"""Recipes that were not run: their time follows from FLOPs, peak and MFU."""

FAST = "run_shakespeare_fast_cpu.py"
"""The one that chooses parts: those with which it is fast."""

VOCABULARIES = {"shakespeare_char": 65, "openwebtext": 50257}
VOCABULARIES |= dict.fromkeys(("fineweb", "fineweb_100b"), VOCABULARIES["openwebtext"])

WORKERS = (1, 2, 4, 8)


def settings(*names: str) -> Settings:
    return load([str(CONFIG / name) for name in names])


def comment(name: str) -> str:
    """The docstring of a config file, without line breaks."""
    source = (CONFIG / name).read_text(encoding="utf-8")
    return " ".join(re.match(r'"""(.*?)"""', source, re.DOTALL)[1].split())


def said(name: str, pattern: str) -> list[float]:
    """The numbers that a config file's comment gives, in the place of the groups of a pattern."""
    found = re.search(pattern, comment(name))
    assert found, pattern
    return [float(text.replace(",", "")) for text in found.groups()]


def rounded(value: float) -> str:
    """Three digits and a unit, as in 294.9B: one decimal."""
    unit, factor = ("B", 1e9) if value >= 1e9 else ("M", 1e6)
    return f"{value / factor:.1f}{unit}"


def flops_of(name: str) -> tuple[int, int, int]:
    """With arch_gpt2: parameters, FLOPs per token, tokens of the run."""
    run = settings("arch_gpt2.py", name)
    run = run.for_data(VOCABULARIES[run.training.dataset])
    with torch.device("meta"):
        model = GPT(run.model)
    per_token = model.flops_per_token(run.training.sequence_length)
    return (
        model.num_parameters(),
        per_token,
        run.training.max_iters * run.training.tokens_per_step,
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", RUNS)
def test_every_run_composes_with_every_architecture(name, architecture):
    """The run decides how training goes, the architecture what the parts are."""
    both = settings(architecture, name)
    parts, run = settings(architecture), settings(name)
    asked = {key: item.value for key, item in read_config_file(str(CONFIG / name), {}).items()}
    assert {key: both.to_dict()[key] for key in asked} == asked
    assert both.arch_preset == parts.arch_preset
    assert both.training == run.training
    kept = parts.model.to_dict().keys() & both.model.to_dict().keys() - asked.keys()
    kept -= set(both.derived)
    assert {key: both.model.to_dict()[key] for key in kept} == {
        key: parts.model.to_dict()[key] for key in kept
    }
    others = both.model.to_dict().keys() ^ parts.model.to_dict().keys()
    assert name == FAST or others <= asked.keys()  # of parts that were chosen instead


@pytest.mark.parametrize("name", [name for name in RUNS if name != FAST])
def test_runs_choose_no_parts(name):
    """Of the architecture, a run sets sizes, and dropout where the text is read many times."""
    asked = read_config_file(str(CONFIG / name), {})
    architecture = {key for key in asked if KEYS[key].role is Role.ARCHITECTURE}
    assert architecture <= {"n_layer", "n_head", "n_embd", "block_size", "dropout"}
    assert "arch_preset" not in asked


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("name", [*RECIPES, FAST])
def test_the_batch_divides_among_workers(name, workers):
    run = settings(name).training
    shares = Shares(run.gradient_accumulation_steps, run.batch_size, workers)
    assert not shares.problem
    assert shares.micro_batches * shares.sequences * workers * run.sequence_length == (
        run.tokens_per_step
    )


@pytest.mark.parametrize("name", RECIPES)
def test_the_comment_gives_tokens_and_schedule(name):
    run = settings(name).training
    steps = run.max_iters
    assert (
        f"Tokens: {run.tokens_per_step:,} per step, "
        f"{rounded(steps * run.tokens_per_step)} in {steps:,} steps"
    ) in comment(name)
    warmup, peak, lowest = said(
        name, r"warm-up over ([\d,]+) steps, then a cosine from ([\de-]+) to ([\de-]+)\b"
    )
    assert (warmup, peak) == (run.warmup_iters, run.learning_rate)
    assert lowest == pytest.approx(run.min_lr)
    assert run.lr_schedule == "cosine"
    assert run.lr_decay_iters == steps


@pytest.mark.parametrize("name", PLANNED)
def test_planned_time_and_cost_follow_from_flops(name):
    text = comment(name)
    assert "Time and cost: not yet run." in text
    _, per_token, tokens = flops_of(name)
    assert said(name, r"arch_gpt2 has ([\d,]+) FLOPs per token") == [per_token]
    mfu, peak, devices = said(name, r"at (\d+) % of the (\d+) TFLOP/s of (\d) [AH]100")
    device = {"A": "A100-SXM4-80GB", "H": "H100 80GB HBM3"}[re.search(r"\d ([AH])100", text)[1]]
    [peaks] = [peaks for pattern, peaks in PEAK_TFLOPS.items() if re.fullmatch(pattern, device)]
    assert peaks["bfloat16"] == peak
    hours = tokens * per_token / (devices * peak * 1e12 * mfu / 100) / 3600
    price = said(name, r"\$([\d.]+) an hour")[0]
    time = f"{hours:.1f} hours" if hours > 1 else f"{60 * hours:.1f} minutes"
    cost = f"${hours * price:.0f}" if hours * price > 1 else f"${hours * price:.2f}"
    assert f"that makes {time}, or {cost} at ${price:g} an hour" in text


def test_the_speeds_of_others_are_those_of_the_reports():
    """MFUs are worked out from what others report: a model's FLOPs, tokens and minutes."""
    _, per_token, _ = flops_of("run_fineweb_124m.py")
    assert 10e9 * per_token / (8 * 989e12 * 45 * 60) == pytest.approx(0.40, abs=0.005)
    _, per_token, tokens = flops_of("run_shakespeare.py")
    assert tokens * per_token / (312e12 * 3 * 60) == pytest.approx(0.10, abs=0.005)


def test_the_loss_of_the_largest_is_extrapolated_as_it_says():
    numerator, exponent, token_numerator, token_exponent = said(
        "run_fineweb_1.3b.py", r"([\d.]+) / parameters\^([\d.]+) \+ ([\d.]+) / tokens\^([\d.]+),"
    )

    def reducible(name: str) -> float:
        parameters, _, tokens = flops_of(name)
        return numerator / parameters**exponent + token_numerator / tokens**token_exponent

    lower = reducible("run_fineweb_124m.py") - reducible("run_fineweb_1.3b.py")
    assert said("run_fineweb_1.3b.py", r"is ([\d.]+) lower") == [round(lower, 2)]
    [known] = said("run_fineweb_124m.py", r"Loss: about ([\d.]+)")
    assert said("run_fineweb_1.3b.py", r"Loss: about ([\d.]+)") == [round(known - lower, 2)]


def test_sizes_are_as_the_comments_say():
    for name, size in [("run_fineweb_1.3b.py", 1.3e9), ("run_fineweb_124m.py", 124e6)]:
        assert flops_of(name)[0] == pytest.approx(size, rel=0.02)
    assert flops_of("run_openwebtext_124m.py")[0] == flops_of("run_fineweb_124m.py")[0]
    parameters, _, tokens = flops_of("run_fineweb_1.3b.py")
    assert said("run_fineweb_1.3b.py", r"steps: (\d+) for each parameter") == [
        round(tokens / parameters)
    ]


def test_the_comment_of_the_fast_recipe_gives_tokens_and_sizes():
    run = settings(FAST).for_data(VOCABULARIES["shakespeare_char"])
    tokens, total, steps = said(FAST, r"Tokens: ([\d,]+) per step, ([\d,]+) in (\d+) steps")
    assert tokens == run.training.tokens_per_step
    assert (total, steps) == (run.training.max_iters * tokens, run.training.max_iters)
    with torch.device("meta"):
        assert said(FAST, r"Parameters: ([\d,]+)") == [GPT(run.model).num_parameters()]


def test_the_fast_recipe_reaches_the_loss_that_it_names():
    """By what its comment says was measured."""
    [bar] = said(FAST, r"validation loss of ([\d.]+)\. ")
    losses = said(FAST, r"([\d.]+), ([\d.]+) and ([\d.]+) with seeds 1337 to 1339")
    assert max(losses) <= bar


@pytest.mark.parametrize("name", [*RECIPES, FAST])
def test_the_row_of_the_readme(name):
    readme = (CONFIG.parent / "README.md").read_text(encoding="utf-8")
    run = settings(name).training
    parameters, _, tokens = flops_of(name)
    numbers = f"{rounded(tokens)} | {run.tokens_per_step:,} |"
    assert f"| `{name}` | {rounded(parameters)} | `{run.dataset}` | {numbers}" in readme


needs_text = pytest.mark.skipif(
    not (CONFIG.parent / "data/shakespeare_char/meta.json").exists(),
    reason="data/shakespeare_char is not prepared",
)


@pytest.mark.slow
@needs_text
@pytest.mark.parametrize("preset", ["llama", "gpt2"])
def test_the_laptop_recipe_reaches_its_loss(preset, tmp_path):
    """To the spread of seeds: another machine or dtype rounds differently."""
    command = [sys.executable, "train.py", f"config/arch_{preset}.py", "config/run_laptop.py"]
    flags = [f"--out_dir={tmp_path}", "--run_name=run", "--device=cpu"]
    subprocess.run([*command, *flags], cwd=CONFIG.parent, check=True, capture_output=True)
    run = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    [loss] = said("run_laptop.py", rf"([\d.]+) as arch_{preset}\b")
    assert run["eval_steps"][-1]["val_loss"] == pytest.approx(loss, abs=0.03)


@pytest.mark.slow
@needs_text
@pytest.mark.parametrize("seed", [1337, 1338, 1339])
def test_the_fast_recipe_reaches_its_loss(seed, tmp_path):
    flags = [f"--out_dir={tmp_path}", "--run_name=run", f"--seed={seed}", f"--data_seed={seed}"]
    command = [sys.executable, "train.py", f"config/{FAST}", *flags]
    subprocess.run(command, cwd=CONFIG.parent, check=True, capture_output=True)
    run = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    [bar] = said(FAST, r"validation loss of ([\d.]+)\.")
    assert [record["iter"] for record in run["eval_steps"]] == [run["config"]["max_iters"]]
    assert run["eval_steps"][0]["val_loss"] <= bar
