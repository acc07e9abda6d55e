"""Documents from text files: pieces, splits, and the files that are refused."""

import functools
import json
import sys

import numpy as np
import pytest

from data import text_files
from tests.prepared import text_file


def test_pieces_are_bounded_and_give_the_text_unchanged(tmp_path):
    text = "one  two\r\n\n three\rfour é🎭 " * 50 + "x" * 100
    pieces = list(text_files.read_pieces(text_file(tmp_path, text), characters=16))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 32


def test_pieces_do_not_change_the_tokens(tmp_path, gpt2):
    text = "It's  here:\n\n   I'll say 1234 times...\t\"Ha!\" \n (really) é🎭 don't\r\n" * 20
    pieces = text_files.read_pieces(text_file(tmp_path, text), characters=40)
    tokens = np.concatenate([gpt2.encode(piece) for piece in pieces])
    np.testing.assert_array_equal(tokens, gpt2.encode(text))


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    path = text_file(tmp_path, b"caf\xe9 au lait")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 text .*0xe9.*iconv"):
        list(text_files.read_pieces(path))


def test_split_by_position_cuts_at_the_character(tmp_path, monkeypatch):
    short_pieces = functools.partial(text_files.read_pieces, characters=7)
    monkeypatch.setattr(text_files, "read_pieces", short_pieces)
    text = "".join(chr(0x400 + n) for n in range(101))
    train, val = text_files.split_by_position(text_file(tmp_path, text), 0.25)
    assert (train.split, val.split) == ("train", "val")
    assert "".join(train.pieces) == text[:75]
    assert "".join(val.pieces) == text[75:]


# Files of documents


def documents_of(*paths, val_fraction=0.5, text_field="text"):
    documents = text_files.file_documents(paths, val_fraction, text_field)
    return [(document.split, "".join(document.pieces)) for document in documents]


def test_jsonl_gives_a_document_per_line(tmp_path):
    lines = ['{"text": "a\\nb"}', "", '{"text": "\\ud83c\\udfad", "id": 3}', '{"text": "\\ud800!"}']
    path = text_file(tmp_path, "\n".join(lines), "a.jsonl")
    assert [text for _, text in documents_of(path)] == ["a\nb", "🎭", "\N{REPLACEMENT CHARACTER}!"]


def test_parquet_gives_a_document_per_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is an extra")
    from pyarrow import parquet

    table = pyarrow.table({"body": [f"row {n}" for n in range(600)], "n": list(range(600))})
    parquet.write_table(table, tmp_path / "a.parquet")
    texts = [text for _, text in documents_of(tmp_path / "a.parquet", text_field="body")]
    assert texts == [f"row {n}" for n in range(600)]
    with pytest.raises(ValueError, match=r"no text in the field 'text' \(its fields: body, n\)"):
        documents_of(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet, row 2 has no text in the field 'text'"):
        documents_of(tmp_path / "b.parquet")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = text_file(tmp_path, "", "a.parquet")
    with pytest.raises(ValueError, match="pip install pyarrow"):
        documents_of(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "line 2 is not JSON"),
        ("[1]", "line 2 is not an object with a field 'text'"),
        ('{"body": "b", "n": 1}', r"line 2 has no text in the field 'text' \(its fields: body, n"),
        ('{"text": 5}', "line 2 has no text.*select another with --text_field"),
    ],
)
def test_a_bad_line_of_jsonl_is_named(tmp_path, line, message):
    path = text_file(tmp_path, f'{{"text": "good"}}\n{line}\n', "a.jsonl")
    with pytest.raises(ValueError, match=rf"a\.jsonl, {message}"):
        documents_of(path)


def test_documents_go_to_splits_by_their_text_wherever_they_stand(tmp_path):
    lines = [json.dumps({"text": f"document {n}"}) for n in range(50)]
    forward = documents_of(text_file(tmp_path, "\n".join(lines), "a.jsonl"))
    backward = documents_of(text_file(tmp_path, "\n".join(lines[::-1]), "b.jsonl"))
    assert forward == backward[::-1]
    assert {split for split, _ in forward} == {"train", "val"}


def test_several_txt_files_are_split_whole_and_one_by_position(tmp_path):
    paths = [text_file(tmp_path, f"text {n}", f"{n}.txt") for n in range(20)]
    documents = documents_of(*paths)
    assert [text for _, text in documents] == [f"text {n}" for n in range(20)]
    assert {split for split, _ in documents} == {"train", "val"}
    assert documents_of(paths[0]) == [("train", "tex"), ("val", "t 0")]


def test_missing_and_unknown_files_are_refused_before_reading(tmp_path):
    with pytest.raises(ValueError, match=r"file not found: .*gone\.txt"):
        text_files.file_documents([tmp_path / "gone.txt"], 0.1)
    path = text_file(tmp_path, "", "a.json")
    with pytest.raises(ValueError, match=r"unknown file type '\.json'; did you mean '\.jsonl'"):
        text_files.file_documents([path], 0.1)
