"""The batch of each step: a permutation of windows, a function of seed and step alone."""

import time
from collections import Counter

import numpy as np
import pytest
import torch

from data.batches import FEISTEL_ROUNDS, permute
from tests.counting import batches, starts

# The permutation


def keys(seed):
    return np.random.SeedSequence(seed).generate_state(FEISTEL_ROUNDS, np.uint64)


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


@pytest.mark.parametrize(
    ("workers", "shape"), [(1, (4, 6)), (2, (2, 6)), (4, (1, 6)), (8, (1, 3)), (6, (2, 2))]
)
def test_workers_share_what_one_would_see(workers, shape):
    """Micro-batches are dealt out whole as far as they go, then their sequences."""
    settings = {"gradient_accumulation_steps": 4, "batch_size": 6}
    whole = batches(**settings)
    shares = [batches(**settings, rank=r, world_size=workers) for r in range(workers)]
    for step in range(20):
        parts = [share.batch(step) for share in shares]
        assert all(inputs.shape[:2] == shape for inputs, _ in parts)
        read = sum((starts(part) for part in parts), [])
        assert sorted(read) == sorted(starts(whole.batch(step)))
        if shape[1] == 6:
            assert read == starts(whole.batch(step))


@pytest.mark.parametrize(
    ("settings", "fixes"),
    [
        ({"world_size": 4}, "use batch_size=2 or 4, or gradient_accumulation_steps=4."),
        (
            {"world_size": 4, "batch_size": 1, "gradient_accumulation_steps": 6},
            "use batch_size=2, or gradient_accumulation_steps=4 or 8.",
        ),
    ],
)
def test_a_step_that_does_not_divide_among_workers_is_refused(settings, fixes):
    with pytest.raises(ValueError, match="does not divide among 4 workers") as error:
        batches(**settings)
    assert str(error.value).endswith(fixes)


def test_a_far_step_takes_no_longer_than_the_first():
    order = batches()
    order.batch(0)
    began = time.perf_counter()
    inputs, _ = order.batch(10**12)
    assert time.perf_counter() - began < 0.5
    assert inputs.shape == (2, 3, 10)
