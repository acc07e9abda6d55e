"""tokenizer.json: the ids that transformers gives are ours."""

from __future__ import annotations

import json

import pytest
import tiktoken

from data.tokenizers import ByteTokenizer, CharTokenizer, TiktokenTokenizer
from interop.tokenizer import tokenizer_files

TEXT = "It's naïve — 東京 🎭🎉\r\n\n  \tx = 1234567 + y__z 99929\x00 don't DON'T  end \n"


@pytest.fixture
def made_up(monkeypatch):
    """A small encoding with the pattern of cl100k_base, whose counts are possessive."""
    words = ["the", " the", "th", "12", "123", "92", "ab", " a", "é", "\r\n", "東"]
    pieces = [bytes([byte]) for byte in range(256)]
    for word in (word.encode() for word in words):
        # in the order of their lengths, so that each is made by merging two that exist
        pieces += [word[:end] for end in range(2, len(word) + 1) if word[:end] not in pieces]
    pattern = (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
        r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    )
    encoding = tiktoken.Encoding(
        "made_up",
        pat_str=pattern,
        mergeable_ranks={piece: rank for rank, piece in enumerate(pieces)},
        special_tokens={"<|endoftext|>": len(pieces)},
    )
    monkeypatch.setattr("tiktoken.list_encoding_names", lambda: ["made_up"])
    monkeypatch.setattr("tiktoken.get_encoding", lambda name: encoding)
    return TiktokenTokenizer("made_up")


def write_files(tokenizer, folder):
    for name, content in tokenizer_files(tokenizer, longest=99).items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("kind", ["bytes", "old_bytes", "made_up", "gpt2"])
def test_the_ids_are_ours(kind, request, tmp_path):
    transformers = pytest.importorskip("transformers", reason="see requirements-dev.txt")
    own = {"bytes": ByteTokenizer(), "old_bytes": ByteTokenizer(end_of_text=False)}
    tokenizer = own.get(kind) or request.getfixturevalue(kind)
    write_files(tokenizer, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = theirs(TEXT)["input_ids"]
    assert ids == tokenizer.encode(TEXT).tolist()
    assert theirs.decode(ids) == TEXT
    assert theirs.eos_token_id == tokenizer.end_of_text
    assert theirs.model_max_length == 99


def test_bytes_round_trip_and_have_an_end_of_text(tmp_path):
    transformers = pytest.importorskip("transformers", reason="see requirements-dev.txt")
    write_files(ByteTokenizer(), tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (256, 256)
    assert len(theirs) == 257
    code_points = (*range(0x800), *range(0x800, 0xD800, 64), *range(0xE000, 0x110000, 64))
    text = "".join(map(chr, code_points))
    assert len(set(text.encode())) == 256 - 13  # the bytes that UTF-8 never has: C0, C1, F5 to FF
    ids = theirs(text)["input_ids"]
    assert ids == list(text.encode())
    assert theirs.decode(ids) == text
    assert theirs.decode([104, 105, 256]) == "hi<|endoftext|>"
    assert theirs.decode([104, 105, 256], skip_special_tokens=True) == "hi"
    assert all(theirs.decode([byte]) == chr(byte) for byte in range(128))
    assert all(theirs.decode([byte]) == "\ufffd" for byte in range(128, 256))


def test_characters_have_no_counterpart():
    assert tokenizer_files(CharTokenizer("abc"), 99) == {}
    assert tokenizer_files(None, 99) == {}
