"""A checkpoint that somebody else made: whatever it holds is loaded or refused in one sentence."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

import sample
from data.tokenizers import NotCached
from errors import UserError
from interop import huggingface
from model_builder import GPT
from recipe.optimizers import make_optimizer
from tests.saved_run import change_config, overwrite, save_run
from training import checkpoint, trained_model
from training.checkpoint import load_newest, load_optimizer, load_plugins, load_rng, verify
from training.resume import load_settings
from training.run_state import load_run_state
from training.step_guard import StepGuard
from training.trained_model import load_trained
from training.updates import Updates


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_run(tmp_path / "run")


def load_everything(path: Path) -> None:
    """All that sample, export and a resume read of a checkpoint."""
    verify(path)
    model = load_trained(str(path), path.parent, {}).model
    list(model.stream(torch.zeros(1, 1, dtype=torch.long), 2))
    settings = load_settings(path)
    load_plugins(path)
    optimizer = make_optimizer(model, settings.training)
    load_optimizer(path, Updates(model, optimizer))
    load_rng(path)
    counters = load_run_state(path)["stepper"]
    guard = StepGuard(optimizer, settings.training.max_bad_steps)
    guard.load_state_dict(counters)
    if counters["scaler"]:
        torch.amp.GradScaler("cpu").load_state_dict(counters["scaler"])
    loss = model(torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long))[1]
    loss.backward()
    guard.check(loss)
    optimizer.step()


def test_what_is_saved_loads(saved):
    load_everything(saved)


# Mutations


VALUES = (None, True, -1, 10**6, 10**12, 10**400, 1e308, math.nan, "", "gpt3", "\ud800", [], {})


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON tree."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    found = [(tree, key) for key in keys]
    return found + [p for key in keys if isinstance(tree[key], dict) for p in places(tree[key])]


def mutated_json(content: bytes, draw: random.Random) -> bytes:
    """The JSON with one value of another kind, one key less, or a byte flipped."""
    if draw.random() < 0.2:
        return flipped(content, draw.randrange(len(content)))
    tree = json.loads(content)
    container, key = draw.choice(places(tree))
    if isinstance(container, dict) and draw.random() < 0.2:
        del container[key]
    else:
        container[key] = draw.choice(VALUES)
    return json.dumps(tree).encode()


def flipped(content: bytes, position: int) -> bytes:
    changed = bytearray(content)
    changed[position] ^= 1 << position % 8
    return bytes(changed)


def mutated_header(content: bytes, draw: random.Random) -> bytes:
    """A safetensors file with another header, or another length of it."""
    (length,) = struct.unpack("<Q", content[:8])
    if draw.random() < 0.2:
        return flipped(content, draw.randrange(8))
    header = mutated_json(content[8 : 8 + length], draw)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


@pytest.mark.parametrize(
    ("name", "mutated"),
    [
        ("state.json", mutated_json),
        pytest.param("rng.json", mutated_json, marks=pytest.mark.slow),
        ("manifest.json", mutated_json),
        ("model.safetensors", mutated_header),
        pytest.param("optimizer.safetensors", mutated_header, marks=pytest.mark.slow),
    ],
)
def test_a_mutated_checkpoint_loads_or_is_refused(saved, name, mutated):
    """Refused by a UserError: any other exception fails the test."""
    draw = random.Random(name)
    whole, manifest = (saved / name).read_bytes(), (saved / "manifest.json").read_bytes()
    refused = 0
    generators = checkpoint.capture_rng()
    for _ in range(40):
        overwrite(saved, name, mutated(whole, draw))
        try:
            load_everything(saved)
        except UserError:
            refused += 1
        (saved / name).write_bytes(whole)
        (saved / "manifest.json").write_bytes(manifest)
    checkpoint.restore_rng(generators)
    assert refused > 10


# What is not sound


def test_nested_too_deeply(saved):
    overwrite(saved, "state.json", b'{"config":' * 10**5)
    with pytest.raises(UserError, match=r"state\.json is damaged: maximum recursion depth"):
        load_run_state(saved)


def test_too_large(saved, monkeypatch):
    monkeypatch.setattr("safe_files.MAX_JSON_BYTES", 100)
    with pytest.raises(UserError, match=r"state\.json is larger than 100 bytes"):
        load_run_state(saved)


def test_keys_of_later_versions_pass(tmp_path):
    path = save_run(tmp_path / "run", later={"anything": [1, 2]})
    assert load_run_state(path)["later"] == {"anything": [1, 2]}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config", {"n_layer": [1]}),
        ("config", {"n_layer": 10**400}),
        ("derived", "min_lr"),
        ("tokenizer", {"name": 3}),
        ("evaluated_at", -1),
        ("seconds", math.inf),
        ("stepper", {"bad_steps": 0, "bad_in_a_row": 0, "scaler": {"scale": 1.0}}),
        ("run_id", 7),
    ],
)
def test_a_value_of_another_kind_names_its_key(tmp_path, key, value):
    path = save_run(tmp_path / "run", **{key: value})
    with pytest.raises(UserError, match=rf"state\.json is damaged: {key} missing or invalid"):
        load_run_state(path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"n_layer": 10**6}, "n_layer=1000000, but 9 weights are saved"),
        ({"vocab_size": 10**12}, "vocab_size=1000000000000, but embedding.weight has 257 rows"),
        ({"n_embd": 10**9}, "n_embd=1000000000, but embedding.weight has 8 columns"),
        ({"ffn_hidden": 10**9}, r"ffn_hidden=1000000000, but \d+ numbers are saved"),
        ({"n_head": 10**9}, "n_head=1000000000, but the largest dimension of a weight is 257"),
        ({"block_size": 10**12}, "block_size=1000000000000 positions of n_embd=8"),
        ({"ffn_hidden": None, "ffn_multiplier": 1e12}, r"ffn_multiplier=.* must be at most"),
        (
            {"ffn_hidden": 48},
            r"does not match the model .*\(32, 8\) in the checkpoint and \(48, 8\) in",
        ),
    ],
)
def test_a_size_that_the_weights_do_not_have_is_refused_before_it_is_made(
    saved, monkeypatch, keys, message
):
    def made(config):
        assert torch.get_default_device().type == "meta", "a real model was made"
        return GPT(config)

    monkeypatch.setattr("recipe.adapters.GPT", made)
    monkeypatch.setattr(trained_model, "GPT", made)
    change_config(saved, **keys)
    with pytest.raises(UserError, match=message):
        load_trained(str(saved), saved.parent, {})


def test_a_tokenizer_of_more_tokens_than_the_model_is_refused(tmp_path):
    characters = "".join(map(chr, range(256, 600)))
    tokenizer = {"name": "chars", "characters": characters}
    path = save_run(tmp_path / "run", tokenizer=tokenizer)
    with pytest.raises(UserError, match="'chars' has 344 tokens, but its model has 257"):
        load_trained(str(path), path.parent, {})


@pytest.mark.parametrize("flags", [[], ["--download"]])
def test_sample_and_export_download_a_vocabulary_only_on_request(tmp_path, monkeypatch, flags):
    save_run(tmp_path / "run", tokenizer={"name": "gpt2"})
    asked = []

    def make(meta, folder, *, download):
        asked.append((meta["name"], download))
        raise NotCached("not cached")

    monkeypatch.setattr(trained_model, "tokenizer_from_meta", make)
    where = f"--out_dir={tmp_path}"
    for command in (
        lambda: sample.main([where, *flags]),
        lambda: huggingface.main(["export", "run", str(tmp_path / "model"), where, *flags]),
    ):
        with pytest.raises(NotCached):
            command()
    assert asked == 2 * [("gpt2", bool(flags))]


# Files


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def link(file: Path) -> None:
    outside = file.parents[3] / file.name
    shutil.move(file, outside)
    file.symlink_to(outside)


def device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "model.safetensors"])
@pytest.mark.parametrize("other", [fifo, folder, link, device])
def test_only_regular_files_are_read(saved, name, other):
    other(saved / name)
    with pytest.raises(UserError, match=rf"{name} is not a regular file"):
        verify(saved)


@pytest.mark.parametrize(
    "name", ["../run.json", "/etc/passwd", "plugins/../x.py", "plugins/a/b.py", "plugins/", "x.py"]
)
def test_a_manifest_lists_only_files_of_a_checkpoint(saved, name):
    content = json.loads((saved / "manifest.json").read_text())
    content["files"][name] = content["files"]["state.json"]
    (saved / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="which does not belong to a checkpoint"):
        verify(saved)


def test_plugins_that_the_manifest_does_not_list_are_not_read(saved):
    (saved / "plugins").mkdir()
    os.mkfifo(saved / "plugins" / "waits.py")
    assert load_plugins(saved) == {}


# Beside a run that deletes its older checkpoints


@pytest.mark.parametrize("turn", [1, 2, 4, 7, 8, 10])
def test_a_checkpoint_that_vanishes_is_replaced_by_the_newest(tmp_path, monkeypatch, turn):
    """It is deleted just before one of its files is opened, in `verify` or later."""
    save_run(tmp_path / "run", step=1)
    real, opened = checkpoint.open_regular, []

    def opened_beside_a_run(file: Path):
        opened.append(file)
        if len(opened) == turn:
            save_run(tmp_path / "run", step=2, keep=1)
        return real(file)

    monkeypatch.setattr(checkpoint, "open_regular", opened_beside_a_run)
    trained = load_trained("run", tmp_path, {})
    assert trained.checkpoint.name == "step_00000002"
    assert len(opened) > turn + 5


def test_weights_that_vanish_while_they_are_mapped(tmp_path, monkeypatch):
    save_run(tmp_path / "run", step=1)
    real, mapped = checkpoint.load_file, []

    def load_file(file: Path):
        mapped.append(file)
        if len(mapped) == 1:
            save_run(tmp_path / "run", step=2, keep=1)
        return real(file)

    monkeypatch.setattr(checkpoint, "load_file", load_file)
    assert load_trained("run", tmp_path, {}).checkpoint.name == "step_00000002"


def test_finding_runs_while_a_checkpoint_is_removed(tmp_path, monkeypatch):
    """A folder that is listed and then gone is passed over."""
    save_run(tmp_path / "run", step=1)
    (tmp_path / "gone").mkdir()
    real = os.scandir

    def scandir(path):
        if Path(path).name == "gone":
            raise FileNotFoundError(2, "No such file or directory", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert checkpoint.runs_newest_first(tmp_path) == [tmp_path / "run"]


def test_a_run_that_always_prunes_is_given_up(tmp_path):
    save_run(tmp_path / "run")
    tries = []

    def load(path: Path) -> None:
        tries.append(path)
        save_run(tmp_path / "run", step=len(tries) + 1, keep=1)
        load_run_state(path)

    with pytest.raises(UserError, match="5 checkpoints of 'latest' in a row were deleted"):
        load_newest("latest", tmp_path, load)
    assert len(set(tries)) == 5


def test_damage_is_not_taken_for_pruning(saved, tmp_path):
    tries = []

    def load(path: Path) -> None:
        tries.append(path)
        (path / "state.json").unlink()
        load_run_state(path)

    with pytest.raises(UserError, match=r"state\.json cannot be read: No such file"):
        load_newest("run", tmp_path, load)
    assert len(tries) == 1
