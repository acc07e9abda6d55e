"""Checkpoints: exact, atomic, checked, pruned and found."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional as F

from errors import UserError
from recipe.optimizers import make_optimizer
from tests.parametrized import one_in
from training import checkpoint
from training.checkpoint import (
    find_checkpoint,
    list_checkpoints,
    load_model_weights,
    load_optimizer,
    load_plugins,
    load_rng,
    load_state,
    newest_whole,
    runs_newest_first,
    save_checkpoint,
    verify,
    weight_shapes,
)
from training.sharded_tensors import gathered_weights
from training.updates import Updates
from training_config import TrainingConfig

ROOT = Path(__file__).parents[2]


class Net(nn.Module):
    """Tied weights, dropout, vectors and a buffer."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, width)
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return self.head(
            F.dropout(self.hidden(self.norm(self.embedding(tokens))), 0.3, self.training)
        )


def make(seed: int = 0, optimizer: str = "adamw") -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Net()
    return model, make_optimizer(model, TrainingConfig(optimizer=optimizer))


def train(model, optimizer, steps: int) -> None:
    """Steps whose data come from every generator that a checkpoint keeps."""
    for _ in range(steps):
        tokens = torch.randint(11, (4, 5)) + np.random.randint(2) + random.randrange(2)
        noise = random.gauss(0, 1) + np.random.standard_normal()
        logits = model(tokens.clamp(max=10))
        loss = F.cross_entropy(logits.flatten(0, 1), tokens.clamp(max=10).flatten()) * noise
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def save(folder, step: int, *, model=None, optimizer=None, **values) -> Path:
    if model is None:
        model, optimizer = make()
    defaults = {"state": {}, "val_loss": None, "plugins": {}, "keep": 3}
    folder.parent.mkdir(parents=True, exist_ok=True)
    return save_checkpoint(
        folder,
        step=step,
        weights=gathered_weights(model),
        kept=Updates(model, optimizer).gathered(),
        **(defaults | values),
    )


def steps_in(folder: Path) -> list[int]:
    return [load_state(path)["step"] for path in list_checkpoints(folder)]


# --- exact


def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path):
    random.seed(1)
    np.random.seed(1)
    model, optimizer = make()
    train(model, optimizer, 3)
    random.gauss(0, 1)  # leaves a second draw in Python's generator
    path = save(tmp_path, 3, model=model, optimizer=optimizer)
    train(model, optimizer, 5)

    resumed, resumed_optimizer = make(seed=99)
    train(resumed, resumed_optimizer, 2)
    load_model_weights(path, resumed)
    load_optimizer(path, Updates(resumed, resumed_optimizer))
    load_rng(path)
    train(resumed, resumed_optimizer, 5)

    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    for left, right in zip(model.parameters(), resumed.parameters(), strict=True):
        assert optimizer.state[left].keys() == resumed_optimizer.state[right].keys()
        for key, value in optimizer.state[left].items():
            assert torch.equal(value, resumed_optimizer.state[right][key]), key


def test_moments_follow_their_parameter_and_not_the_order_of_the_groups(tmp_path):
    model, optimizer = make()
    train(model, optimizer, 2)
    path = save(tmp_path, 2, model=model, optimizer=optimizer)
    other, _ = make(seed=5)
    reordered = torch.optim.AdamW(list(other.parameters())[::-1], fused=True)
    load_optimizer(path, Updates(other, reordered))
    wanted = optimizer.state[model.norm.bias]["exp_avg"]
    assert torch.equal(reordered.state[other.norm.bias]["exp_avg"], wanted)
    assert wanted.abs().sum() > 0


def test_moments_are_laid_out_like_their_parameter(tmp_path):
    model = nn.Linear(3, 2)
    model.weight = nn.Parameter(torch.randn(3, 2).t())
    optimizer = make_optimizer(model, TrainingConfig())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    wanted = optimizer.state[model.weight]["exp_avg"].clone()
    load_optimizer(save(tmp_path, 1, model=model, optimizer=optimizer), Updates(model, optimizer))
    loaded = optimizer.state[model.weight]["exp_avg"]
    assert torch.equal(loaded, wanted)
    assert loaded.stride() == model.weight.stride()


