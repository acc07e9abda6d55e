"""Batches made ahead on a thread."""

import threading
import time

import pytest
import torch

from data.prefetch import Prefetcher, prefetch
from tests.counting import batches, starts


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_batches_arrive_on_the_device_as_they_were():
    order = batches()
    with prefetch(order, 0, 50, "cuda") as upcoming:
        for step, (inputs, targets) in enumerate(upcoming):
            assert inputs.is_cuda
            assert torch.equal(inputs.cpu(), order.batch(step)[0])
            assert torch.equal(targets.cpu(), order.batch(step)[1])
