"""What training reads: checked datasets, the batch of each step, the validation windows."""

import json
import math
import os
import shutil
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from data import dataset as dataset_module
from data.dataset import (
    Dataset,
    Prefetcher,
    TrainingBatches,
    ValidationWindows,
    permute,
    prefetch,
    prepare_if_missing,
)
from data.dataset_writer import Document, write_dataset
from data.tokenizers import ByteTokenizer, CharTokenizer, NotCached
from errors import UserError

FINGERPRINT = "93878f86a14f"
"""How the fingerprint of the dataset `fox` has begun in every version."""

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


# Finding a dataset


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    """A data/ with `ready`, which prepares itself, `asks`, which needs flags, and `bare`."""
    root = tmp_path / "data"
    scripts = {
        "ready": """
            from pathlib import Path
            runs = Path(__file__).parent / "runs"
            def main(argv):
                assert argv == []
                runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
                (Path(__file__).parent / "meta.json").write_text("{}")
        """,
        "asks": """
            import argparse
            def main(argv):
                parser = argparse.ArgumentParser()
                parser.add_argument("--input", required=True)
                parser.parse_args(argv)
        """,
    }
    for name, script in scripts.items():
        (root / name).mkdir(parents=True)
        (root / name / "prepare.py").write_text(script.replace("\n            ", "\n"))
    (root / "bare").mkdir()
    monkeypatch.setattr(dataset_module, "DATA_FOLDER", root)
    return root


def test_a_missing_dataset_is_prepared_once_with_a_line_about_it(data_folder, capsys):
    assert prepare_if_missing("ready", may_run=True) == data_folder / "ready"
    assert "dataset 'ready' is not prepared yet: running" in capsys.readouterr().out
    assert prepare_if_missing("ready", may_run=True) == data_folder / "ready"
    assert capsys.readouterr().out == ""
    assert (data_folder / "ready" / "runs").read_text() == "x"


def test_a_path_to_a_prepared_folder_serves(folder, data_folder, monkeypatch):
    assert prepare_if_missing(str(folder), may_run=True) == folder
    monkeypatch.chdir(folder.parent)
    assert prepare_if_missing("fox", may_run=True) == Path("fox")


def test_a_dataset_that_needs_arguments_says_so(data_folder):
    with pytest.raises(ValueError, match=r"'asks' cannot prepare itself.*prepare\.py --help"):
        prepare_if_missing("asks", may_run=True)


def test_an_unknown_dataset_gets_the_nearest_and_the_choices(data_folder):
    expected = r"'redy'; did you mean 'ready'\? Choices: asks, ready\. A path"
    with pytest.raises(ValueError, match=expected):
        prepare_if_missing("redy", may_run=True)


def test_a_folder_that_is_no_dataset_is_refused(data_folder, tmp_path):
    for name in ("bare", str(tmp_path)):
        with pytest.raises(UserError, match=r"not a prepared dataset: it has no meta\.json"):
            prepare_if_missing(name, may_run=True)


def refuses_to_run(dataset, data_folder, *, may_run=True):
    with pytest.raises(UserError, match=r"run it first: python .*prepare\.py"):
        prepare_if_missing(str(dataset), may_run=may_run)
    assert not list(data_folder.parent.rglob("runs"))


def test_a_script_runs_only_for_the_plain_name_of_a_folder_of_data(data_folder, monkeypatch):
    outside = shutil.copytree(data_folder / "ready", data_folder.parent / "outside")
    monkeypatch.chdir(data_folder.parent)
    for dataset in (
        data_folder / "ready",
        outside,
        "outside",
        "data/ready",
        "./ready",
        "../outside",
        "ready/../ready",
        "ready/",
    ):
        refuses_to_run(dataset, data_folder)
    for dataset in (".", "..", "", "a\0b", "x" * 5000):
        with pytest.raises(UserError):
            prepare_if_missing(dataset, may_run=True)


def test_a_script_never_runs_where_a_checkpoint_names_the_dataset(data_folder):
    refuses_to_run("ready", data_folder, may_run=False)


def test_a_script_never_runs_through_a_symbolic_link(data_folder):
    outside = shutil.copytree(data_folder / "ready", data_folder.parent / "outside")
    (data_folder / "folder_link").symlink_to(outside)
    (data_folder / "bare" / "prepare.py").symlink_to(outside / "prepare.py")
    refuses_to_run("folder_link", data_folder)
    refuses_to_run("bare", data_folder)


def test_the_default_dataset_is_one_of_the_repository():
    assert (dataset_module.DATA_FOLDER / "python_stdlib" / "prepare.py").is_file()