def test_a_checkpoint_before_the_first_step_resumes(tmp_path):
    model, optimizer = make()
    path = save(tmp_path, 0, model=model, optimizer=optimizer)
    train(model, optimizer, 1)
    load_optimizer(path, Updates(model, optimizer))
    assert len(optimizer.state) == 0


def test_a_parameter_without_a_gradient_so_far_has_nothing_to_take_up(tmp_path):
    model, optimizer = make()
    model.hidden.requires_grad_(False)
    train(model, optimizer, 2)
    path = save(tmp_path, 2, model=model, optimizer=optimizer)
    other, other_optimizer = make(seed=5)
    before = [parameter.detach().clone() for parameter in other.parameters()]
    load_optimizer(path, Updates(other, other_optimizer))
    owners = {id(parameter) for parameter in other_optimizer.state}
    assert owners == {id(p) for p in other.parameters()} - {
        id(p) for p in other.hidden.parameters()
    }
    assert all(torch.equal(p, old) for p, old in zip(other.parameters(), before, strict=True))
    assert all(parameter.grad is None for parameter in other.parameters())


def test_the_state_of_another_optimizer_is_refused(tmp_path):
    model, optimizer = make()
    train(model, optimizer, 1)
    path = save(tmp_path, 1, model=model, optimizer=optimizer)
    other, lion = make(optimizer="lion")
    with pytest.raises(ValueError, match=r"\.exp_avg_sq is not in the model"):
        load_optimizer(path, Updates(other, lion))


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path):
    model, optimizer = make()
    path = save(tmp_path, 0, model=model, optimizer=optimizer)
    with safe_open(path / "model.safetensors", "pt") as file:
        assert "embedding.weight" in file.keys()  # noqa: SIM118
        assert "head.weight" not in file.keys()  # noqa: SIM118
    other, _ = make(seed=7)
    load_model_weights(path, other)
    assert torch.equal(other.head.weight, model.embedding.weight)
    assert other.head.weight is other.embedding.weight


def test_weights_that_were_saved_when_every_mixer_was_attention_are_read(tmp_path):
    """Its norms were named after attention as well."""

    class Block(nn.Module):
        def __init__(self, mixer: str) -> None:
            super().__init__()
            for name in (mixer, f"{mixer}_norm", f"{mixer}_out_norm"):
                self.add_module(name, nn.Linear(2, 2))

    def made(mixer: str) -> tuple[nn.Module, torch.optim.AdamW]:
        model = nn.Module()
        model.blocks = nn.ModuleList([Block(mixer)])
        optimizer = make_optimizer(model, TrainingConfig())
        sum(parameter.sum() for parameter in model.parameters()).backward()
        optimizer.step()
        return model, optimizer

    path = save(tmp_path, 0, **dict(zip(("model", "optimizer"), made("attention"), strict=True)))
    model, optimizer = made("mixer")
    load_model_weights(path, model)
    load_optimizer(path, Updates(model, optimizer))
    with safe_open(path / "model.safetensors", "pt") as file:
        assert torch.equal(
            model.blocks[0].mixer_norm.weight, file.get_tensor("blocks.0.attention_norm.weight")
        )
    assert "blocks.0.mixer.weight" in weight_shapes(path)


def test_equal_but_separate_weights_are_both_saved(tmp_path):
    model = nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4))
    path = save(tmp_path, 0, model=model, optimizer=make_optimizer(model, TrainingConfig()))
    with safe_open(path / "model.safetensors", "pt") as file:
        assert len(file.keys()) == 4


def test_state_and_plugins_come_back(tmp_path):
    state = {"config": {"n_layer": 2}, "best": math.inf, "counters": {"bad_steps": 1}}
    plugins = {"mine.py": "print('é')\r\n", "other.py": ""}
    path = save(tmp_path, 12, state=state, val_loss=2.5, plugins=plugins)
    assert path.name == "step_00000012"
    expected = {"schema_version": 1, "step": 12, "val_loss": 2.5, **state}
    assert load_state(path) == expected
    assert load_plugins(path) == plugins
    verify(path)


def test_without_plugins_there_are_none(tmp_path):
    assert load_plugins(save(tmp_path, 1)) == {}


