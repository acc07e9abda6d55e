"""Tokenizers: lossless, exact about bytes, and clear about what they cannot do."""

import hashlib
import json

import numpy as np
import pytest

from data.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
    NotCached,
    TiktokenTokenizer,
    token_dtype,
    tokenizer_from_meta,
)
from errors import UserError

TEXT = "naïve — 東京 🎭\r\n\tx\x00 <|endoftext|>"


@pytest.fixture(params=["bytes", "old_bytes", "chars", "gpt2"])
def tokenizer(request):
    if request.param == "gpt2":
        return request.getfixturevalue("gpt2")
    return {
        "bytes": ByteTokenizer(),
        "old_bytes": ByteTokenizer(end_of_text=False),
        "chars": CharTokenizer(TEXT),
    }[request.param]


def test_decoding_gives_the_text_back(tokenizer):
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.decode(ids.tolist()) == TEXT
    assert len(tokenizer.encode("")) == 0
    assert tokenizer.decode([]) == ""


def test_ids_are_of_the_dtype_of_the_vocabulary_and_inside_it(tokenizer):
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == token_dtype(tokenizer.vocab_size)
    assert ids.ndim == 1
    assert ids.max() < tokenizer.vocab_size


def test_token_bytes_add_up_to_the_bytes_of_the_text(tokenizer):
    token_bytes = tokenizer.token_bytes()
    assert token_bytes.dtype == np.uint16
    assert token_bytes.shape == (tokenizer.vocab_size,)
    assert token_bytes[tokenizer.encode(TEXT)].sum() == len(TEXT.encode())


def test_each_token_has_the_bytes_that_are_counted(tokenizer):
    ids = tokenizer.encode(TEXT)
    lengths = [len(tokenizer.decode_bytes([token])) for token in ids]
    assert lengths == tokenizer.token_bytes()[ids].tolist()


def test_meta_data_make_the_same_tokenizer_after_json(tokenizer):
    meta = json.loads(json.dumps(tokenizer.to_meta()))
    again = tokenizer_from_meta(meta)
    assert type(again) is type(tokenizer)
    assert meta["name"] == tokenizer.name == again.name
    np.testing.assert_array_equal(again.encode(TEXT), tokenizer.encode(TEXT))


def test_an_id_outside_the_vocabulary_is_refused(tokenizer):
    for outside in (tokenizer.vocab_size, -1):
        with pytest.raises(ValueError, match=rf"token id {outside} is outside the \d+ ids"):
            tokenizer.decode([0, outside])


def test_dtype_is_the_smallest_that_holds_the_vocabulary():
    assert token_dtype(2**16) == np.uint16
    assert token_dtype(2**16 + 1) == np.uint32


def test_bytes_are_the_utf8_bytes():
    assert ByteTokenizer().encode("é!").tolist() == [0xC3, 0xA9, 0x21]


def test_bytes_have_an_end_of_text_of_no_bytes():
    tokenizer = ByteTokenizer()
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (257, 256)
    assert tokenizer.token_bytes().tolist() == [1] * 256 + [0]
    assert tokenizer.decode_bytes([97, 256, 255]) == b"a\xff"


def test_bytes_of_older_versions_have_no_end_of_text():
    tokenizer = tokenizer_from_meta({"name": "bytes"})
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (256, None)
    assert tokenizer.to_meta() == {"name": "bytes"}


def test_bytes_that_are_not_utf8_decode_to_replacements_but_stay_themselves():
    assert ByteTokenizer().decode([0x61, 0xFF, 0x62]) == "a\N{REPLACEMENT CHARACTER}b"
    assert ByteTokenizer().decode_bytes([0x61, 0xFF, 0x62]) == b"a\xffb"


def test_chars_are_numbered_in_code_point_order():
    tokenizer = CharTokenizer("bcéa🎭ab")
    assert tokenizer.characters == "abcé🎭"
    assert tokenizer.encode("🎭éa").tolist() == [4, 3, 0]
    assert tokenizer.token_bytes().tolist() == [1, 1, 1, 2, 4]


@pytest.mark.parametrize(("text", "position"), [("abé", 2), ("Zab", 0), ("a🎭b", 1)])
def test_an_unknown_character_is_named_with_its_place(text, position):
    with pytest.raises(
        ValueError, match=f"{text[position]!r}.*at position {position} is not one of"
    ) as e:
        CharTokenizer("acb").encode(text)
    assert f"U+{ord(text[position]):04X}" in str(e.value)


def test_chars_without_characters_are_refused():
    for meta in ({"name": "chars"}, {"name": "chars", "characters": ""}):
        with pytest.raises(ValueError, match="needs at least one character"):
            tokenizer_from_meta(meta)


def test_gpt2_is_gpt2(gpt2):
    assert gpt2.vocab_size == 50257
    assert gpt2.end_of_text == 50256
    assert gpt2.encode("Hello world").tolist() == [15496, 995]


def test_the_text_of_a_special_token_is_ordinary_text(gpt2):
    assert gpt2.end_of_text not in gpt2.encode("<|endoftext|>")


def test_a_special_token_has_no_bytes_and_all_others_have(gpt2):
    token_bytes = gpt2.token_bytes()
    assert np.flatnonzero(token_bytes == 0).tolist() == [gpt2.end_of_text]
    assert gpt2.decode([gpt2.end_of_text, 15496]) == "Hello"


def test_characters_have_no_end_of_text():
    assert CharTokenizer("a").end_of_text is None


def test_a_vocabulary_that_cannot_be_had_says_what_to_do(monkeypatch):
    def offline(name):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("tiktoken.get_encoding", offline)
    with pytest.raises(UserError, match="no route to host.*TIKTOKEN_CACHE_DIR"):
        TiktokenTokenizer("gpt2", download=True)


@pytest.fixture
def downloads(monkeypatch, tmp_path):
    """What tiktoken asks the network for, its cache being empty; every answer is nonsense."""
    asked = []

    def answer(url):
        asked.append(url)
        return b"nonsense"

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    monkeypatch.setattr("tiktoken.load.read_file", answer)
    return asked


def test_nothing_is_downloaded_unless_asked_for(downloads):
    for meta in ({"name": "gpt2"}, {"name": "cl100k_base"}):
        with pytest.raises(NotCached, match="is not cached, .* pass --download"):
            tokenizer_from_meta(meta)
    assert downloads == []


def test_a_damaged_cache_is_not_replaced_unless_asked_for(downloads, tmp_path):
    url = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
    (tmp_path / hashlib.sha1(url.encode()).hexdigest()).write_bytes(b"damaged")
    with pytest.raises(NotCached, match="is not cached"):
        TiktokenTokenizer("cl100k_base")
    assert downloads == []


def test_what_is_asked_for_is_downloaded_and_checked(downloads):
    with pytest.raises(UserError, match="Hash mismatch"):
        tokenizer_from_meta({"name": "cl100k_base"}, download=True)
    assert downloads == [
        "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
    ]


@pytest.mark.parametrize("characters", ["\ud800a", 5, ["a"]])
def test_characters_that_are_none_are_refused(characters):
    with pytest.raises(UserError, match="'chars'"):
        tokenizer_from_meta({"name": "chars", "characters": characters})


def test_an_unknown_name_gets_the_nearest_and_the_choices():
    with pytest.raises(ValueError, match="'gpt3'; did you mean 'gpt2'.*bytes, chars, gpt2"):
        tokenizer_from_meta({"name": "gpt3"})