# Opening a dataset


def test_an_open_dataset_has_its_tokens_and_says_what_it_is(folder):
    dataset = Dataset.open(folder, sequence_length=16)
    assert dataset.name == "fox"
    assert dataset.vocab_size == 256
    assert dataset.fingerprint == json.loads((folder / "meta.json").read_text())["fingerprint"]
    assert dataset.tokenizer.decode(dataset.train) == LINE * 20
    assert dataset.tokenizer.decode(dataset.val) == LINE[::-1] * 10
    assert dataset.token_bytes.tolist() == [1] * 256


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
    refused(folder, r"fox is not a prepared dataset: it has no meta\.json")


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
    refused(folder, "has schema_version 99, this code reads 1")
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
    refused(folder, r"meta\.json is damaged \(not all keys are sound\)")


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
    overwrite(folder / "val.bin", 448, 256)
    refused(folder, r"val\.bin holds token 256 at position 448, outside the vocabulary of 256")


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
    refused(folder, r"token_bytes\.npy holds uint16 of the shape \(7,\), but .* has 256 tokens")
    np.save(path, np.full(256, 7, dtype=np.uint16))
    refused(folder, r"token_bytes\.npy has changed .* of the tokenizer 'bytes'")
    np.save(path, np.array([{}] * 256, dtype=object), allow_pickle=True)
    refused(folder, r"cannot read .*token_bytes\.npy")
    path.unlink()
    refused(folder, r"cannot read .*token_bytes\.npy")


def test_a_header_that_claims_more_than_the_file_has_is_refused(folder):
    path = folder / "token_bytes.npy"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(256,), }        ", b"(25600000000,), }"))
    assert path.read_bytes() != content
    refused(folder, r"cannot read .*token_bytes\.npy")


def test_a_changed_tokenizer_is_refused(tmp_path):
    folder = prepare(tmp_path / "fox", CharTokenizer(LINE))
    other = CharTokenizer(LINE.upper()).to_meta()
    change_meta(folder, tokenizer=other)
    refused(folder, r"meta\.json has changed .* its fingerprint is '\w{12}', but its tokenizer")


def test_a_changed_fingerprint_is_refused(folder):
    change_meta(folder, fingerprint="0" * 64)
    refused(folder, r"its fingerprint is '0{12}', but its tokenizer and splits make")


def test_a_dataset_of_an_older_version_opens(folder):
    """It has no digest of its bytes per token; its fingerprint is what it was."""
    meta = json.loads((folder / "meta.json").read_text())
    del meta["token_bytes_sha256"]
    (folder / "meta.json").write_text(json.dumps(meta))
    assert Dataset.open(folder, sequence_length=16).fingerprint == meta["fingerprint"]
    assert meta["fingerprint"][:12] == FINGERPRINT


def test_bytes_per_token_of_a_tokenizer_that_is_not_cached_are_checked_by_digest(
    folder, monkeypatch
):
    def not_cached(meta):
        raise NotCached("not cached")

    monkeypatch.setattr(dataset_module, "tokenizer_from_meta", not_cached)
    Dataset.open(folder, sequence_length=16)
    np.save(folder / "token_bytes.npy", np.full(256, 7, dtype=np.uint16))
    refused(folder, r"token_bytes\.npy has changed")


# The permutation


def keys(seed):
    return np.random.SeedSequence(seed).generate_state(dataset_module.FEISTEL_ROUNDS, np.uint64)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4097])
def test_permute_is_a_permutation(size):
    assert sorted(permute(np.arange(size), size, keys(0))) == list(range(size))


def test_permute_reaches_far_positions_without_the_others():
    size = 10**12 + 39
    positions = np.array([0, 1, size - 1])
    values = permute(positions, size, keys(1))
    assert ((values >= 0) & (values < size)).all()
    assert len(set(values.tolist())) == 3
    np.testing.assert_array_equal(permute(positions[1:], size, keys(1)), values[1:])


def test_permutations_of_few_are_all_about_equally_frequent():
    counts = Counter(tuple(permute(np.arange(4), 4, keys(seed))) for seed in range(2400))
    assert len(counts) == 24
    chi_square = sum((n - 100) ** 2 / 100 for n in counts.values())
    assert chi_square < 60  # 23 degrees of freedom: above 60 once in 30,000


def test_a_permutation_leaves_no_order():
    values = permute(np.arange(10_000), 10_000, keys(2))
    assert abs(np.corrcoef(np.arange(10_000), values)[0, 1]) < 0.05
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.05
    assert (values == np.arange(10_000)).sum() < 10