def test_a_loss_that_is_not_finite_was_not_measured(tmp_path):
    assert load_state(save(tmp_path, 1, val_loss=math.nan))["val_loss"] is None


# --- errors of what is handed over


def test_a_state_that_takes_our_keys_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"state contains reserved keys \(step\)"):
        save(tmp_path, 1, state={"step": 2})
    assert list_checkpoints(tmp_path) == []


@pytest.mark.parametrize("name", ["../evil.py", "a/b.py", "..", ""])
def test_a_plugin_outside_its_folder_is_an_error(tmp_path, name):
    with pytest.raises(ValueError, match=r"is not the plain name of a \.py file"):
        save(tmp_path, 1, plugins={name: "x"})


def test_weights_of_another_model_are_an_error_that_names_each(tmp_path):
    path = save(tmp_path, 1)
    wider = Net(width=8)
    wider.extra = nn.Linear(2, 2)
    del wider.seen
    with pytest.raises(ValueError, match=r"model\.safetensors does not match") as error:
        load_model_weights(path, wider)
    message = str(error.value)
    assert "seen is not in the model" in message
    assert "extra.weight is missing" in message
    assert "embedding.weight is (11, 6) in the checkpoint and (11, 8) in the model" in message
    assert "state.json" in message


def test_a_misfit_changes_no_weight(tmp_path):
    path = save(tmp_path, 1)
    model, _ = make(seed=3)
    model.extra = nn.Linear(2, 2)
    before = model.embedding.weight.clone()
    with pytest.raises(ValueError, match=r"extra\.bias is missing"):
        load_model_weights(path, model)
    assert torch.equal(model.embedding.weight, before)


def test_moments_of_another_model_are_an_error(tmp_path):
    model, optimizer = make()
    train(model, optimizer, 1)
    path = save(tmp_path, 1, model=model, optimizer=optimizer)
    other = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"hidden\.bias\.exp_avg is not in the model"):
        load_optimizer(path, Updates(other, make_optimizer(other, TrainingConfig())))


def test_another_schema_is_an_error(tmp_path):
    path = save(tmp_path, 1)
    state = load_state(path) | {"schema_version": 99}
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="has checkpoint schema 99, but this version reads 1"):
        load_state(path)


# --- damage


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


FILES = ("model.safetensors", "optimizer.safetensors", "rng.json", "state.json", "plugins/a.py")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, "was altered: its sha256 is"),
        (truncate, r"has \d+ bytes, but its manifest says \d+"),
        (Path.unlink, "cannot be read: No such file"),
    ],
)
def test_damage_names_the_file_and_falls_back(tmp_path, name, damage, message):
    first = save(tmp_path, 1)
    second = save(tmp_path, 2, plugins={"a.py": "print(1)"})
    assert newest_whole(tmp_path) == (second, [])
    damage(second / name)
    with pytest.raises(ValueError, match=f"{name} {message}"):
        verify(second)
    path, notes = newest_whole(tmp_path)
    assert path == first
    assert len(notes) == 1
    assert notes[0].startswith("Skipped the damaged checkpoint step_00000002: ")
    assert name in notes[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is damaged: Expecting"),
        ("[" * 10**5, "is damaged: maximum recursion depth"),
        ("[]", "is damaged: it does not contain a JSON object"),
        ('{"files": {"model.safetensors": {"size": 3}}}', "is not a manifest"),
        ('{"files": {"a": {"size": true, "sha256": "x"}}}', "is not a manifest"),
        ('{"files": {}}', r"does not list model\.safetensors, optimizer"),
        (b"\xff\xfe", "is damaged: 'utf-8' codec"),
    ],
)
def test_a_damaged_manifest(tmp_path, content, message):
    path = save(tmp_path, 1)
    manifest = path / "manifest.json"
    manifest.unlink()
    if content is not None:
        manifest.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"manifest\.json {message}"):
        verify(path)


def test_every_flipped_byte_of_a_manifest_is_found(tmp_path):
    path = save(tmp_path, 1)
    manifest = path / "manifest.json"
    whole = manifest.read_bytes()
    wanted = json.loads(whole)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        manifest.write_bytes(damaged)
        try:
            same = json.loads(bytes(damaged)) == wanted
        except ValueError:
            same = False
        if not same:
            with pytest.raises(ValueError, match=r"manifest"):
                verify(path)


