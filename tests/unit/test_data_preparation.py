"""Preparing datasets: what is written, from which text, into which split, and what is refused."""

import functools
import hashlib
import importlib.util
import json
import platform
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest

from data import dataset_writer, prepare_scripts, sources
from data.dataset_writer import Document, ordered_map, split_by_hash, write_dataset
from data.tokenizers import ByteTokenizer, CharTokenizer, TiktokenTokenizer
from errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared" / "data"
SHAKESPEARE = SHARED / "tinyshakespeare" / "input.txt"


def prepare_module(name):
    path = REPOSITORY / "data" / name / "prepare.py"
    spec = importlib.util.spec_from_file_location(f"prepare_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def gpt2(monkeypatch):
    cache = SHARED / "tiktoken_cache"
    if not cache.is_dir():
        pytest.skip(f"no cached vocabulary of gpt2 in {cache}")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    return TiktokenTokenizer("gpt2")


@pytest.fixture
def shakespeare():
    if not SHAKESPEARE.is_file():
        pytest.skip(f"no copy of Tiny Shakespeare at {SHAKESPEARE}")
    return SHAKESPEARE


def write(folder, documents, tokenizer=None, **options):
    options = {"name": "made", "source": "a test", "separate": True} | options
    return write_dataset(documents, tokenizer or ByteTokenizer(), folder, **options)


def tokens_of(folder, split):
    meta = json.loads((folder / "meta.json").read_text())
    return np.fromfile(folder / f"{split}.bin", dtype=meta["dtype"])


def text_of(folder, split):
    """The text of a split of a dataset of bytes."""
    return ByteTokenizer().decode(tokens_of(folder, split))


DOCUMENTS = [
    Document("train", ("to be", " or not")),
    Document("val", ("é",)),
    Document("train", ("!",)),
]


# The writer


def test_documents_are_written_in_order_to_their_splits(tmp_path):
    write(tmp_path, DOCUMENTS)
    assert text_of(tmp_path, "train") == "to be or not!"
    assert text_of(tmp_path, "val") == "é"


def test_meta_data_say_what_is_in_the_files(tmp_path):
    meta = write(tmp_path, DOCUMENTS)
    assert meta == json.loads((tmp_path / "meta.json").read_text())
    assert meta["dataset"] == "made"
    assert meta["source"] == "a test"
    assert meta["schema_version"] == dataset_writer.SCHEMA_VERSION
    assert meta["python_version"] == platform.python_version()
    assert meta["tokenizer"] == {"name": "bytes"}
    assert (meta["vocab_size"], meta["dtype"]) == (256, "uint16")
    digest = hashlib.sha256((tmp_path / "val.bin").read_bytes()).hexdigest()
    assert meta["splits"]["val"] == {"tokens": 2, "bytes": 2, "documents": 1, "sha256": digest}
    train = meta["splits"]["train"]
    assert (train["tokens"], train["bytes"], train["documents"]) == (13, 13, 2)


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
    with pytest.raises(ValueError, match=f"the {split} split got no text out of 2 documents"):
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


# Text files


def text_file(tmp_path, content, name="a.txt"):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_pieces_are_bounded_and_give_the_text_unchanged(tmp_path):
    text = "one  two\r\n\n three\rfour é🎭 " * 50 + "x" * 100
    pieces = list(sources.read_pieces(text_file(tmp_path, text), characters=16))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 32


def test_pieces_do_not_change_the_tokens(tmp_path, gpt2):
    text = "It's  here:\n\n   I'll say 1234 times...\t\"Ha!\" \n (really) é🎭 don't\r\n" * 20
    pieces = sources.read_pieces(text_file(tmp_path, text), characters=40)
    tokens = np.concatenate([gpt2.encode(piece) for piece in pieces])
    np.testing.assert_array_equal(tokens, gpt2.encode(text))


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    path = text_file(tmp_path, b"caf\xe9 au lait")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 text .*0xe9.*iconv"):
        list(sources.read_pieces(path))


def test_split_by_position_cuts_at_the_character(tmp_path, monkeypatch):
    short_pieces = functools.partial(sources.read_pieces, characters=7)
    monkeypatch.setattr(sources, "read_pieces", short_pieces)
    text = "".join(chr(0x400 + n) for n in range(101))
    train, val = sources.split_by_position(text_file(tmp_path, text), 0.25)
    assert (train.split, val.split) == ("train", "val")
    assert "".join(train.pieces) == text[:75]
    assert "".join(val.pieces) == text[75:]


# Files of documents


def documents_of(*paths, val_fraction=0.5, text_field="text"):
    documents = sources.file_documents(paths, val_fraction, text_field)
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
        ('{"text": 5}', "line 2 has no text.*name another with --text_field"),
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
    with pytest.raises(ValueError, match=r"no file .*gone\.txt"):
        sources.file_documents([tmp_path / "gone.txt"], 0.1)
    path = text_file(tmp_path, "", "a.json")
    with pytest.raises(ValueError, match=r"unknown kind of file '\.json'; did you mean '\.jsonl'"):
        sources.file_documents([path], 0.1)


# data/text


def test_text_prepares_chars_from_several_kinds_of_file(tmp_path):
    text_file(tmp_path, "".join(f'{{"text": "é{n} "}}\n' for n in range(40)), "a.jsonl")
    text_file(tmp_path, "Zz", "b.txt")
    files = [str(tmp_path / name) for name in ("a.jsonl", "b.txt")]
    flags = ["--name", "mine", "--tokenizer", "chars", "--val_fraction", "0.3"]
    prepare_module("text").main(["--input", *files, *flags, "--out", str(tmp_path / "out")])
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta["dataset"] == "mine"
    assert meta["source"] == "a.jsonl, b.txt"
    assert meta["tokenizer"] == {"name": "chars", "characters": " 0123456789Zzé"}
    documents = meta["splits"]["train"]["documents"], meta["splits"]["val"]["documents"]
    assert sum(documents) == 41
    assert min(documents) > 0


def test_text_goes_to_a_folder_of_data_by_its_name(tmp_path, monkeypatch):
    module = prepare_module("text")
    monkeypatch.setattr(module, "DATA_FOLDER", tmp_path)
    path = text_file(tmp_path, "some text")
    module.main(["--input", str(path), "--name", "mine", "--tokenizer", "bytes"])
    assert text_of(tmp_path / "mine", "train") + text_of(tmp_path / "mine", "val") == "some text"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a/b", "plain folder name"),
        ("..", "plain folder name"),
        ("shakespeare", "prepare.py of its own"),
        ("text", "prepare.py of its own"),
    ],
)
def test_text_refuses_a_name_that_is_not_for_it(tmp_path, name, message):
    path = text_file(tmp_path, "some text")
    with pytest.raises(ValueError, match=message):
        prepare_module("text").main(["--input", str(path), "--name", name])


