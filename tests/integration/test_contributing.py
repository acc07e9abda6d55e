"""The plugin that CONTRIBUTING.md shows, and the commands beside it, run as written."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.child import ROOT
from tests.integration.runs import log_of

pytestmark = pytest.mark.slow  # ten processes

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PLUGIN, CONFIG = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)[:2]
COMMANDS = re.search(r"```sh\n(.*?)```", TEXT[TEXT.index("my_config.py") :], re.DOTALL)[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """A folder with the two files, in which the dataset of the tests stands in for the default."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "my_parts.py").write_text(PLUGIN)
    (folder / "my_config.py").write_text(f'{CONFIG}dataset = "{dataset}"\ndevice = "cpu"\n')
    return folder


def run(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """A command of the document, with this Python and the scripts of the project."""
    python, script, *arguments = shlex.split(command)
    assert python == "python"
    argv = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def outputs(folder: Path) -> dict[str, str]:
    """What each command of the document prints, by its script and first flag."""
    found = {}
    for command in COMMANDS.splitlines():
        done = run(folder, command)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        found[command] = done.stdout
    return found


def test_the_run_trains_resumes_and_logs_the_options(folder, outputs) -> None:
    log = log_of(folder / "out" / "first")
    assert log["status"] == "completed"
    assert log["eval_steps"][-1]["iter"] == 40
    name = "4L-4H-64D-(3xMinGRU+Attn)-Kerple-Scale-Sparse-PreNorm"
    assert log["architecture"]["name"].startswith(name)
    assert (log["config"]["kerple_scale"], log["config"]["kerple_form"]) == (0.5, "log")
    assert log["config"]["mingru_kernel"] == 3
    assert {log["roles"][key] for key in ("kerple_scale", "mingru_expansion")} == {"architecture"}
    assert (log["config"]["optimizer"], log["roles"]["signum_momentum"]) == ("signum", "recipe")


def test_auxiliary_losses_and_metrics_are_logged(folder, outputs) -> None:
    for record in log_of(folder / "out" / "first")["training_iterations"]:
        assert record["terms"].keys() == {"cross_entropy", "stability", "sparsity"}
        shares = record["metrics"]["ffn.active_share"]
        assert len(shares) == 4
        assert all(0 < share < 1 for share in shares)


def test_the_sample_is_text(outputs) -> None:
    (text,) = (text for command, text in outputs.items() if "sample.py" in command)
    assert text.strip()


def test_the_sweep_varies_an_option_and_the_comparison_names_it(folder, outputs) -> None:
    (sweep,) = (text for command, text in outputs.items() if "sweep.py" in command)
    assert "mingru_expansion=2: mingru_expansion=2.0" in sweep
    done = run(folder, "python compare_architectures.py out/sweeps")
    assert done.returncode == 0
    assert ": mingru_expansion=2.0" in done.stdout


def test_a_changed_option_is_refused_on_resume(folder, outputs) -> None:
    done = run(folder, "python train.py my_config.py --resume=first --kerple_scale=2")
    assert done.returncode == 2
    assert "kerple_scale=2.0, but the run to resume has kerple_scale=0.5" in done.stderr


def test_an_option_without_its_part_is_refused(folder) -> None:
    done = run(folder, "python train.py my_config.py --position_encoding=rope")
    assert done.returncode == 2
    assert "kerple_scale=0.5 belongs to position_encoding=kerple" in done.stderr
    taken_back = "python train.py my_config.py --position_encoding=rope --kerple_scale=default"
    assert run(folder, f"{taken_back} --max_iters=0").returncode == 0


def test_help_and_print_config_list_the_options(folder) -> None:
    shown = run(folder, "python train.py --plugins=my_parts.py --help").stdout
    assert "--kerple_form" in shown
    assert "initial r1" in shown
    table = run(folder, "python train.py my_config.py --print_config").stdout
    assert re.search(r"kerple_scale +0.5 +my_config.py:6", table)
    assert re.search(r"kerple_form +log +default", table)


def test_the_file_is_as_it_should_be_formatted(folder) -> None:
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent))
    if ruff is None:
        pytest.skip("ruff is not installed")
    settings = ["--check", "--config", str(ROOT / "pyproject.toml")]
    subprocess.run([ruff, "format", *settings, "my_parts.py"], cwd=folder, check=True)