# The order of training


def batches(tokens=1000, **options):
    settings = {
        "sequence_length": 10,
        "batch_size": 3,
        "gradient_accumulation_steps": 2,
        "data_seed": 1337,
    }
    return TrainingBatches(np.arange(tokens, dtype=np.uint16), **(settings | options))


def starts(batch):
    """First tokens of a batch's sequences; the tokens of `batches` count up."""
    inputs, _ = batch
    return inputs[..., 0].flatten().tolist()


def test_a_batch_has_the_shape_of_its_micro_batches_and_targets_are_next_tokens():
    inputs, targets = batches().batch(0)
    for tensor in (inputs, targets):
        assert tensor.shape == (2, 3, 10)
        assert tensor.dtype == torch.int64
        assert tensor.is_contiguous()
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, inputs[..., :1] + torch.arange(10))


def test_a_batch_is_a_function_of_seed_and_step():
    a, b = batches(), batches()
    forward = [starts(a.batch(step)) for step in range(40)]
    backward = [starts(b.batch(step)) for step in reversed(range(40))]
    assert forward == backward[::-1]
    assert starts(batches(data_seed=1338).batch(0)) != forward[0]


def test_an_epoch_has_every_window_once_and_windows_are_disjoint():
    order = batches()
    windows = order.windows_per_epoch
    assert windows == 98  # 99 fit; one makes room for the offset
    firsts = order.window_starts(np.arange(3 * windows))
    for epoch in np.split(firsts, 3):
        ordered = np.sort(epoch)
        assert (np.diff(ordered) == 10).all()
        assert ordered[0] >= 0
        assert ordered[-1] + 10 < 1000
        assert (epoch != ordered).any()


def test_epochs_differ_in_order_and_in_where_windows_begin():
    order = batches()
    epochs = np.split(order.window_starts(np.arange(60 * order.windows_per_epoch)), 60)
    offsets = {int(epoch.min()) for epoch in epochs}
    assert offsets <= set(range(20))
    assert len(offsets) > 15
    orders = [tuple(epoch - epoch.min()) for epoch in epochs]
    assert len(set(orders)) == 60


def test_offsets_reach_both_ends_of_the_split():
    order = batches()
    firsts = order.window_starts(np.arange(200 * order.windows_per_epoch))
    assert firsts.min() == 0
    assert firsts.max() + 10 == 999


@pytest.mark.parametrize(("tokens", "windows"), [(11, 1), (20, 1), (21, 1), (31, 2)])
def test_short_splits_have_windows_too(tokens, windows):
    order = batches(tokens)
    assert order.windows_per_epoch == windows
    for step in range(5):
        inputs, targets = order.batch(step)
        assert inputs.min() >= 0
        assert targets.max() < tokens
        assert torch.equal(targets, inputs + 1)


def test_the_same_total_in_other_micro_batches_sees_the_same_sequences():
    reference = [starts(batches().batch(step)) for step in range(30)]
    for size, count in ((6, 1), (1, 6), (2, 3)):
        order = batches(batch_size=size, gradient_accumulation_steps=count)
        assert [starts(order.batch(step)) for step in range(30)] == reference


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_share_what_one_would_see(workers):
    settings = {"gradient_accumulation_steps": 4}
    whole = batches(**settings)
    shares = [batches(**settings, rank=r, world_size=workers) for r in range(workers)]
    for step in range(20):
        parts = [share.batch(step) for share in shares]
        assert all(len(inputs) == 4 // workers for inputs, _ in parts)
        assert sum((starts(part) for part in parts), []) == starts(whole.batch(step))


def test_micro_batches_that_do_not_divide_among_workers_are_refused():
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps=2.*among 3 workers"):
        batches(world_size=3)


def test_a_far_step_takes_no_longer_than_the_first():
    order = batches()
    order.batch(0)
    began = time.perf_counter()
    inputs, _ = order.batch(10**12)
    assert time.perf_counter() - began < 0.5
    assert inputs.shape == (2, 3, 10)


# The prefetcher


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_prefetch_gives_the_batches_of_the_steps_in_order():
    order = batches()
    with prefetch(order, 5, 12, "cpu") as upcoming:
        got = [starts(batch) for batch in upcoming]
    assert got == [starts(order.batch(step)) for step in range(5, 12)]
    assert prefetch_threads() == []


def test_after_its_end_a_prefetcher_stays_at_its_end():
    upcoming = prefetch(batches(), 0, 1, "cpu")
    next(upcoming)
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(upcoming)
    assert prefetch_threads() == []


def test_batches_are_made_ahead_but_no_further_than_depth():
    made = []

    def source():
        for step in range(100):
            made.append(step)
            yield batches().batch(step)

    def wait_for(count):
        deadline = time.monotonic() + 5
        while len(made) < count and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.05)
        return len(made)

    with Prefetcher(source(), "cpu", depth=3) as upcoming:
        assert wait_for(3) == 3
        next(upcoming)
        assert wait_for(4) == 4
    assert len(made) <= 5


