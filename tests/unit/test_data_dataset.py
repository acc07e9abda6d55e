"""Opening a dataset: what it holds, and what is refused."""

import json
import os

import numpy as np
import pytest

from data import dataset as dataset_module
from data.dataset import Dataset
from data.dataset_writer import Document, write_dataset
from data.tokenizers import ByteTokenizer, CharTokenizer, NotCached
from errors import UserError

FINGERPRINT = "93878f86a14f"
"""How the fingerprint of the dataset `fox` of 256 bytes has begun in every version."""

LINE = "the quick brown fox jumps over the lazy dog. "


def prepare(folder, tokenizer=None, train=LINE * 20, val=LINE[::-1] * 10):
    documents = [Document("train", (train,)), Document("val", (val,))]
    write_dataset(
        documents, tokenizer or ByteTokenizer(), folder, name="fox", source="", separate=False
    )
    return folder


@pytest.fixture
def folder(tmp_path):
    return prepare(tmp_path / "fox")


def change_meta(folder, **changes):
    path = folder / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_open_dataset_has_its_tokens_and_says_what_it_is(folder):
    dataset = Dataset.open(folder, sequence_length=16)
    assert dataset.name == "fox"
    assert dataset.vocab_size == 257
    assert dataset.fingerprint == json.loads((folder / "meta.json").read_text())["fingerprint"]
    assert dataset.tokenizer.decode(dataset.train) == LINE * 20
    assert dataset.tokenizer.decode(dataset.val) == LINE[::-1] * 10
    assert dataset.token_bytes.tolist() == [1] * 256 + [0]


def test_tokens_are_mapped_not_read(folder):
    dataset = Dataset.open(str(folder), sequence_length=16)
    for tokens in (dataset.train, dataset.val):
        assert isinstance(tokens, np.memmap)
        assert not tokens.flags.writeable


def test_a_large_vocabulary_opens_in_32_bits(tmp_path):
    tokenizer = CharTokenizer("".join(map(chr, range(0x10000, 0x20001))))
    prepare(tmp_path, tokenizer, train="\U00020000" * 5, val="\U00010000" * 5)
    dataset = Dataset.open(tmp_path, sequence_length=4)
    assert dataset.train.tolist() == [2**16] * 5


def test_a_split_of_one_sequence_and_its_targets_is_enough_and_less_is_refused(tmp_path):
    folder = prepare(tmp_path, val="0123456789")
    Dataset.open(folder, sequence_length=9)
    expected = r"val\.bin has 10 tokens.*sequence_length \+ 1 = 11; lower.*at most 9"
    with pytest.raises(ValueError, match=expected):
        Dataset.open(folder, sequence_length=10)


def refused(folder, message):
    with pytest.raises(UserError, match=message):
        Dataset.open(folder, sequence_length=16)


def test_missing_meta_data_are_refused(folder):
    (folder / "meta.json").unlink()
    refused(folder, r"fox is not a prepared dataset: its meta\.json cannot be read")


def test_files_that_are_not_regular_are_refused_without_waiting(folder):
    for name in ("token_bytes.npy", "train.bin", "meta.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        refused(folder, rf"{name}")


@pytest.mark.parametrize("content", ["{half", b"\xff\xfe\xfd"])
def test_damaged_meta_data_are_refused(folder, content):
    content = content if isinstance(content, bytes) else content.encode()
    (folder / "meta.json").write_bytes(content)
    refused(folder, r"meta\.json is damaged")


def test_meta_data_of_another_version_are_refused(folder):
    change_meta(folder, schema_version=99)
    refused(folder, "has schema_version 99, but this version reads 1")
    (folder / "meta.json").write_text("[]")
    refused(folder, "has schema_version None")


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": "many"},
        {"dtype": "uint32"},
        {"tokenizer": None},
        {"tokenizer": {}},
        {"fingerprint": None},
        {"splits": {}},
        {"splits": {"train": {"tokens": 1}, "val": {"tokens": 0}}},
    ],
)
def test_unsound_meta_data_are_refused(folder, changes):
    change_meta(folder, **changes)
    refused(folder, r"meta\.json is damaged \(some keys are invalid\)")


