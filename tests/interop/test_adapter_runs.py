"""Runs that train adapters of a model folder: checkpoints, resuming, sampling and export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import configurator
import sample
import train
from data.dataset_writer import Document, write_dataset
from data.tokenizers import ByteTokenizer
from errors import ConfigError
from interop import huggingface
from interop.families import FAMILIES
from interop.huggingface import load, load_weights, save
from interop.peft_format import load_adapter
from interop.starting_model import new_settings
from tests.interop.references import assert_close
from tests.saved_run import change_config, overwrite
from tests.tiny import VARIANTS, tiny_model, tokens
from training import run_state
from training.checkpoint import list_checkpoints
from training.trained_model import Base, load_trained

TEXT = "the cat sat on the mat and looked at the moon. " * 60
QUICK = ("--device=cpu", "--dtype=float32", "--compile=False", "--batch_size=2", "--eval_tokens=64")
LORA = ("--adapter=dora", "--adapter_rank=2", "--adapter_pattern=q,v,down", "--adapter_dropout=0.1")
COURSE = ("--learning_rate=0.01", "--warmup_iters=0", "--lr_schedule=constant", "--sample_tokens=5")


class Place:
    """A folder with a dataset, a model and runs."""

    def __init__(self, folder: Path):
        self.folder, self.model, self.out = folder, folder / "model", folder / "out"
        documents = [Document("train", [TEXT]), Document("val", [TEXT[:400]])]
        write_dataset(
            documents, ByteTokenizer(), folder / "data", name="t", source="tests", separate=False
        )
        model = tiny_model(vocab_size=300, block_size=32, **VARIANTS["preset llama"])
        save(model, self.model, "llama")

    def train(self, run: str, *flags: str) -> Path:
        """Train; returns the newest checkpoint."""
        where = (f"--dataset={self.folder / 'data'}", f"--out_dir={self.out}", f"--run_name={run}")
        train.main([*QUICK, *COURSE, *where, *flags])
        return list_checkpoints(self.out / run / "checkpoints")[-1]

    def export(self, name: str, *flags: str) -> Path:
        out = f"--out_dir={self.out}"
        huggingface.main(["export", "run", str(self.folder / name), out, *flags])
        return self.folder / name


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    """With a run of four steps of adapters."""
    place = Place(tmp_path_factory.mktemp("adapters"))
    place.train("run", f"--init_from={place.model}", *LORA, "--max_iters=4")
    return place


def test_a_checkpoint_has_the_adapters_and_the_digest_of_their_base(place):
    checkpoint = list_checkpoints(place.out / "run" / "checkpoints")[-1]
    weights = load_file(checkpoint / "model.safetensors")
    ends = {f"{own}.{part}" for own in ("q", "v", "down") for part in "abm"}
    assert {name.split(".adapters.")[1] for name in weights} == ends
    assert len(weights) == 2 * len(ends)
    optimized = load_file(checkpoint / "optimizer.safetensors")
    assert {name.rpartition(".")[0] for name in optimized} == set(weights)
    state = json.loads((checkpoint / "state.json").read_text())
    assert len(state["base_sha256"]) == 64
    run = json.loads((place.out / "run" / "run.json").read_text())
    trained = sum(weight.numel() for weight in weights.values())
    assert run["architecture"]["trained_parameters"] == trained


def test_a_resumed_run_ends_as_an_uninterrupted_one(place):
    """Also if the base has been moved meanwhile."""
    place.train("halves", f"--init_from={place.model}", *LORA, "--max_iters=2")
    moved = place.folder / "moved"
    shutil.copytree(place.model, moved)
    resumed = place.train("halves", "--resume=halves", f"--init_from={moved}", "--max_iters=4")
    whole = list_checkpoints(place.out / "run" / "checkpoints")[-1]
    for file in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = load_file(resumed / file), load_file(whole / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_export_merges_the_adapters_or_writes_them_alone(place):
    trained = load_trained("run", place.out, {}, base=Base(load_weights), merges=False)
    idx, expected = tokens(20), trained.model(tokens(20))
    assert (load(place.model)(idx) - expected).abs().max() > 1e-2
    assert_close(load(place.export("merged"))(idx), expected)
    alone = place.export("alone", "--peft")
    assert {file.name for file in alone.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    model = load(place.model)
    load_adapter(model, FAMILIES["llama"], alone)
    assert_close(model(idx), expected)
    with pytest.raises(ValueError, match=r"--family=mistral has no effect with --peft"):
        place.export("other", "--peft", "--family=mistral")


def test_a_sample_is_that_of_the_merged_model(place, capsys):
    flags = ["--run=run", f"--out_dir={place.out}", "--prompt=the", "--max_new_tokens=8"]
    sample.main([*flags, "--device=cpu", "--dtype=float32", "--temperature=0"])
    model = load_trained("run", place.out, {}, base=Base(load_weights)).model
    idx = torch.tensor([list(b"the")])
    written = model.generate(idx, 8, temperature=0, vocab_size=257)[0].tolist()
    until = written.index(256) if 256 in written else len(written)
    assert capsys.readouterr().out == ByteTokenizer().decode(written[:until]) + "\n"
    assert not model.adapted


def test_another_base_is_refused(place, tmp_path):
    other = tiny_model(seed=1, vocab_size=300, block_size=32, **VARIANTS["preset llama"])
    save(other, tmp_path / "other", "llama")
    with pytest.raises(ValueError, match="the adapters were trained on a model whose weights have"):
        place.export("wrong", f"--base={tmp_path / 'other'}")
    with pytest.raises(ValueError, match="the adapters were trained on a model whose weights have"):
        place.train("run", "--resume=run", f"--init_from={tmp_path / 'other'}", "--max_iters=6")


def test_what_a_resume_cannot_change(place):
    for flag in ("--adapter_rank=3", "--adapter_pattern=q", "--adapter=lora"):
        with pytest.raises(ConfigError, match="but the run to resume has adapter"):
            place.train("run", "--resume=run", flag, "--max_iters=6")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"n_layer": 10**6}, "its config has n_layer=1000000, more than 10,000"),
        ({"vocab_size": 2**60}, f"its config has vocab_size={2**60}, more than"),
        ({"vocab_size": 10**8}, r"the base model of its adapters needs [\d,]+ bytes, but this"),
        ({"adapter_rank": 3}, r"q\.a is \(2, 32\) in the checkpoint and \(3, 32\) in the model"),
    ],
)
def test_a_config_that_the_adapters_cannot_have_is_refused(
    place, tmp_path, monkeypatch, keys, message
):
    monkeypatch.setattr(run_state, "host_memory", lambda: 10**9)
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(list_checkpoints(place.out / "run" / "checkpoints")[-1], checkpoint)
    change_config(checkpoint, **keys)
    with pytest.raises(ValueError, match=message):
        load_trained(str(checkpoint), place.out, {}, base=Base(load_weights))


def test_a_checkpoint_without_the_digest_of_its_base_is_damaged(place, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(list_checkpoints(place.out / "run" / "checkpoints")[-1], checkpoint)
    state = json.loads((checkpoint / "state.json").read_text())
    overwrite(checkpoint, "state.json", json.dumps(state | {"base_sha256": None}).encode())
    with pytest.raises(ValueError, match="is damaged: base_sha256 missing or invalid"):
        load_trained(str(checkpoint), place.out, {}, base=Base(load_weights))


def test_a_run_without_adapters_has_none_to_export(place):
    place.train("plain", f"--init_from={place.model}", "--max_iters=1")
    argv = ["export", "plain", str(place.folder / "none"), f"--out_dir={place.out}", "--peft"]
    with pytest.raises(ValueError, match="has no adapters; drop --peft to export the model"):
        huggingface.main(argv)
    with pytest.raises(ValueError, match=r"has no adapters, so --base=.* has no effect; drop it"):
        huggingface.main([*argv[:-1], f"--base={place.model}"])


def test_the_config_file(place):
    file = Path(__file__).parents[2] / "config" / "finetune_lora.py"
    settings = new_settings(configurator.read([str(file), f"--init_from={place.model}"]))
    assert (settings.training.adapter, settings.training.adapter_rank) == ("lora", 16)
    assert settings.model == load(place.model).config
