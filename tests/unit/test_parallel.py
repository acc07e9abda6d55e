"""What one of several workers holds, seen from one process: messages go nowhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from model_builder import GPT
from recipe.optimizers import make_optimizer
from recipe.parameters import local
from tests.tiny import tiny_config
from training.parallel import Sharded
from training.updates import owners_of
from training.workers import Workers
from training_config import TrainingConfig

SIZE = 4
CPU = torch.device("cpu")


@pytest.fixture(params=[0, 3])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    """One of four."""
    store = FakeStore()
    dist.init_process_group("fake", store=store, rank=request.param, world_size=SIZE)
    joined = Workers(request.param, SIZE, request.param, SIZE, store)
    yield joined.arranged(60.0, 1)
    dist.destroy_process_group()


def test_initial_weights_are_slices_of_those_of_one_process(workers: Workers) -> None:
    config = tiny_config(n_layer=2, residual="hyper_connections", weight_tying=True)
    torch.manual_seed(1)
    whole = dict(GPT(config).named_parameters())
    torch.manual_seed(1)
    network = Sharded(workers, CPU).new_model(config)
    sliced = dict(network.named_parameters())
    assert sliced.keys() == whole.keys()
    for name, parameter in sliced.items():
        assert isinstance(parameter, DTensor) == (whole[name].ndim > 0), name
        expected = whole[name].detach()
        if whole[name].ndim:
            rows = -(-len(expected) // SIZE)  # the last workers may have fewer, or none
            expected = expected[workers.rank * rows : (workers.rank + 1) * rows]
        assert torch.equal(local(parameter), expected), name


def test_only_one_block_is_whole_at_a_time(workers: Workers) -> None:
    """The others have been sharded when a block is made."""
    placement, whole_blocks = Sharded(workers, CPU), []
    place = placement._place_block

    def counted(name: str, block: torch.nn.Module) -> None:
        made = [*blocks, block]
        whole_blocks.append(sum(not isinstance(next(b.parameters()), DTensor) for b in made))
        place(name, block)
        blocks.append(block)

    blocks: list[torch.nn.Module] = []
    placement._place_block = counted
    placement.new_model(tiny_config(n_layer=3, mtp="sequential"))
    assert whole_blocks == [1, 1, 1, 1]


def test_what_an_optimizer_keeps_is_divided(workers: Workers) -> None:
    config = tiny_config(n_layer=2)
    whole = GPT(config).num_parameters()
    for name in ("adamw", "muon"):
        placement = Sharded(workers, CPU)
        network = placement.new_model(config)
        optimizer = make_optimizer(network, TrainingConfig(optimizer=name))
        updates = placement.updates(network, optimizer)
        own = sum(parameter.numel() for parameter in updates.own.values())
        assert own == pytest.approx(whole / SIZE, rel=0.2)
        assert not any(isinstance(p, DTensor) for p in updates.own.values())
        updated = [p for group in optimizer.param_groups for p in group["params"]]
        assert {id(p) for p in updated} == {id(p) for p in updates.own.values()}


def test_every_worker_updates_about_as_much() -> None:
    sizes = {"a": 10, "b": 9, "c": 5, "d": 4, "e": 1, "scalar": 0}
    owners = owners_of(sizes, 3)
    assert list(owners) == list(sizes)
    loads = [sum(sizes[name] for name in sizes if owners[name] == rank) for rank in range(3)]
    assert sorted(loads) == [9, 10, 10]
