"""The tokenizer of a Hugging Face model from the preparation of data to the export of a run."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import sample
import train
from data.dataset import Dataset
from data.tokenizers import ByteTokenizer, HuggingFaceTokenizer
from data.validation import ValidationWindows
from errors import UserError
from interop import huggingface
from tests.integration.runs import Workshop, checkpoint_at, log_of, make_dataset, metrics_of
from tests.tiny import tiny_model
from tests.tiny_tokenizers import change, write_byte_level, write_sentencepiece
from tests.unit.test_data_prepare_scripts import prepare_module

SENTENCE = "The naïve fox of 東京 doesn't jump over 12 lazy dogs. 🎭 "


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer, as transformers saves them; the vocabulary is padded."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    huggingface.save(tiny_model(vocab_size=384, block_size=32), folder)
    return write_byte_level(folder)


@pytest.fixture(scope="module")
def prepared(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text prepared with that tokenizer by the command."""
    root = tmp_path_factory.mktemp("text")
    texts = [{"text": SENTENCE * 4 + str(number)} for number in range(60)]
    path = root / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, texts)), encoding="utf-8")
    flags = [f"--input={path}", "--name=fox", f"--tokenizer={model}", f"--out={root / 'fox'}"]
    prepare_module("text").main([*flags, "--val_fraction=0.3"])
    return root / "fox"


