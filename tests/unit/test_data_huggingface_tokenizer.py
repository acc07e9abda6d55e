"""Tokenizers of Hugging Face models: the tokens of transformers, and bytes that are exact."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

import data.tokenizers
from data.dataset import Dataset
from data.dataset_writer import Document, write_dataset
from data.text_files import read_pieces
from data.tokenizer_json import TokenizerFile
from data.tokenizers import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    TiktokenTokenizer,
    tokenizer_called,
    tokenizer_from_meta,
)
from errors import UserError
from interop.tokenizer import tokenizer_files
from tests.tiny_tokenizers import (
    TEXT,
    change,
    write_byte_level,
    write_gemma,
    write_metaspace,
    write_sentencepiece,
)

KINDS = {
    "byte level": write_byte_level,
    "SentencePiece": write_sentencepiece,
    "Gemma": write_gemma,
    "Metaspace": write_metaspace,
}


@pytest.fixture(params=KINDS)
def folder(request, tmp_path):
    return KINDS[request.param](tmp_path / "model")


@pytest.fixture
def byte_level(tmp_path):
    return write_byte_level(tmp_path / "model")


def tokenizer_of(folder):
    return HuggingFaceTokenizer.from_path(folder)


def theirs_in(folder):
    transformers = pytest.importorskip("transformers", reason="see requirements-dev.txt")
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


# Tokens and bytes


def test_the_tokens_spell_out_the_text_and_count_its_bytes(folder):
    tokenizer = tokenizer_of(folder)
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    counted = tokenizer.token_bytes()[ids]
    assert counted.sum() == len(TEXT.encode())
    assert [len(tokenizer.decode_bytes([token])) for token in ids] == counted.tolist()
    assert ids.dtype == np.uint16
    assert len(tokenizer.encode("")) == 0


def test_some_tokens_are_part_of_a_character(folder):
    tokenizer = tokenizer_of(folder)
    tokens = [tokenizer.decode_bytes([token]) for token in tokenizer.encode("—")]
    assert tokens == [b"\xe2", b"\x80", b"\x94"]
    assert b"\xf0\x9f" not in tokens
    assert tokenizer.decode([*tokenizer.encode("—")][:2]) == "\ufffd"


def test_the_exported_tokenizer_gives_our_tokens(folder, tmp_path):
    tokenizer, written = tokenizer_of(folder), tmp_path / "written"
    written.mkdir()
    for name, content in tokenizer_files(tokenizer, 99).items():
        (written / name).write_text(json.dumps(content), encoding="utf-8")
    theirs, text = theirs_in(written), TEXT.replace("<|end|>", "")
    ids = theirs(text)["input_ids"]
    assert ids == tokenizer.encode(text).tolist()
    assert theirs.decode(ids) == text
    assert theirs.eos_token_id == tokenizer.end_of_text
    assert tokenizer_of(written).vocabulary_sha256() == tokenizer.vocabulary_sha256()


def test_byte_level_tokens_are_those_of_transformers(byte_level):
    ids = theirs_in(byte_level)(TEXT.replace("<|end|>", ""), add_special_tokens=False)["input_ids"]
    assert tokenizer_of(byte_level).encode(TEXT.replace("<|end|>", "")).tolist() == ids
    assert max(map(len, (tokenizer_of(byte_level).decode_bytes([i]) for i in ids))) > 8


def test_sentencepiece_tokens_are_those_of_transformers_after_a_space(tmp_path):
    """transformers adds a space before a text; ours are the tokens of the text alone."""
    folder = write_sentencepiece(tmp_path)
    theirs = theirs_in(folder)("quick brown fox 🎭", add_special_tokens=False)["input_ids"]
    assert tokenizer_of(folder).encode(" quick brown fox 🎭").tolist() == theirs
    assert tokenizer_of(folder).decode(tokenizer_of(folder).encode(" a")) == " a"


def test_the_text_of_a_special_token_is_ordinary_text(byte_level):
    tokenizer = tokenizer_of(byte_level)
    assert tokenizer.end_of_text == 1
    assert not {0, 1} & set(tokenizer.encode("<|begin|> a <|end|>").tolist())
    assert tokenizer.token_bytes()[[0, 1]].tolist() == [0, 0]
    assert tokenizer.decode([1, *tokenizer.encode("a"), 0]) == "a"


def test_an_added_token_that_is_not_special_is_a_token_with_bytes(byte_level):
    tokenizer = tokenizer_of(byte_level)
    [token] = tokenizer.encode("<|tool|>")
    assert token == tokenizer.vocab_size - 1
    assert tokenizer.token_bytes()[token] == len("<|tool|>")


def test_text_is_normalized_where_the_tokenizer_does_so(tmp_path):
    plain = tokenizer_of(write_byte_level(tmp_path / "plain"))
    normal = tokenizer_of(write_byte_level(tmp_path / "normal", normalizer="NFC"))
    assert plain.decode(plain.encode("e\u0301")) == "e\u0301"
    assert normal.decode(normal.encode("e\u0301")) == "é"
    assert normal.token_bytes()[normal.encode("e\u0301")].sum() == 2


def test_a_space_and_its_sign_are_the_same_for_sentencepiece(tmp_path):
    tokenizer = tokenizer_of(write_sentencepiece(tmp_path))
    assert tokenizer.decode(tokenizer.encode("a\u2581b")) == "a b"


def test_a_long_file_gives_the_tokens_of_the_text_as_a_whole(folder, tmp_path):
    tokenizer, path = tokenizer_of(folder), tmp_path / "long.txt"
    path.write_bytes((TEXT * 50).encode())
    pieces = list(read_pieces(path, 100))
    assert len(pieces) > 20
    streamed = np.concatenate([tokenizer.encode(piece) for piece in pieces])
    np.testing.assert_array_equal(streamed, tokenizer.encode(TEXT * 50))


def test_a_vocabulary_has_the_same_digest_whatever_its_kind(tmp_path, gpt2):
    for number, ours in enumerate((gpt2, ByteTokenizer())):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, content in tokenizer_files(ours, 99).items():
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
        theirs = tokenizer_of(folder)
        assert theirs.vocabulary_sha256() == ours.vocabulary_sha256()
        assert theirs.end_of_text == ours.end_of_text
        assert theirs.encode(TEXT).tolist() == ours.encode(TEXT).tolist()
    assert isinstance(gpt2, TiktokenTokenizer)
    assert gpt2.vocabulary_sha256() != ByteTokenizer().vocabulary_sha256()


# Finding and refusing


def test_a_tokenizer_is_found_by_its_folder_or_its_file(byte_level):
    for path in (byte_level, byte_level / "tokenizer.json"):
        tokenizer = tokenizer_called(str(path))
        assert (tokenizer.name, tokenizer.vocab_size) == ("huggingface", 335)
    assert tokenizer_called("bytes").vocab_size == 257


def test_names_come_before_folders_of_the_same_name(byte_level, monkeypatch):
    (byte_level.parent / "bytes").mkdir()
    monkeypatch.chdir(byte_level.parent)
    assert tokenizer_called("bytes").name == "bytes"
    assert tokenizer_called("model").name == "huggingface"


def test_what_is_neither_a_name_nor_a_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"'gpt3'; did you mean 'gpt2'.*folder of a Hugging Face"):
        tokenizer_called("gpt3")
    with pytest.raises(UserError, match=r"has no tokenizer\.json; write it with transformers"):
        tokenizer_called(str(tmp_path))


def test_without_an_eos_token_nothing_separates_documents(byte_level):
    (byte_level / "tokenizer_config.json").unlink()
    assert tokenizer_of(byte_level).end_of_text is None


def test_a_missing_library_says_how_to_install_it(byte_level, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    tokenizer = tokenizer_of(byte_level)
    with pytest.raises(UserError, match="pip install tokenizers$"):
        tokenizer.encode("a")
    assert tokenizer.decode([5, 6]) == "$%"  # training and its samples need no library


def wordpiece(spec):
    spec["model"] = {"type": "WordPiece", "vocab": {"a": 0}}


def lowercase(spec):
    spec["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (wordpiece, "is a 'WordPiece' tokenizer, which loses parts of a text; use a byte-"),
        (lowercase, r"changes the text before encoding it \(Lowercase\); use a byte-level BPE"),
        (lambda spec: spec.update(decoder=None), "does not represent all bytes of a text"),
        (
            lambda spec: spec.pop("model"),
            "is damaged or not the tokenizer.json .* KeyError: 'model'",
        ),
        (lambda spec: spec["model"]["vocab"].update(a=-1), "token ids must be integers from 0"),
        (lambda spec: spec["model"]["vocab"].update(a=2**40), "token ids must be integers from 0"),
    ],
)
def test_a_tokenizer_that_is_not_supported_is_refused(byte_level, how, said):
    with pytest.raises(UserError, match=said) as raised:
        tokenizer_of(change(byte_level, how))
    assert str(raised.value).startswith(str(byte_level / "tokenizer.json"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000, b'{"model": 5}'])
def test_a_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged or not the tokenizer.json"):
        TokenizerFile.read(path)


def test_text_that_the_tokens_do_not_spell_out_is_refused(byte_level):
    def forget(spec):
        del spec["model"]["vocab"]["Z"]

    tokenizer = tokenizer_of(change(byte_level, forget))
    assert tokenizer.decode(tokenizer.encode("fox")) == "fox"
    with pytest.raises(UserError, match="turns b'Zoo' into b'oo', so bits per byte would be wrong"):
        tokenizer.encode("a Zoo")


# Datasets


def prepared(folder, tokenizer, text="the quick brown fox " * 20):
    documents = [Document("train", [text]), Document("val", [text])]
    write_dataset(documents, tokenizer, folder, name="fox", source="", separate=True)
    return folder


def test_a_dataset_keeps_its_tokenizer(byte_level, tmp_path):
    tokenizer = tokenizer_of(byte_level)
    dataset = Dataset.open(prepared(tmp_path / "data", tokenizer), 8)
    content = (byte_level / "tokenizer.json").read_bytes()
    (byte_level / "tokenizer.json").unlink()
    assert dataset.tokenizer.decode(dataset.train) == "the quick brown fox " * 20
    assert dataset.train[-1] == dataset.meta["documents_end_with"] == 1
    assert dataset.meta["tokenizer"] == tokenizer.to_meta()
    assert dataset.meta["splits"]["train"]["bytes"] == 400
    assert dataset.tokenizer_files == {"tokenizer.json": content}


def test_a_dataset_whose_tokenizer_has_changed_is_refused(byte_level, tmp_path):
    folder = prepared(tmp_path / "data", tokenizer_of(byte_level))
    change(folder, lambda spec: spec.update(version="2.0"))
    with pytest.raises(UserError, match=r"has changed: its sha256 is \w{64}, but .* has \w{64}"):
        Dataset.open(folder, 8)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"cannot read .*tokenizer\.json \(No such file"):
        Dataset.open(folder, 8)


def test_preparing_again_with_another_tokenizer_leaves_no_copy(byte_level, tmp_path):
    folder = prepared(tmp_path / "data", tokenizer_of(byte_level))
    prepared(folder, ByteTokenizer())
    assert not (folder / "tokenizer.json").exists()
    assert Dataset.open(folder, 8).tokenizer_files == {}


def test_meta_data_make_the_same_tokenizer(folder):
    tokenizer = tokenizer_of(folder)
    meta = json.loads(json.dumps(tokenizer.to_meta()))
    again = tokenizer_from_meta(meta, folder)
    assert again.end_of_text == tokenizer.end_of_text
    np.testing.assert_array_equal(again.encode(TEXT), tokenizer.encode(TEXT))
    for strange in (True, 7, "1", None):
        assert tokenizer_from_meta(meta | {"end_of_text": strange}, folder).end_of_text is None
    assert data.tokenizers.HuggingFaceTokenizer.name == meta["name"]