def test_no_whole_checkpoint_is_an_error_that_says_why(tmp_path):
    with pytest.raises(ValueError, match=r"no intact checkpoint in .*\nIt contains none"):
        newest_whole(tmp_path)
    flip_a_byte(save(tmp_path, 1) / "rng.json")
    with pytest.raises(ValueError, match=r"step_00000001: .*rng\.json was altered"):
        newest_whole(tmp_path)


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path):
    save(tmp_path, 1)
    truncate(save(tmp_path, 2) / "model.safetensors")
    again = save(tmp_path, 2)
    assert newest_whole(tmp_path) == (again, [])


# --- pruning


def test_the_newest_and_the_best_are_kept(tmp_path):
    losses = {1: 5.0, 2: 1.0, 3: None, 4: 3.0, 5: 2.0, 6: None}
    for step, loss in losses.items():
        save(tmp_path, step, val_loss=loss, keep=2)
    assert steps_in(tmp_path) == [2, 5, 6]
    save(tmp_path, 7, val_loss=0.5, keep=2)
    assert steps_in(tmp_path) == [6, 7]


def test_without_validation_only_the_newest_are_kept(tmp_path):
    for step in range(4):
        save(tmp_path, step, keep=1)
    assert steps_in(tmp_path) == [3]


def test_pruning_survives_a_checkpoint_without_a_state(tmp_path):
    (save(tmp_path, 1, val_loss=1.0) / "state.json").unlink()
    save(tmp_path, 2, val_loss=2.0, keep=1)
    assert steps_in(tmp_path) == [2]


def test_a_checkpoint_that_is_held_open_is_pruned_later(tmp_path, monkeypatch):
    """As on Windows, where what another process reads cannot be deleted."""
    held, rename = save(tmp_path, 1), os.rename

    def refuse(source, target):
        if source == held:
            raise PermissionError(13, "Access is denied")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "rename", refuse)
        with pytest.raises(UserError, match="Access is denied"):
            save(tmp_path, 2, keep=1)
        patch.setattr(checkpoint, "_HELD_OPEN", (PermissionError,))
        save(tmp_path, 3, keep=1)
        assert steps_in(tmp_path) == [1, 3]
    save(tmp_path, 4, keep=1)
    assert steps_in(tmp_path) == [4]


def test_a_run_resumed_from_an_earlier_step_leaves_the_later_ones(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step, val_loss=1 / step)
    save(tmp_path, 15, val_loss=3.0)
    assert steps_in(tmp_path) == [10, 15]


def test_steps_beyond_eight_digits_sort_as_numbers(tmp_path):
    for step in (99_999_999, 100_000_000):
        save(tmp_path, step)
    assert steps_in(tmp_path) == [99_999_999, 100_000_000]


# --- kills


class Kill(BaseException):
    """Stands for the end of the process: nothing in the code may catch it."""


def kill_at_call(monkeypatch: pytest.MonkeyPatch, fatal: int) -> Callable[[], int]:
    """Make the `fatal`-th call that touches the disk do half its work and raise Kill.

    Returns a function that says how many calls there were.
    """
    calls = 0

    def patch(owner: object, name: str, half: Callable[..., object]) -> None:
        real = getattr(owner, name)

        def wrapper(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == fatal:
                half(*args)
                raise Kill
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapper)

    def nothing(*_args: object) -> None: ...

    patch(os, "rename", nothing)
    patch(os, "fsync", nothing)
    patch(Path, "mkdir", nothing)
    patch(checkpoint, "save_file", lambda _tensors, path: Path(path).touch())
    for name in ("write_text", "write_bytes"):
        patch(Path, name, lambda path, content: os.close(os.open(path, os.O_CREAT)))
    patch(shutil, "rmtree", lambda path: next(p for p in path.rglob("*") if p.is_file()).unlink())
    return lambda: calls


