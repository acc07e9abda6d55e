"""Texts from the network: what is kept, and what is said where nothing comes."""

import hashlib
import sys

import pytest

from data import downloads
from tests.prepared import text_file


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A small text in the place of Tiny Shakespeare, to be downloaded from a file."""
    path = text_file(tmp_path, "All the world's a stage", "stage.txt")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(downloads, "TINY_SHAKESPEARE_URL", path.as_uri())
    monkeypatch.setattr(downloads, "TINY_SHAKESPEARE_SHA256", digest)
    return path


def test_a_given_file_is_taken_where_it_is(stand_in, tmp_path):
    assert downloads.tiny_shakespeare(stand_in, tmp_path) == stand_in
    assert not (tmp_path / "input.txt").exists()


def test_without_a_file_it_is_downloaded_once(stand_in, tmp_path):
    path = downloads.tiny_shakespeare(None, tmp_path)
    assert path == tmp_path / "input.txt"
    assert path.read_bytes() == stand_in.read_bytes()
    stand_in.unlink()
    assert downloads.tiny_shakespeare(None, tmp_path) == path


def test_another_file_is_refused_wherever_it_comes_from(stand_in, tmp_path):
    wrong = text_file(tmp_path, "All the worlds", "input.txt")
    for given in (wrong, None):
        with pytest.raises(ValueError, match="not Tiny Shakespeare: its sha256 is"):
            downloads.tiny_shakespeare(given, tmp_path)
    with pytest.raises(ValueError, match=r"file not found: .*gone\.txt"):
        downloads.tiny_shakespeare(tmp_path / "gone.txt", tmp_path)


def test_a_wrong_download_is_not_kept(stand_in, tmp_path):
    stand_in.write_text("something else")
    with pytest.raises(ValueError, match="returned a file with the sha256"):
        downloads.tiny_shakespeare(None, tmp_path)
    assert not (tmp_path / "input.txt").exists()


def test_without_a_network_the_error_says_what_to_do(stand_in, tmp_path):
    stand_in.unlink()
    with pytest.raises(ValueError, match="cannot download") as raised:
        downloads.tiny_shakespeare(None, tmp_path)
    assert f"python {tmp_path / 'prepare.py'} --input=FILE" in str(raised.value)


def test_hub_without_datasets_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        list(downloads.hub_documents("a/b", 0.1))


def test_a_hub_out_of_reach_says_what_to_do(hub, monkeypatch):
    def unreachable(path, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", unreachable)
    with pytest.raises(ValueError, match="no route to host.*data/text/prepare.py"):
        list(downloads.hub_documents("a/b", 0.1))
