"""What workers agree on before they can send each other messages."""

from __future__ import annotations

import datetime
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from training.workers import _name_of_start


def names(store: dist.Store, size: int) -> list[str]:
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: _name_of_start(store, rank, size), range(size)))


def test_workers_agree_on_a_new_name_at_each_start() -> None:
    """Also after a start in which some never came that far."""
    store = dist.HashStore()
    store.set_timeout(datetime.timedelta(seconds=20))
    store.set("call_2", "of a worker that was killed before it was answered")
    found = [names(store, 4) for _ in range(3)]
    assert [len(set(of_start)) for of_start in found] == [1, 1, 1]
    assert len({of_start[0] for of_start in found}) == 3


def test_a_worker_that_does_not_start_is_named() -> None:
    store = dist.HashStore()
    store.set_timeout(datetime.timedelta(seconds=0.2))
    with pytest.raises(RuntimeError, match="Workers that did not start: 1, 2."):
        _name_of_start(store, 0, 3)


def test_a_single_worker_waits_for_nobody() -> None:
    assert _name_of_start(dist.HashStore(), 0, 1)
