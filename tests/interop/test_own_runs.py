"""Runs that start from the weights of another run of this project."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train
from data.dataset_writer import Document, write_dataset
from data.tokenizers import CharTokenizer
from errors import ConfigError, UserError
from interop.huggingface import load_weights
from interop.own_runs import is_run
from model_builder import GPT
from tests.interop.test_adapter_runs import LORA, TEXT, Place
from tests.saved_run import change_config
from training.base_model import weights_sha256
from training.checkpoint import list_checkpoints
from training.sharded_tensors import own_tensors
from training.trained_model import Base, load_trained


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    """Contains a run that trained all weights, and one that trained adapters of it."""
    place = Place(tmp_path_factory.mktemp("own_runs"))
    sizes = ("--arch_preset=llama", "--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=32")
    place.train("first", *sizes, "--max_iters=2")
    place.train("tuned", f"--init_from={place.out / 'first'}", *LORA, "--max_iters=2")
    return place


def model_of(place: Place, run: str):
    return load_trained(run, place.out, {}, base=Base(load_weights)).model


def log_of(place: Place, run: str) -> dict:
    return json.loads((place.out / run / "run.json").read_text())


@pytest.mark.parametrize("base", ["first", "tuned"])
def test_a_run_starts_with_the_weights_of_another(place, base):
    """If the other run has adapters, they are merged into its weights."""
    name, folder = f"from-{base}", place.out / base
    place.train(name, f"--init_from={folder}", "--max_iters=1")
    model = GPT(model_of(place, name).config)
    load_weights(model, folder)
    ours, theirs = own_tensors(model), own_tensors(model_of(place, base))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    data = log_of(place, name)["data"]
    assert data["init_from_sha256"] == weights_sha256(model_of(place, base))
    assert "init_from_sha256" not in log_of(place, "first")["data"]


def test_a_checkpoint_may_be_named(place):
    checkpoint = list_checkpoints(place.out / "first" / "checkpoints")[-1]
    place.train("from-checkpoint", f"--init_from={checkpoint}", "--max_iters=1")
    before = log_of(place, "from-checkpoint")["data"]
    place.train("from-checkpoint", "--resume=from-checkpoint", "--max_iters=2")
    assert log_of(place, "from-checkpoint")["data"] == before
    assert before["init_from_sha256"] == weights_sha256(model_of(place, "first"))


def test_a_model_folder_with_checkpoints_is_no_run(tmp_path):
    """As the Trainer of transformers may leave it."""
    (tmp_path / "checkpoints").mkdir()
    assert is_run(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert not is_run(tmp_path)


def test_a_folder_named_latest_is_not_the_newest_run(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place.out / "first", tmp_path / "latest")
    shutil.copytree(place.out / "tuned", tmp_path / "other")
    model = GPT(model_of(place, "first").config)
    load_weights(model, Path("latest"))
    assert weights_sha256(model) == weights_sha256(model_of(place, "first"))


def test_adapters_of_a_run_resume_and_are_exported(place, capsys):
    base = f"--init_from={place.out / 'first'}"
    whole = place.train("whole", base, *LORA, "--max_iters=4")
    place.train("run", base, *LORA, "--max_iters=2")
    halves = place.train("run", "--resume=run", "--max_iters=4")
    ours, theirs = (load_file(path / "model.safetensors") for path in (halves, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    alone = place.export("alone", "--peft")
    assert f"PEFT cannot load the base {place.out / 'first'}" in capsys.readouterr().out
    fields = json.loads((alone / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == str(place.out / "first")


def test_adapters_of_a_run_that_trained_on_are_refused(place):
    copy = place.out / "copy"
    shutil.copytree(place.out / "first", copy)
    place.train("of-copy", f"--init_from={copy}", *LORA, "--max_iters=1")
    place.train("copy", "--resume=copy", "--max_iters=4")
    with pytest.raises(ValueError, match="the adapters were trained on a model whose weights have"):
        place.train("of-copy", "--resume=of-copy", "--max_iters=2")


def test_adapters_that_are_their_own_base_are_refused(place, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(list_checkpoints(place.out / "tuned" / "checkpoints")[-1], checkpoint)
    change_config(checkpoint, init_from=str(checkpoint))
    with pytest.raises(UserError, match="init_from leads back to"):
        load_trained(str(checkpoint), place.out, {}, base=Base(load_weights))


def test_what_is_refused(place, tmp_path):
    with pytest.raises(ConfigError, match="n_layer=3, but the model of init_from=.* has n_layer=2"):
        place.train("other", f"--init_from={place.out / 'first'}", "--n_layer=3")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match="no intact checkpoint in"):
        place.train("other", f"--init_from={tmp_path / 'empty'}")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="contains PEFT adapters, not a model; set init_from to"):
        place.train("other", f"--init_from={tmp_path}")


def test_another_tokenizer_is_refused(place, tmp_path):
    documents = [Document("train", [TEXT]), Document("val", [TEXT[:400]])]
    characters = CharTokenizer("".join(sorted(set(TEXT))))
    write_dataset(documents, characters, tmp_path, name="c", source="tests", separate=False)
    with pytest.raises(ValueError, match=r"'chars' of dataset=.* has \d+ tokens, but the model's"):
        train.main([f"--init_from={place.out / 'first'}", f"--dataset={tmp_path}", "--device=cpu"])
