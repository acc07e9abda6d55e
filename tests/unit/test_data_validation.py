"""The windows that validation reads, and their bytes."""

import math

import numpy as np
import pytest
import torch

from data.tokenizers import ByteTokenizer
from data.validation import ValidationWindows
from tests.counting import starts


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


def test_bits_per_byte_of_a_uniform_guess_over_bytes_are_eight():
    tokenizer = ByteTokenizer()
    tokens = tokenizer.encode("the quick brown fox é " * 20)
    part = ValidationWindows(tokens, tokenizer.token_bytes(), 16, 4)
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


@pytest.mark.parametrize(("bytes_each", "blocks"), [(1, 1), (10, 2), (100, 24), (1000, 100)])
def test_blocks_hold_4_kb_of_text_or_a_window(bytes_each, blocks):
    token_bytes = np.full(1001, bytes_each, dtype=np.uint16)
    part = ValidationWindows(np.arange(1001), token_bytes, 10, 4)  # 100 windows
    losses = np.random.default_rng(0).random(100)
    means = part.block_means(losses)
    assert len(means) == blocks
    sizes = [len(own) for own in np.array_split(losses, len(means))]
    assert max(sizes) - min(sizes) <= 1
    assert means @ sizes / 100 == pytest.approx(losses.mean())
