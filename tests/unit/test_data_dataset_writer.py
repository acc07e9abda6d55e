"""Writing datasets: order, meta data, fingerprint, and what an interruption leaves."""

import hashlib
import json
import platform
import threading

import numpy as np
import pytest

from data import dataset_writer
from data.dataset_files import SCHEMA_VERSION
from data.dataset_writer import Document, ordered_map, split_by_hash, write_dataset
from data.tokenizers import ByteTokenizer, CharTokenizer
from tests.prepared import text_of, tokens_of

DOCUMENTS = [
    Document("train", ("to be", " or not")),
    Document("val", ("é",)),
    Document("train", ("!",)),
]


def write(folder, documents, tokenizer=None, **options):
    options = {"name": "made", "source": "a test", "separate": True} | options
    return write_dataset(documents, tokenizer or ByteTokenizer(), folder, **options)


def test_documents_are_written_in_order_to_their_splits(tmp_path):
    write(tmp_path, DOCUMENTS)
    assert text_of(tmp_path, "train") == "to be or not!"
    assert text_of(tmp_path, "val") == "é"


def test_meta_data_say_what_is_in_the_files(tmp_path):
    meta = write(tmp_path, DOCUMENTS)
    assert meta == json.loads((tmp_path / "meta.json").read_text())
    assert meta["dataset"] == "made"
    assert meta["source"] == "a test"
    assert meta["schema_version"] == SCHEMA_VERSION
    assert meta["python_version"] == platform.python_version()
    assert meta["tokenizer"] == {"name": "bytes", "end_of_text": True}
    assert (meta["vocab_size"], meta["dtype"]) == (257, "uint16")
    digest = hashlib.sha256((tmp_path / "val.bin").read_bytes()).hexdigest()
    assert meta["splits"]["val"] == {"tokens": 3, "bytes": 2, "documents": 1, "sha256": digest}
    train = meta["splits"]["train"]
    assert (train["tokens"], train["bytes"], train["documents"]) == (15, 13, 2)


def test_token_bytes_are_beside_the_tokens(tmp_path):
    tokenizer = CharTokenizer("aé🎭")
    write(tmp_path, [Document("train", ("é🎭",)), Document("val", ("a",))], tokenizer)
    token_bytes = np.load(tmp_path / "token_bytes.npy", allow_pickle=False)
    assert token_bytes.tolist() == [1, 2, 4]
    assert token_bytes[tokens_of(tmp_path, "train")].sum() == 6


def test_a_vocabulary_above_16_bits_is_written_in_32(tmp_path):
    tokenizer = CharTokenizer("".join(map(chr, range(0x10000, 0x20001))))
    assert tokenizer.vocab_size == 2**16 + 1
    documents = [Document("train", ("\U00020000",)), Document("val", ("\U00010000",))]
    meta = write(tmp_path, documents, tokenizer)
    assert meta["dtype"] == "uint32"
    assert tokens_of(tmp_path, "train").tolist() == [2**16]


def test_end_of_text_ends_each_document_of_bytes(tmp_path):
    meta = write(tmp_path, DOCUMENTS)
    assert tokens_of(tmp_path, "train").tolist() == [*b"to be or not", 256, *b"!", 256]
    assert tokens_of(tmp_path, "val").tolist() == [*"é".encode(), 256]
    assert meta["documents_end_with"] == 256


def test_end_of_text_ends_each_document_of_a_byte_pair_encoding(tmp_path, gpt2):
    meta = write(tmp_path, DOCUMENTS, gpt2)
    expected = [*gpt2.encode("to be or not"), 50256, *gpt2.encode("!"), 50256]
    assert tokens_of(tmp_path, "train").tolist() == expected
    assert meta["splits"]["train"]["bytes"] == 13
    assert meta["documents_end_with"] == 50256


def test_nothing_ends_a_document_where_none_is_wanted(tmp_path, gpt2):
    meta = write(tmp_path, DOCUMENTS, gpt2, separate=False)
    assert 50256 not in tokens_of(tmp_path, "train")
    assert meta["documents_end_with"] is None


def test_workers_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_writer, "TASK_CHARACTERS", 10)
    documents = [Document(split_by_hash(str(n), 0.3), (str(n) * 7,)) for n in range(200)]
    metas = [write(tmp_path / str(n), documents, workers=n) for n in (1, 4)]
    assert metas[0] == metas[1]
    for split in ("train", "val"):
        expected = "".join(d.pieces[0] for d in documents if d.split == split)
        assert text_of(tmp_path / "1", split) == text_of(tmp_path / "4", split) == expected


def test_the_fingerprint_depends_on_the_tokens_and_the_tokenizer_and_nothing_else(tmp_path):
    def fingerprint(documents, **options):
        return write(tmp_path, documents, **options)["fingerprint"]

    base = fingerprint(DOCUMENTS)
    assert fingerprint(DOCUMENTS, name="other", source="elsewhere") == base
    assert fingerprint([*DOCUMENTS[:2], Document("train", ("?",))]) != base
    assert fingerprint([DOCUMENTS[0], Document("val", ("è",)), DOCUMENTS[2]]) != base
    ab, bc = CharTokenizer("ab"), CharTokenizer("bc")
    documents = [Document("train", ("b",)), Document("val", ("b",))]
    assert fingerprint(documents, tokenizer=ab) != fingerprint(documents, tokenizer=bc)


def test_tasks_are_drawn_only_as_fast_as_they_are_done():
    drawn, release = [], threading.Event()

    def tasks():
        for n in range(100):
            drawn.append(n)
            yield n

    def work(n):
        release.wait(5)
        return n

    results = ordered_map(work, tasks(), workers=2)
    threading.Timer(0.2, release.set).start()
    assert next(results) == 0
    assert len(drawn) == 5
    assert list(results) == list(range(1, 100))


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_split_is_refused_and_nothing_is_left(tmp_path, split):
    other = {"train": "val", "val": "train"}[split]
    with pytest.raises(ValueError, match=f"the {split} split has no text after 2 documents"):
        write(tmp_path, [Document(other, ("a",)), Document(other, ("b",))])
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_preparation_leaves_the_earlier_dataset(tmp_path):
    before = write(tmp_path, DOCUMENTS)

    def interrupted():
        yield from DOCUMENTS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, interrupted())
    assert json.loads((tmp_path / "meta.json").read_text()) == before
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"train.bin", "val.bin", "token_bytes.npy", "meta.json"}


@pytest.mark.parametrize("moves", range(4))
def test_a_stop_while_files_are_moved_leaves_no_meta_data(tmp_path, monkeypatch, moves):
    write(tmp_path, DOCUMENTS)
    left = iter(range(moves))
    replace = dataset_writer.os.replace

    def stopping_replace(old, new):
        if next(left, None) is None:
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr(dataset_writer.os, "replace", stopping_replace)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, [Document("train", ("other",)), Document("val", ("text",))])
    assert not (tmp_path / "meta.json").exists()


def test_split_by_hash_is_deterministic_and_in_proportion():
    splits = [split_by_hash(f"document {n}", 0.2) for n in range(5000)]
    assert splits == [split_by_hash(f"document {n}", 0.2) for n in range(5000)]
    assert 0.18 < splits.count("val") / 5000 < 0.22
    wider = [split_by_hash(f"document {n}", 0.4) for n in range(5000)]
    assert all(b == "val" for a, b in zip(splits, wider, strict=True) if a == "val")