def versioned(version: float) -> dict:
    model, optimizer = make()
    train(model, optimizer, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(version)
    return {"model": model, "optimizer": optimizer, "state": {"version": version}}


def version_of(path: Path) -> float:
    """The version of a checkpoint; fails where its weights are of another than its state."""
    model, optimizer = make()
    load_model_weights(path, model)
    load_optimizer(path, Updates(model, optimizer))
    version = load_state(path)["version"]
    assert model.norm.bias.tolist() == [version] * 6
    return version


@pytest.mark.parametrize(
    "saved",
    one_in(2, [([1, 2], 3, 2), ([1], 2, 1), ([2], 2, 1), ([], 1, 3), ([1, 2, 3], 2, 1)]),
)
def test_a_kill_at_any_call_leaves_a_whole_checkpoint(tmp_path, saved):
    first_steps, step, keep = saved
    before = tmp_path / "before"
    before.mkdir()
    for number in first_steps:
        save(before, number, keep=9, plugins={"a.py": "1"}, **versioned(number))
    old = first_steps[-1] if first_steps else None
    new = versioned(100.0)
    fatal, survived = 0, False
    while not survived:
        fatal += 1
        folder = tmp_path / f"killed_at_{fatal}"
        shutil.copytree(before, folder)
        with pytest.MonkeyPatch.context() as monkeypatch:
            calls = kill_at_call(monkeypatch, fatal)
            try:
                save(folder, step, keep=keep, plugins={"a.py": "2"}, **new)
                survived = True
            except Kill:
                assert calls() == fatal
        found = {version_of(path) for path in list_checkpoints(folder)}
        if old is None:
            assert found <= {100.0}
        else:
            assert version_of(newest_whole(folder)[0]) in (old, 100.0)
        for path in list_checkpoints(folder):
            verify(path)
        # The next save clears up after the kill, whatever it left.
        save(folder, step, keep=1, **new)
        assert [path.name for path in folder.iterdir()] == [f"step_{step:08d}"]
    assert fatal > 15


def test_everything_is_on_the_disk_before_the_checkpoint_gets_its_name(tmp_path, monkeypatch):
    events = []
    flush, rename = checkpoint._fsync, os.rename
    monkeypatch.setattr(checkpoint, "_fsync", lambda path: (events.append(path), flush(path)))
    monkeypatch.setattr(os, "rename", lambda old, new: (events.append("rename"), rename(old, new)))
    path = save(tmp_path, 1, plugins={"a.py": "1"})
    named = events.index("rename")
    draft = path.with_name(".tmp_saving_step_00000001")
    contents = {file.relative_to(path) for file in path.rglob("*")} | {Path()}
    assert {file.relative_to(draft) for file in events[:named]} == contents
    assert events[named + 1 :] == [tmp_path]


def test_an_error_in_the_middle_of_a_save_leaves_those_before(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "save_file", _disk_is_full)
    with pytest.raises(
        UserError, match="No space left on device; the newest checkpoint is step_0+1."
    ) as e:
        save(tmp_path, 2)
    assert f"--resume={tmp_path.parent}" in str(e.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_safetensors_own_error_of_a_full_disk_is_one_too(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(UserError, match="No space left on device .*it has no checkpoint yet"):
        save(tmp_path, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_run_directory_that_vanished_is_not_made_again(tmp_path):
    model, optimizer = make()
    with pytest.raises(UserError, match="No such file or directory"):
        save_checkpoint(
            tmp_path / "gone" / "checkpoints",
            step=1,
            weights=gathered_weights(model),
            kept=Updates(model, optimizer).gathered(),
            state={},
            val_loss=None,
            plugins={},
            keep=1,
        )
    assert list(tmp_path.iterdir()) == []


def _disk_is_full(*_args, **_kwargs) -> None:
    raise OSError(28, "No space left on device")


KILLED = """
import os, signal, sys, time
from pathlib import Path
import torch
from torch import nn
from training.checkpoint import load_model_weights, load_state, newest_whole, save_checkpoint
from training.sharded_tensors import gathered_weights
from training.updates import Updates

folder = Path(sys.argv[1])
model = nn.Linear(64, 64)
optimizer = torch.optim.AdamW(model.parameters(), fused=True)

def save(step):
    nn.init.constant_(model.weight, step)
    save_checkpoint(folder, step=step, weights=gathered_weights(model),
                    kept=Updates(model, optimizer).gathered(), state={},
                    val_loss=None, plugins={}, keep=2)

step = 1
save(step)
for round in range(12):
    child = os.fork()
    if child == 0:
        while True:
            step += 1
            save(step)
    time.sleep(0.02 + 0.0137 * round)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    path, notes = newest_whole(folder)
    assert not notes, notes
    load_model_weights(path, model)
    saved = load_state(path)["step"]
    assert saved >= step and (model.weight == saved).all()
    step = saved
print("last step", step)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_real_kill_leaves_a_whole_checkpoint(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 3


# --- finding


@pytest.fixture
def out_dir(tmp_path: Path) -> Path:
    """Three runs, one of them in a folder of a sweep; `old` saved last."""
    out = tmp_path / "out"
    for age, run in enumerate(("old", "sweep/wide", "plain"), start=1):
        for step in (1, 2):
            path = save(out / run / "checkpoints", step)
            os.utime(path, (1e9 - age, 1e9 - age))
    (out / "empty").mkdir()
    return out


def test_runs_are_listed_by_when_they_saved_last(out_dir):
    names = [run.relative_to(out_dir).as_posix() for run in runs_newest_first(out_dir)]
    assert names == ["old", "sweep/wide", "plain"]


@pytest.mark.parametrize("where", ["latest", "auto"])
def test_latest_is_the_newest_of_the_run_that_saved_last(out_dir, where):
    newest = out_dir / "old/checkpoints/step_00000002"
    assert find_checkpoint(where, out_dir) == (newest, [])
    flip_a_byte(newest / "rng.json")
    path, notes = find_checkpoint(where, out_dir)
    assert path == out_dir / "old/checkpoints/step_00000001"
    assert "rng.json was altered" in notes[0]


def test_a_run_by_name_or_folder_and_a_checkpoint_by_folder(out_dir):
    newest = out_dir / "sweep/wide/checkpoints/step_00000002"
    first = newest.with_name("step_00000001")
    assert find_checkpoint("sweep/wide", out_dir) == (newest, [])
    assert find_checkpoint(str(out_dir / "sweep/wide"), Path("elsewhere")) == (newest, [])
    assert find_checkpoint(str(first), Path("elsewhere")) == (first, [])
    assert find_checkpoint("plain/checkpoints/step_00000001", out_dir)[0].parts[-3] == "plain"


def test_a_folder_is_found_without_a_walk_through_all_runs(out_dir, monkeypatch):
    monkeypatch.setattr("training.checkpoint.runs_newest_first", None)
    assert find_checkpoint(str(out_dir / "plain"), Path("/"))[0].parts[-3] == "plain"


def test_a_checkpoint_copied_under_another_name_is_found(out_dir, tmp_path):
    copy = shutil.copytree(out_dir / "plain/checkpoints/step_00000001", tmp_path / "kept")
    assert find_checkpoint(str(copy), out_dir) == (copy, [])


def test_a_damaged_checkpoint_asked_for_by_name_is_an_error(out_dir):
    path = out_dir / "plain/checkpoints/step_00000002"
    (path / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"manifest\.json cannot be read"):
        find_checkpoint(str(path), out_dir)


def test_an_unknown_run_is_an_error_with_the_nearest_and_the_choices(out_dir):
    with pytest.raises(ValueError, match=r"'plan' is neither a run .*did you mean 'plain'\?") as e:
        find_checkpoint("plan", out_dir)
    assert "Runs with a checkpoint: old, sweep/wide, plain." in str(e.value)
    with pytest.raises(ValueError, match="'empty' is neither a run"):
        find_checkpoint("empty", out_dir)


def test_no_run_at_all_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no run under .* has a checkpoint; train a model"):
        find_checkpoint("latest", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="Runs with a checkpoint: none"):
        find_checkpoint("some", tmp_path)


# --- random generators


def test_generators_of_absent_devices_are_left_aside():
    states = checkpoint.capture_rng()
    wanted = torch.rand(4), np.random.rand(4).tolist(), random.random()
    checkpoint.restore_rng(states | {"cuda": ["00" * 16], "mps": "00" * 44})
    assert torch.equal(torch.rand(4), wanted[0])
    assert np.random.rand(4).tolist() == wanted[1]
    assert random.random() == wanted[2]