@pytest.mark.parametrize("flag", ["--val_fraction=0", "--val_fraction=1", "--workers=0"])
def test_flags_out_of_range_are_refused(flag, capsys):
    with pytest.raises(SystemExit):
        prepare_module("text").main(["--input", "a.txt", "--name", "mine", flag])
    assert "is not above 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "script", sorted(REPOSITORY.glob("data/*/prepare.py")), ids=lambda script: script.parent.name
)
def test_every_prepare_script_runs_from_any_directory(script, tmp_path):
    subprocess.run([sys.executable, script, "--help"], cwd=tmp_path, check=True)


# data/python_stdlib


@pytest.fixture
def library(tmp_path):
    library = tmp_path / "library"
    kept = [f"module{n}.py" for n in range(60)] + ["json/decoder.py"]
    left_out = [
        "test/test_json.py",
        "json/tests/data.py",
        "idlelib/idle_test/case.py",
        "site-packages/numpy.py",
        "dist-packages/apt.py",
        "config-3.11-linux/build.py",
        "_sysconfigdata__linux.py",
        "sitecustomize.py",
        "notes.txt",
    ]
    for name in kept + left_out:
        path = library / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n")
    (library / "latin.py").write_bytes(b"# -*- coding: latin-1 -*- \xe9\n")
    return library


def test_stdlib_takes_the_source_and_leaves_out_the_rest(library):
    documents = list(prepare_module("python_stdlib").documents(library))
    texts = ["".join(document.pieces) for document in documents]
    assert texts == sorted(texts)
    assert set(texts) == {f"# module{n}.py\n" for n in range(60)} | {"# json/decoder.py\n"}


def test_stdlib_is_split_by_path_and_its_fingerprint_follows_the_content(
    library, tmp_path, monkeypatch
):
    module = prepare_module("python_stdlib")
    monkeypatch.setattr(module.sysconfig, "get_paths", lambda: {"stdlib": str(library)})

    def prepare():
        module.main(["--out", str(tmp_path / "out")])
        return json.loads((tmp_path / "out" / "meta.json").read_text())

    first, again = prepare(), prepare()
    assert first == again
    assert platform.python_version() in first["source"]
    assert first["tokenizer"] == {"name": "bytes"}
    val = text_of(tmp_path / "out", "val")
    (library / "module0.py").write_text("# changed\n")
    changed = prepare()
    assert changed["fingerprint"] != first["fingerprint"]
    assert text_of(tmp_path / "out", "val").replace("# changed\n", "# module0.py\n") == val


def test_stdlib_of_this_python_prepares_as_a_script_from_anywhere(tmp_path):
    script = REPOSITORY / "data" / "python_stdlib" / "prepare.py"
    subprocess.run([sys.executable, script, "--out", "out"], cwd=tmp_path, check=True)
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    train, val = (meta["splits"][split]["bytes"] for split in ("train", "val"))
    assert train > 5_000_000
    assert 0.01 < val / (train + val) < 0.12


# data/shakespeare and data/shakespeare_char


def test_shakespeare_char_has_the_counts_of_nanogpt(shakespeare, tmp_path):
    module = prepare_module("shakespeare_char")
    module.main(["--input", str(shakespeare), "--out", str(tmp_path)])
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["vocab_size"] == 65
    assert [meta["splits"][s]["tokens"] for s in ("train", "val")] == [1_003_854, 111_540]
    tokenizer = CharTokenizer(meta["tokenizer"]["characters"])
    text = shakespeare.read_text()
    assert tokenizer.decode(tokens_of(tmp_path, "val")) == text[int(len(text) * 0.9) :]


def test_shakespeare_has_the_counts_of_nanogpt(shakespeare, gpt2, tmp_path):
    prepare_module("shakespeare").main(["--input", str(shakespeare), "--out", str(tmp_path)])
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["tokenizer"] == {"name": "gpt2"}
    assert [meta["splits"][s]["tokens"] for s in ("train", "val")] == [301_966, 36_059]
    assert sum(meta["splits"][s]["bytes"] for s in ("train", "val")) == 1_115_394


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A small text in the place of Tiny Shakespeare, to be downloaded from a file."""
    path = text_file(tmp_path, "All the world's a stage", "stage.txt")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(sources, "TINY_SHAKESPEARE_URL", path.as_uri())
    monkeypatch.setattr(sources, "TINY_SHAKESPEARE_SHA256", digest)
    return path


def test_a_given_file_is_taken_where_it_is(stand_in, tmp_path):
    assert sources.tiny_shakespeare(stand_in, tmp_path) == stand_in
    assert not (tmp_path / "input.txt").exists()


def test_without_a_file_it_is_downloaded_once(stand_in, tmp_path):
    path = sources.tiny_shakespeare(None, tmp_path)
    assert path == tmp_path / "input.txt"
    assert path.read_bytes() == stand_in.read_bytes()
    stand_in.unlink()
    assert sources.tiny_shakespeare(None, tmp_path) == path


def test_another_file_is_refused_wherever_it_comes_from(stand_in, tmp_path):
    wrong = text_file(tmp_path, "All the worlds", "input.txt")
    for given in (wrong, None):
        with pytest.raises(ValueError, match="not Tiny Shakespeare: its sha256 is"):
            sources.tiny_shakespeare(given, tmp_path)
    with pytest.raises(ValueError, match=r"no file .*gone\.txt"):
        sources.tiny_shakespeare(tmp_path / "gone.txt", tmp_path)


def test_a_wrong_download_is_not_kept(stand_in, tmp_path):
    stand_in.write_text("something else")
    with pytest.raises(ValueError, match="delivered a file whose sha256 is"):
        sources.tiny_shakespeare(None, tmp_path)
    assert not (tmp_path / "input.txt").exists()


def test_without_a_network_the_error_says_what_to_do(stand_in, tmp_path):
    stand_in.unlink()
    with pytest.raises(ValueError, match="cannot download.*--input"):
        sources.tiny_shakespeare(None, tmp_path)


# data/openwebtext and data/fineweb_edu


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the package `datasets`; records what was asked of it."""
    asked = []

    def load_dataset(path, name=None, **options):
        asked.append((path, name, options))
        return ({"text": f"page {n}", "url": "u"} for n in range(1000))

    fake = types.ModuleType("datasets")
    fake.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return asked


@pytest.mark.parametrize(
    ("dataset", "repository", "configuration"),
    [
        ("openwebtext", "Skylion007/openwebtext", None),
        ("fineweb_edu", "HuggingFaceFW/fineweb-edu", "sample-10BT"),
    ],
)
def test_hub_datasets_are_streamed_through_gpt2(
    hub, gpt2, tmp_path, dataset, repository, configuration
):
    flags = ["--max_documents", "300", "--val_fraction", "0.1", "--out", str(tmp_path)]
    prepare_module(dataset).main(flags)
    assert hub == [(repository, configuration, {"split": "train", "streaming": True})]
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["dataset"] == dataset
    assert repository in meta["source"]
    pages = []
    for split in ("train", "val"):
        tokens = tokens_of(tmp_path, split)
        assert tokens[-1] == gpt2.end_of_text
        ends = np.flatnonzero(tokens == gpt2.end_of_text)
        pages += [gpt2.decode(page) for page in np.split(tokens, ends + 1)[:-1]]
    assert sorted(pages) == sorted(f"page {n}" for n in range(300))


def test_hub_without_datasets_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        list(sources.hub_documents("a/b", 0.1))


def test_a_hub_out_of_reach_says_what_to_do(hub, monkeypatch):
    def unreachable(path, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", unreachable)
    with pytest.raises(ValueError, match="no route to host.*data/text/prepare.py"):
        list(sources.hub_documents("a/b", 0.1))


# Scripts


@pytest.mark.parametrize(
    "name",
    ["fineweb_edu", "openwebtext", "python_stdlib", "shakespeare", "shakespeare_char", "text"],
)
def test_help_says_what_the_script_makes_and_where_it_goes(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as stop:
        prepare_module(name).main(["--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert "Prepare" in output
    assert str(REPOSITORY / "data") in output


def test_a_script_tells_a_user_error_in_one_line():
    def main():
        raise UserError("the fix")

    with pytest.raises(SystemExit, match="^error: the fix$"):
        prepare_scripts.run_script(main)
