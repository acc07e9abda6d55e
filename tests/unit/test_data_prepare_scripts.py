"""The prepare scripts: their flags, and what each of them makes."""

import importlib.util
import json
import platform
import subprocess
import sys

import numpy as np
import pytest

from data.tokenizers import CharTokenizer
from tests.prepared import REPOSITORY, SHARED, text_file, text_of, tokens_of


def prepare_module(name):
    path = REPOSITORY / "data" / name / "prepare.py"
    spec = importlib.util.spec_from_file_location(f"prepare_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Every script


@pytest.mark.parametrize(
    "name",
    [
        *("fineweb", "fineweb_100b", "fineweb_edu", "openwebtext"),
        *("python_stdlib", "shakespeare", "shakespeare_char", "text"),
    ],
)
def test_help_says_what_the_script_makes_and_where_it_goes(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as stop:
        prepare_module(name).main(["--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert "Prepare" in output
    assert str(REPOSITORY / "data") in output


def test_a_script_tells_a_user_error_in_one_line(tmp_path):
    command = [sys.executable, REPOSITORY / "data/text/prepare.py", "--name=x", "--input=gone.txt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "file not found: gone.txt.\n")


@pytest.mark.parametrize(
    "script", sorted(REPOSITORY.glob("data/*/prepare.py")), ids=lambda script: script.parent.name
)
def test_every_prepare_script_runs_from_any_directory(script, tmp_path):
    subprocess.run([sys.executable, script, "--help"], cwd=tmp_path, check=True)


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
    assert tokens_of(tmp_path / "mine", "train")[-1] == 256


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a/b", "plain folder name"),
        ("..", "plain folder name"),
        ("shakespeare", "its own prepare.py"),
        ("text", "its own prepare.py"),
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
    assert first["tokenizer"] == {"name": "bytes", "end_of_text": True}
    ends = sum((tokens_of(tmp_path / "out", split) == 256).sum() for split in ("train", "val"))
    assert ends == 61  # a file each
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


@pytest.fixture
def shakespeare():
    path = SHARED / "tinyshakespeare" / "input.txt"
    if not path.is_file():
        pytest.skip(f"no copy of Tiny Shakespeare at {path}")
    return path


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


# data/openwebtext and data/fineweb*


@pytest.mark.parametrize(
    ("dataset", "repository", "configuration"),
    [
        ("openwebtext", "Skylion007/openwebtext", None),
        ("fineweb", "HuggingFaceFW/fineweb", "sample-10BT"),
        ("fineweb_100b", "HuggingFaceFW/fineweb", "sample-100BT"),
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