@pytest.fixture(scope="module")
def out(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run on that text; the folder of runs."""
    workshop = Workshop(prepared, tmp_path_factory.mktemp("runs") / "out")
    workshop.train("--max_iters=3", "--arch_preset=llama", "--sample_tokens=5", "--n_head=2")
    return workshop.out_dir


def test_the_command_records_the_tokenizer(model: Path, prepared: Path) -> None:
    meta = json.loads((prepared / "meta.json").read_text())
    tokenizer = HuggingFaceTokenizer.from_path(model)
    assert meta["tokenizer"] == tokenizer.to_meta()
    assert meta["vocab_size"] == 335
    assert (prepared / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    tokens = np.fromfile(prepared / "val.bin", dtype=meta["dtype"])
    documents = meta["splits"]["val"]["documents"]
    assert (tokens == tokenizer.end_of_text).sum() == documents > 0
    assert tokenizer.decode(tokens).startswith(SENTENCE)
    assert meta["splits"]["val"]["bytes"] == len(tokenizer.decode_bytes(tokens))


def test_the_log_has_bits_per_byte_and_a_sample(out: Path, prepared: Path) -> None:
    validated = next(record for record in metrics_of(out / "run") if "val_loss" in record)
    data = Dataset.open(prepared, 32)
    windows = ValidationWindows(data.val, data.token_bytes, 32, 1, eval_tokens=128)
    text = b"".join(data.tokenizer.decode_bytes(ids[0].tolist()) for _, ids in windows)
    bits = validated["val_loss"] * windows.tokens / len(text) / math.log(2)
    assert validated["val_bits_per_byte"] == pytest.approx(bits, rel=1e-9)
    assert any("prompt" in record for record in metrics_of(out / "run"))


def test_a_run_samples_without_its_data(out: Path, capsys) -> None:
    flags = [f"--out_dir={out}", "--device=cpu", "--dtype=float32", "--max_new_tokens=20"]
    sample.main([*flags, "--prompt=naïve 🎭"])
    assert capsys.readouterr().out.startswith("naïve 🎭")
    assert (checkpoint_at(out / "run", 3) / "tokenizer.json").is_file()


@pytest.mark.parametrize("how", ["a link", "a FIFO", "missing", "changed"])
def test_a_tokenizer_of_a_checkpoint_that_is_not_sound(out: Path, tmp_path: Path, how: str) -> None:
    copy = shutil.copytree(checkpoint_at(out / "run", 3), tmp_path / "step_00000003")
    file = copy / "tokenizer.json"
    content = file.read_bytes()
    file.unlink()
    listed = json.loads((copy / "manifest.json").read_text("utf-8"))
    del listed["files"]["tokenizer.json"]  # which the manifest does not have to list
    (copy / "manifest.json").write_text(json.dumps(listed), encoding="utf-8")
    if how == "a link":
        (tmp_path / "elsewhere.json").write_bytes(content)
        file.symlink_to(tmp_path / "elsewhere.json")
    elif how == "a FIFO":
        os.mkfifo(file)
    elif how == "changed":
        file.write_bytes(content + b" ")
    said = {"missing": "cannot read", "changed": "has changed: its sha256 is"}
    with pytest.raises(UserError, match=said.get(how, "is not a regular file")):
        sample.main([f"--run={copy}", "--device=cpu", "--prompt=a"])


def test_a_run_resumes(prepared: Path, out: Path) -> None:
    flags = [f"--out_dir={out}", f"--dataset={prepared}", "--resume=run", "--device=cpu"]
    train.main([*flags, "--max_iters=4", "--compile=False", "--sample_tokens=0"])
    assert (checkpoint_at(out / "run", 4) / "tokenizer.json").is_file()


def test_an_exported_run_generates_in_a_pipeline(out: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="see requirements-dev.txt")
    huggingface.main(["export", "run", str(tmp_path / "model"), f"--out_dir={out}"])
    ours = HuggingFaceTokenizer.from_path(tmp_path / "model")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert theirs(SENTENCE)["input_ids"] == ours.encode(SENTENCE).tolist()
    assert theirs.eos_token_id == ours.end_of_text == 1
    pipeline = transformers.pipeline("text-generation", model=str(tmp_path / "model"))
    [made] = pipeline("The naïve", max_new_tokens=5, do_sample=False)
    assert made["generated_text"].startswith("The naïve")


def test_sentencepiece_is_exported_without_the_space_before_a_text(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="see requirements-dev.txt")
    tokenizer = HuggingFaceTokenizer.from_path(write_sentencepiece(tmp_path / "their"))
    model = tiny_model(vocab_size=tokenizer.vocab_size, block_size=32)
    huggingface.save(model, tmp_path / "model", tokenizer=tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = theirs(SENTENCE)["input_ids"]
    assert ids == tokenizer.encode(SENTENCE).tolist()
    assert theirs.decode(ids) == SENTENCE
    again = HuggingFaceTokenizer.from_path(tmp_path / "model")
    assert again.vocabulary_sha256() == tokenizer.vocabulary_sha256()


# init_from


def start_from(model: Path, dataset: Path, tmp_path: Path) -> None:
    workshop = Workshop(dataset, tmp_path / "out")
    sizes = ("--n_layer", "--n_head", "--n_embd", "--block_size")
    argv = workshop.argv(f"--init_from={model}", "--max_iters=1")
    train.main([flag for flag in argv if flag.partition("=")[0] not in sizes])


def test_a_run_starts_from_a_model_with_the_tokenizer_of_the_data(
    model: Path, prepared: Path, tmp_path: Path
) -> None:
    start_from(model, prepared, tmp_path)
    assert log_of(tmp_path / "out" / "run")["config"]["vocab_size"] == 384


def test_an_exported_run_is_one_to_start_from(out: Path, prepared: Path, tmp_path: Path) -> None:
    huggingface.main(["export", "run", str(tmp_path / "model"), f"--out_dir={out}"])
    start_from(tmp_path / "model", prepared, tmp_path)


def test_a_tokenizer_of_another_size_is_refused(model: Path, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "bytes", ByteTokenizer(), SENTENCE * 9, SENTENCE * 9)
    with pytest.raises(UserError) as raised:
        start_from(model, dataset, tmp_path)
    assert str(raised.value) == (
        "the tokenizer 'bytes' of dataset='bytes' has 257 tokens, but the model's has 335 "
        f"(init_from={str(model)!r}); prepare the text with the model's: python "
        f"data/text/prepare.py --tokenizer={model} --name=NAME --input FILES"
    )


def test_a_tokenizer_of_the_same_size_and_other_tokens_is_refused(
    model: Path, prepared: Path, tmp_path: Path
) -> None:
    huggingface.save(tiny_model(vocab_size=384, block_size=32), tmp_path / "other")
    write_byte_level(tmp_path / "other")

    def swap(spec: dict) -> None:
        vocabulary = spec["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    change(tmp_path / "other", swap)
    digests = [
        HuggingFaceTokenizer.from_path(folder).vocabulary_sha256()
        for folder in (model, tmp_path / "other")
    ]
    said = f"differs from .* its vocabulary is {digests[0]}, but .* model's is {digests[1]} "
    with pytest.raises(UserError, match=said):
        start_from(tmp_path / "other", prepared, tmp_path)


def test_nothing_is_checked_without_a_tokenizer(prepared: Path, tmp_path: Path) -> None:
    huggingface.save(tiny_model(vocab_size=384, block_size=32), tmp_path / "model")
    start_from(tmp_path / "model", prepared, tmp_path)
    assert log_of(tmp_path / "out" / "run")["config"]["init_from"] == str(tmp_path / "model")


def test_training_needs_no_tokenizers_library(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    workshop = Workshop(prepared, tmp_path / "out")
    run = workshop.train("--max_iters=1", "--sample_tokens=3")
    with pytest.raises(UserError, match="pip install tokenizers"):
        sample.main([f"--run={run}", "--device=cpu", "--prompt=a"])