def test_what_the_thread_raises_reaches_the_reader():
    def source():
        yield batches().batch(0)
        raise OSError("the disk is gone")

    with Prefetcher(source(), "cpu") as upcoming:
        next(upcoming)
        with pytest.raises(OSError, match="the disk is gone"):
            next(upcoming)
        with pytest.raises(StopIteration):
            next(upcoming)
    assert prefetch_threads() == []


def interrupted_reading(upcoming):
    with upcoming:
        next(upcoming)
        raise KeyboardInterrupt


def test_leaving_early_ends_the_thread_whatever_the_reader_raised():
    upcoming = prefetch(batches(), 0, 10**9, "cpu")
    with pytest.raises(KeyboardInterrupt):
        interrupted_reading(upcoming)
    assert prefetch_threads() == []
    upcoming.close()
    with pytest.raises(StopIteration):
        next(upcoming)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_batches_arrive_on_the_device_as_they_were():
    order = batches()
    with prefetch(order, 0, 50, "cuda") as upcoming:
        for step, (inputs, targets) in enumerate(upcoming):
            assert inputs.is_cuda
            assert torch.equal(inputs.cpu(), order.batch(step)[0])
            assert torch.equal(targets.cpu(), order.batch(step)[1])


# Validation


def validation(tokens=1000, **options):
    settings = {"sequence_length": 10, "batch_size": 4, "eval_tokens": 0}
    token_bytes = np.arange(tokens, dtype=np.uint16) % 5
    return ValidationWindows(np.arange(tokens), token_bytes, **(settings | options))


def all_starts(windows):
    return sum((starts(batch) for batch in windows), [])


def test_all_windows_are_read_once_in_order():
    windows = validation()
    assert all_starts(windows) == list(range(0, 990, 10))
    assert all_starts(windows) == list(range(0, 990, 10))
    shapes = [tuple(inputs.shape) for inputs, _ in windows]
    assert shapes == [(4, 10)] * 24 + [(3, 10)]
    assert len(windows) == 25


def test_targets_follow_inputs():
    for inputs, targets in validation():
        assert inputs.dtype == targets.dtype == torch.int64
        assert torch.equal(targets, inputs + 1)


@pytest.mark.parametrize(
    ("eval_tokens", "windows"), [(1, 1), (10, 1), (11, 2), (495, 50), (990, 99), (10**9, 99)]
)
def test_eval_tokens_are_rounded_up_to_windows_spread_over_the_split(eval_tokens, windows):
    part = validation(eval_tokens=eval_tokens)
    firsts = all_starts(part)
    assert part.tokens == 10 * windows == 10 * len(firsts)
    assert all(first % 10 == 0 for first in firsts)
    gaps = np.diff([*firsts, 990])
    assert gaps.min() >= 10
    assert gaps.max() - gaps.min() <= 10


def test_bytes_are_those_of_the_targets():
    part = validation(eval_tokens=200)
    expected = sum(int((targets % 5).sum()) for _, targets in part)
    assert part.bytes == expected > 0


def test_bits_per_byte_of_a_uniform_guess_over_bytes_are_eight(folder):
    dataset = Dataset.open(folder, 16)
    part = ValidationWindows(dataset.val, dataset.token_bytes, 16, 4)
    nats = sum(targets.numel() * math.log(256) for _, targets in part)
    assert nats / math.log(2) / part.bytes == pytest.approx(8)


def test_the_fingerprint_tells_sets_apart_and_nothing_else():
    base = validation(eval_tokens=100).fingerprint
    assert validation(eval_tokens=100, batch_size=7).fingerprint == base
    assert validation(eval_tokens=110).fingerprint != base
    assert validation(eval_tokens=100, sequence_length=20).fingerprint != base
    changed = np.arange(1000)
    changed[5] = 7
    token_bytes = np.ones(1000, dtype=np.uint16)
    assert ValidationWindows(changed, token_bytes, 10, 4, 100).fingerprint != base
    assert ValidationWindows(np.arange(1000), token_bytes, 10, 4, 100).fingerprint == base
