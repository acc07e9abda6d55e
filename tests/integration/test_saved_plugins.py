"""`--plugins=saved`: the parts of a run are found again, and run only if the user says so."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sample
import train
from errors import ConfigError, UserError
from interop import huggingface
from tests.integration.runs import Workshop, checkpoint_at, log_of
from tests.own_parts import forgotten
from tests.prepared import REPOSITORY
from tests.saved_run import overwrite
from training.saved_plugins import NotAllowed, named_plugins, plugin_files, resumed_plugins

PART = '''
from components.activations import ACTIVATIONS, Activation
from options import option
from pathlib import Path

with open(Path(__file__).with_name("was_run"), "a") as _file:
    _file.write("x")

@ACTIVATIONS.register("slope", label="Slope")
class Slope(Activation):
    """A multiple of ReLU."""

    class Options:
        slope: float = option(2.0, "what it is multiplied by", above=0)

    def __init__(self, config):
        super().__init__(config)
        self.slope = config.slope

    def forward(self, x):
        return self.slope * x.relu()
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    (tmp_path / "parts").mkdir()
    path = tmp_path / "parts" / "slope.py"
    path.write_text(PART, encoding="utf-8")
    return path


@pytest.fixture
def run(workshop: Workshop, plugin: Path) -> Iterator[Path]:
    """A run of the part, which is forgotten afterwards."""
    with forgotten():
        run = workshop.train(f"--plugins={plugin}", "--activation=slope", "--max_iters=1")
    (plugin.parent / "was_run").unlink()
    with forgotten():
        yield run


def sampled(run: Path, *flags: str) -> None:
    sample.main([f"--run={run}", "--device=cpu", "--max_new_tokens=3", "--prompt=a", *flags])


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_the_end_of_a_run_suggests_them(workshop: Workshop, plugin: Path, capsys) -> None:
    for flags, parts in (
        ((f"--plugins={plugin}", "--activation=slope"), " --plugins=saved"),
        ((), ""),
    ):
        with forgotten():
            run = workshop.train(*flags, "--max_iters=1", run_name=f"run{len(flags)}")
        assert f"  sample:   python sample.py --run={run}{parts}\n" in capsys.readouterr().out


def test_a_run_records_path_and_digest(run: Path, plugin: Path) -> None:
    state = json.loads((checkpoint_at(run, 1) / "state.json").read_text())
    assert state["plugin_paths"] == {"slope.py": str(plugin)}
    assert log_of(run)["plugins"] == {"slope.py": digest(PART)}


def test_sample_uses_the_file_of_training(run: Path, plugin: Path, capsys) -> None:
    sampled(run, "--plugins=saved")
    assert capsys.readouterr().out.startswith("a")
    assert (plugin.parent / "was_run").exists()


def test_a_file_that_is_gone_is_replaced_by_the_checkpoints_copy(run: Path, plugin: Path) -> None:
    plugin.unlink()
    sampled(run, "--plugins=saved")
    kept = checkpoint_at(run, 1) / "plugins"
    assert (kept / "was_run").exists()
    assert plugin_files(checkpoint_at(run, 1)) == [str(kept / "slope.py")]


def test_nothing_is_run_without_permission(run: Path, workshop: Workshop, plugin: Path) -> None:
    kept = checkpoint_at(run, 1) / "plugins" / "slope.py"
    folder = run.parent / "model"
    for command in (
        lambda: sampled(run),
        lambda: huggingface.main(["export", str(run), str(folder)]),
        lambda: train.main(workshop.argv(f"--resume={run}", "--max_iters=2", run_name=None)),
    ):
        with pytest.raises(NotAllowed) as raised:
            command()
        assert str(raised.value) == (
            f"{checkpoint_at(run, 1)} was trained with custom parts, whose code is not run "
            f"automatically: activation='slope'. Review {kept}, then allow it with --plugins=saved."
        )
    assert not (plugin.parent / "was_run").exists()
    assert not (kept.parent / "was_run").exists()


def test_a_resume_takes_the_saved_plugins_and_their_keys(run: Path, workshop: Workshop) -> None:
    flags = ("--plugins=saved", "--slope=2.0", "--max_iters=2")
    for where in (f"--resume={run}", "--resume=auto"):
        with forgotten():
            workshop.train(*flags, where, run_name=None)
    assert log_of(run)["config"]["max_iters"] == 2
    state = json.loads((checkpoint_at(run, 2) / "state.json").read_text())
    assert list(state["plugin_paths"]) == ["slope.py"]
    with forgotten(), pytest.raises(ConfigError, match=r"slope=3.0, but the run to resume has"):
        train.main(workshop.argv("--plugins=saved", "--slope=3", f"--resume={run}", run_name=None))


def test_a_file_that_is_given_besides_is_run_once(run: Path, workshop: Workshop, plugin) -> None:
    for flags in ((str(plugin), "--plugins=saved"), (f"--plugins={plugin},saved",)):
        with forgotten():
            workshop.train(*flags, "--resume=auto", "--max_iters=2", run_name=None)


def test_export_finds_the_plugins(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="activation"):  # known, but of no family
        huggingface.main(["export", str(run), str(tmp_path / "model"), "--plugins=saved"])


def test_a_changed_file_is_reported_with_both_digests(run: Path, plugin: Path, capsys) -> None:
    changed = PART.replace("x.relu()", "x.relu() ** 2")
    plugin.write_text(changed, encoding="utf-8")
    kept = checkpoint_at(run, 1) / "plugins" / "slope.py"
    with pytest.raises(UserError) as raised:
        sampled(run, "--plugins=saved")
    assert str(raised.value) == (
        f"{plugin} has changed since the run was trained: its sha256 is {digest(changed)}, but it "
        f"was {digest(PART)}; restore it, use the code that the run was trained with "
        f"(--plugins={kept}), or the changed code (--plugins={plugin})."
    )
    assert not (plugin.parent / "was_run").exists()
    with forgotten():
        sampled(run, f"--plugins={kept}")
    assert "has changed" not in capsys.readouterr().err
    with forgotten():
        sampled(run, f"--plugins={plugin}")
    assert f"its sha256 is {digest(changed)}, but it was {digest(PART)}" in capsys.readouterr().err


def test_a_new_run_has_no_saved_plugins(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the run to resume; add --resume=RUN, or name the"):
        train.main(workshop.argv("--plugins=saved"))
    with pytest.raises(UserError, match="no run to resume in .* yet; name the files"):
        train.main(workshop.argv("--plugins", "saved", "--resume=auto"))
    assert named_plugins("a.py, b.py", "latest", tmp_path) == "a.py, b.py"
    assert resumed_plugins(["--plugins=a.py", "--n_layer=2"]) == ["--plugins=a.py", "--n_layer=2"]


def test_a_run_without_plugins_has_none(workshop: Workshop) -> None:
    run = workshop.train("--max_iters=1")
    sampled(run, "--plugins=saved")
    argv = ["--plugins", "saved", f"--resume={run}", "--max_iters=2"]
    assert resumed_plugins(argv) == ["--plugins=", f"--resume={run}", "--max_iters=2"]


@pytest.mark.parametrize("paths", [5, {"slope.py": 5}, {"slope.py": ["/"]}, {"slope.py": "/"}, {}])
def test_a_strange_record_of_paths_does_no_harm(run: Path, paths) -> None:
    path = checkpoint_at(run, 1)
    state = json.loads((path / "state.json").read_text()) | {"plugin_paths": paths}
    overwrite(path, "state.json", json.dumps(state).encode())
    if isinstance(paths, dict) and all(isinstance(place, str) for place in paths.values()):
        assert plugin_files(path) == [str(path / "plugins" / "slope.py")]
    else:
        with pytest.raises(UserError, match="plugin_paths missing or invalid"):
            plugin_files(path)


@pytest.mark.slow
def test_the_command_that_is_suggested_works(run: Path) -> None:
    typed = [sys.executable, "sample.py", f"--run={run}", "--plugins", "", "--max_new_tokens=3"]
    typed += ["--device=cpu", "--prompt=a b"]
    refused = subprocess.run(typed, cwd=REPOSITORY, capture_output=True, text=True)
    assert refused.returncode == 1
    message, suggested = refused.stderr.splitlines()
    assert message.endswith("then allow it with --plugins=saved.")
    words = shlex.split(suggested)
    expected = ["python", "sample.py", f"--run={run}", "--max_new_tokens=3", "--device=cpu"]
    assert words == [*expected, "--prompt=a b", "--plugins=saved"]
    command = [sys.executable, *words[1:]]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a b")