def test_a_truncated_or_missing_file_is_refused(folder):
    path = folder / "train.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    refused(
        folder, rf"train\.bin has {len(content) - 1} bytes, but meta\.json says 900 tokens of 2"
    )
    path.unlink()
    refused(folder, r"train\.bin has 0 bytes")


def overwrite(path, position, token):
    with open(path, "r+b") as file:
        file.seek(2 * position)
        file.write(int(token).to_bytes(2, "little"))


def test_a_token_outside_the_vocabulary_is_refused(folder):
    overwrite(folder / "val.bin", 448, 257)
    refused(folder, r"val\.bin contains token 257 at position 448, outside the vocabulary of 257")


def test_a_changed_token_is_refused(folder):
    overwrite(folder / "train.bin", 5, 65)
    refused(folder, r"train\.bin has changed since it was prepared")


def test_a_large_split_is_checked_in_places_to_its_very_end(folder, monkeypatch):
    monkeypatch.setattr(dataset_module, "CHECKED_TOKENS", 100)
    monkeypatch.setattr(dataset_module, "CHUNK_TOKENS", 10)
    overwrite(folder / "train.bin", 12, 255)
    Dataset.open(folder, sequence_length=16)
    overwrite(folder / "train.bin", 899, 999)
    refused(folder, "token 999 at position 899")


def test_wrong_token_bytes_are_refused(folder):
    path = folder / "token_bytes.npy"
    np.save(path, np.ones(7, dtype=np.uint16))
    refused(folder, r"token_bytes\.npy contains uint16 of shape \(7,\), but .* of its 257 tokens")
    np.save(path, np.full(257, 7, dtype=np.uint16))
    refused(folder, r"token_bytes\.npy has changed .* of the tokenizer 'bytes'")
    np.save(path, np.array([{}] * 257, dtype=object), allow_pickle=True)
    refused(folder, r"cannot read .*token_bytes\.npy")
    path.unlink()
    refused(folder, r"cannot read .*token_bytes\.npy")


def test_a_header_that_claims_more_than_the_file_has_is_refused(folder):
    path = folder / "token_bytes.npy"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(257,), }        ", b"(25700000000,), }"))
    assert path.read_bytes() != content
    refused(folder, r"cannot read .*token_bytes\.npy")


def test_a_changed_tokenizer_is_refused(tmp_path):
    folder = prepare(tmp_path / "fox", CharTokenizer(LINE))
    other = CharTokenizer(LINE.upper()).to_meta()
    change_meta(folder, tokenizer=other)
    refused(folder, r"meta\.json has changed .* its fingerprint is '\w{12}', but its tokenizer")


def test_a_changed_fingerprint_is_refused(folder):
    change_meta(folder, fingerprint="0" * 64)
    refused(folder, r"its fingerprint is '0{12}', but its tokenizer and splits have")


def test_a_dataset_of_an_older_version_opens(tmp_path):
    """It has neither an end-of-text token nor a digest of its bytes per token; its fingerprint is
    what it was."""
    folder = prepare(tmp_path / "fox", ByteTokenizer(end_of_text=False))
    meta = json.loads((folder / "meta.json").read_text())
    del meta["token_bytes_sha256"]
    (folder / "meta.json").write_text(json.dumps(meta))
    assert meta["tokenizer"] == {"name": "bytes"}
    dataset = Dataset.open(folder, sequence_length=16)
    assert (dataset.vocab_size, dataset.tokenizer.end_of_text) == (256, None)
    assert dataset.tokenizer.decode(dataset.train) == LINE * 20
    assert dataset.fingerprint[:12] == FINGERPRINT


def test_bytes_per_token_of_a_tokenizer_that_is_not_cached_are_checked_by_digest(
    folder, monkeypatch
):
    def not_cached(meta, folder):
        raise NotCached("not cached")

    monkeypatch.setattr(dataset_module, "tokenizer_from_meta", not_cached)
    Dataset.open(folder, sequence_length=16)
    np.save(folder / "token_bytes.npy", np.full(257, 7, dtype=np.uint16))
    refused(folder, r"token_bytes\.npy has changed")
