"""What README.md says that can be worked out: commands, counts, names, files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from model_builder import GPT
from model_config import ModelArchitectureConfig

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = (
    "pip install -r requirements.txt && python train.py config/arch_llama.py --max_iters=",
    "pip install -r requirements-dev.txt && python -m pytest",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_ci_runs_the_commands_as_written(command):
    assert command in README
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_numbers_of_the_first_command():
    config = ModelArchitectureConfig.from_preset("llama", vocab_size=257)
    with torch.device("meta"):
        cost = GPT(config).cost_report(256)
    assert f"`{cost['name']}`" in README
    for key in ("parameters", "flops_per_token", "flops_per_token_causal"):
        assert f"{cost[key]:,}" in README, key


def test_the_check_figure():
    with torch.device("meta"):
        model = GPT(ModelArchitectureConfig.from_preset("gpt2"))
    assert f"{model.flops_per_token(1024):,}" in README
    assert f"{model.flops_per_token(1024, causal=True):,}" in README


def test_the_names_of_the_presets():
    for preset, name in re.findall(r"`arch_(\w+)\.py`.*`(12L\S+)`", README):
        assert ModelArchitectureConfig.from_preset(preset).architecture_name == name


def test_the_name_in_the_example():
    assert 'ModelArchitectureConfig.from_preset("llama", n_layer=6, n_kv_head=4)' in README
    config = ModelArchitectureConfig.from_preset("llama", n_layer=6, n_kv_head=4)
    assert f"print(config.architecture_name)  # {config.architecture_name}\n" in README


def test_the_name_of_layers_that_differ():
    """A key for each flag of the command above the name."""
    command, name = re.search(
        r"(config/arch_llama\.py --\S+='.*)\n\nThis trains `(\S+)`", README
    ).groups()
    flags = dict(re.findall(r"--(\w+)='(\S+)'", command))
    assert len(flags) == 2
    assert ModelArchitectureConfig.from_preset("llama", **flags).architecture_name == name


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "CONTRIBUTING.md",
        *map(str, sorted(path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md"))),
    ],
)
def test_links_lead_somewhere(document):
    page = ROOT / document
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith("http")]
    missing = [link for link in local if not (page.parent / link).exists()]
    assert not missing


REPORTS = sorted((ROOT / "docs" / "reports").rglob("*.html"))


def test_sample_reports_are_small_and_name_no_machine():
    assert len(REPORTS) == 2
    assert sum(path.stat().st_size for path in REPORTS) < 600_000
    for path in REPORTS:
        page = path.read_text(encoding="utf-8")
        assert not re.search(r"[ >\"'=](?:/(?:home|root|tmp|work|Users|mnt)/|[A-Z]:\\\\)", page)
        links = re.findall(r'href="(\.[^"#]*)', page)
        assert all((path.parent / link).is_file() for link in links)


def test_the_verdicts_of_the_sweep_are_those_of_its_report():
    [page] = [path.read_text(encoding="utf-8") for path in REPORTS if path.name == "sweep.html"]
    document = json.loads(re.search(r'id="document"[^>]*>(.*?)</script>', page, re.DOTALL)[1])
    rows = re.findall(r"^ +\d  5 +([\d.]+) .* (\w+)$", README, re.MULTILINE)
    found = [(f"{group['loss']:.4f}", group["verdict"]) for group in document["groups"]]
    assert rows == [(found[0][0], "baseline"), *found[1:]]


def test_the_verdicts_are_those_of_the_study():
    """Loss difference, interval, seeds, verdict and new text of each row, by its arm's name."""
    study = (ROOT / "docs" / "study-cpu.md").read_text(encoding="utf-8")
    row = r"\| [^|]*\(`([\w=]+)`\) \| (\S+) \| (\[.+?\]) \| (\d+) \| (\w+) \| (.+) \|"
    rows = re.findall(row, README)
    assert len(rows) == 5
    for arm, difference, interval, seeds, verdict, new_text in rows:
        line = re.search(rf"^- \*\*{arm}\*\*: .*$", study, re.MULTILINE)[0]
        assert f": {verdict}: {difference} {interval} nats" in line
        assert f"n={seeds}, " in line
        told = re.search(r"(also|not shown to be) \w+ on new text, interval (\[.+?\])", line)
        words = {"also": "holds", "not shown to be": "not shown"}
        assert new_text == (f"{told[2]}: {words[told[1]]}" if told else "-")
