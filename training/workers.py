"""Workers: the processes that train one model together, each on its share of every batch.

`torchrun` starts them and gives each a rank. What each holds of the model, `parallel` says. One
process without torchrun is a single worker, for which all of this does nothing.

A worker that acted on its own clock or its own signals would leave the others waiting, so such
decisions are made together: see `any` and `clock`.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import datetime
import os
import re
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NoReturn, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._pytree import tree_flatten, tree_unflatten

from errors import UserError

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1  # of prctl(2)

GRACE_SECONDS = 2.0
"""How long a failing worker waits for the others: for their timeouts, which expire at about the
same time, or for one of them to print why the run ends."""

_FIRST_IS_DONE = "first_is_done"

_REPORTED = "reported"
"""Key in the store: the exit status of a worker that reports a UserError."""

REFUSAL_SECONDS = 5.0
"""How long to wait for an answer from the address of torchrun's store."""

_OF_COMMUNICATION = re.compile(r"gloo|nccl|pair closure|timed out|timeout", re.IGNORECASE)
"""What the text of a RuntimeError has if workers could not exchange a message."""

POLL_SECONDS = 0.01
"""Between two looks of a worker at what others left in the store."""

SETTLING_SECONDS = 0.05
"""How long the threads of a backend get to release the tensors of completed messages."""


@dataclasses.dataclass(frozen=True)
class Workers:
    """The workers of a run, as one of them sees them.

    Attributes:
        rank: Which one this is, from 0.
        size: How many there are.
        local_rank: Which one this is among those on the same machine.
        local_size: How many there are on it.
        store: Where workers leave notes for each other; None for a single one.
        group: The process group for messages; None: the default one, with torch's timeout.
        timeout: How long its messages may take; None: torch's.
        tensor: How many workers, of ranks that follow each other, share the weights of each block
            and train on the same sequences.
        tensor_group: Those of them that share with this one.
        data_group: Those that have the same share of the weights as this one.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    store: dist.Store | None = None
    group: dist.ProcessGroup | None = None
    timeout: datetime.timedelta | None = None
    tensor: int = 1
    tensor_group: dist.ProcessGroup | None = None
    data_group: dist.ProcessGroup | None = None

    @property
    def joined(self) -> bool:
        """Whether torchrun started this process, be it alone."""
        return self.store is not None

    @property
    def first(self) -> bool:
        """Whether this is the worker that prints, logs and saves."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """This worker's own device, of the given type."""
        if self.size == 1 or device.type != "cuda":
            return device
        own = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(own)
        return own

    @property
    def data_rank(self) -> int:
        """Which share of every batch this worker has."""
        return self.rank // self.tensor

    @property
    def data_size(self) -> int:
        """How many shares there are of every batch."""
        return self.size // self.tensor

    @property
    def tensor_rank(self) -> int:
        """Which share of the weights of each block this worker has."""
        return self.rank % self.tensor

    def arranged(self, timeout_seconds: float, tensor: int) -> Workers:
        """The same workers, with groups whose messages time out after so many seconds.

        Args:
            timeout_seconds: As a run has them.
            tensor: See `Workers`; what does not divide is for `preflight` to refuse.
        """
        if not self.joined:
            return self
        timeout = datetime.timedelta(seconds=timeout_seconds)
        group = dist.new_group(timeout=timeout)
        whole = dataclasses.replace(self, group=group, data_group=group, timeout=timeout)
        if tensor == 1 or self.size % tensor:
            return whole
        grid = torch.arange(self.size).view(-1, tensor)
        tensor_group, data_group = (whole._subgroup(ranks) for ranks in (grid, grid.T))
        return dataclasses.replace(
            whole, tensor=tensor, tensor_group=tensor_group, data_group=data_group
        )

    def _subgroup(self, ranks: Tensor) -> dist.ProcessGroup:
        """That of the rows of ranks in which this worker is."""
        return dist.new_subgroups_by_enumeration(ranks.tolist(), self.timeout)[0]

    def mesh(self, device: torch.device, copies: int = 1) -> DeviceMesh:
        """The workers as `fully_shard` takes them: those that hold the slices of a model, in a row;
        of several copies of the model, a row for each."""
        if copies == 1:
            return DeviceMesh.from_group(self.data_group, device.type)
        grid = torch.arange(self.size).view(copies, -1, self.tensor)  # tensor innermost
        rows = self._subgroup(grid.transpose(1, 2).flatten(0, 1))
        columns = self._subgroup(grid.flatten(1).T)
        names, own = ("replicate", "shard"), grid[..., self.tensor_rank]
        return DeviceMesh.from_group([columns, rows], device.type, own, mesh_dim_names=names)

    # Numbers

    def mean(self, tree: T) -> T:
        """A nested structure with every tensor averaged over the workers, in one all-reduce."""
        if self.size == 1:
            return tree
        leaves, shape = tree_flatten(tree)
        flat = torch.cat([leaf.detach().reshape(-1).float() for leaf in leaves])
        dist.all_reduce(flat, group=self.group)
        parts = (flat / self.size).split([leaf.numel() for leaf in leaves])
        return tree_unflatten(
            [p.view(leaf.shape).to(leaf.dtype) for p, leaf in zip(parts, leaves, strict=True)],
            shape,
        )

    def sum(self, tensor: Tensor) -> Tensor:
        """A tensor added up over the workers, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def largest(self, numbers: dict[str, int | None]) -> dict[str, int | None]:
        """For each name the largest number that a worker has; None if none has one."""
        if self.size == 1:
            return numbers
        held = torch.tensor([-1 if n is None else n for n in numbers.values()])
        dist.all_reduce(held, dist.ReduceOp.MAX, group=self.group)
        return {name: None if n < 0 else n for name, n in zip(numbers, held.tolist(), strict=True)}

    # Decisions

    def any(self, flag: bool) -> bool:
        """Whether it holds for some worker."""
        return bool(self.sum(torch.tensor(float(flag)))) if self.size > 1 else flag

    def clock(self, seconds: float) -> float:
        """The seconds that the first worker has counted."""
        if self.size == 1:
            return seconds
        shared = torch.tensor(seconds, dtype=torch.float64)
        dist.broadcast(shared, 0, group=self.group)
        return shared.item()

    def from_first(self, value: T) -> T:
        """What the first worker has."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, group=self.group)
        return box[0]

    def first_in_common(self, choices: list[str]) -> str:
        """The first of this worker's choices that all workers have; they have one in common."""
        if self.size == 1:
            return choices[0]
        found: list[list[str]] = [[]] * self.size
        dist.all_gather_object(found, choices, self.group)
        return next(choice for choice in choices if all(choice in own for own in found))

    def first_then_all(self, action: Callable[[], T]) -> T:
        """Run an action, which may take hours, on the first worker and then on the others, where
        its work is already done."""
        if self.size == 1:
            return action()
        with self.together():
            if not self.first:
                self.store.wait([_FIRST_IS_DONE], datetime.timedelta(days=365))
                return action() if self.store.get(_FIRST_IS_DONE) == b"done" else None
            outcome = "failed"
            try:
                found = action()
                outcome = "done"
            finally:
                self.store.set(_FIRST_IS_DONE, outcome)
            return found

    def only_first(self, action: Callable[[], T]) -> T:
        """Run an action on the first worker alone and broadcast its result."""
        with self.together():
            found = action() if self.first else None
        return self.from_first(found)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A block that succeeds on all workers or on none.

        If it raises a UserError on some worker, the first worker raises it and the others exit
        silently. The block must not communicate.
        """
        if self.size == 1:
            yield
            return
        error: UserError | None = None
        quiet = contextlib.nullcontext() if self.first else contextlib.redirect_stdout(None)
        try:
            with quiet:  # --help is printed once
                yield
        except UserError as raised:
            error = raised
        found: list[tuple[str, int] | None] = [None] * self.size
        dist.all_gather_object(found, error and (str(error), error.exit_status), self.group)
        failed = [(rank, *own) for rank, own in enumerate(found) if own is not None]
        if not failed:
            return
        rank, message, status = failed[0]
        if not self.first:
            _leave(status)
        raise error or UserError(f"worker {rank}: {message}")

    def separate_randomness(self, seed: int, step: int) -> None:
        """Seed torch differently for each share of a batch, as a function of seed, step and share
        alone."""
        if self.size > 1:
            sequence = np.random.SeedSequence(seed, spawn_key=(step, self.data_rank))
            torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))

    # Faults

    def note(self, step: int) -> None:
        """Record this worker's step for `naming_the_missing`."""
        if self.size > 1:
            with contextlib.suppress(dist.DistError):  # a torchrun that was killed took the store
                self.store.set(f"step_{self.rank}", str(step))

    @contextlib.contextmanager
    def ending_together(self) -> Iterator[None]:
        """A block that all workers leave together. If several raise a UserError in it, the first
        worker reports it, and the others exit silently."""
        try:
            yield
            if self.size > 1:
                dist.barrier(group=self.group)
        except UserError as error:
            if self.size > 1:
                with contextlib.suppress(dist.DistError):  # as in `note`
                    if not self.first:
                        self._leave_if_reported()
                    self.store.set(_REPORTED, str(error.exit_status))
            raise

    def _leave_if_reported(self) -> None:
        """Exit silently if another worker reports a UserError within GRACE_SECONDS."""
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline:
            if self.store.check([_REPORTED]):
                _leave(int(self.store.get(_REPORTED)))
            time.sleep(POLL_SECONDS)

    @contextlib.contextmanager
    def naming_the_missing(self) -> Iterator[None]:
        """Add to a communication error the workers that did not answer: those that do not raise one
        at about the same time. If a worker reports a UserError, exit silently instead."""
        try:
            yield
        except RuntimeError as error:
            if self.size > 1 and _is_of_communication(error):
                # torchrun sends it as soon as one worker has ended; this one has yet to report
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                with contextlib.suppress(dist.DistError):  # as in `note`
                    self.store.set(f"waited_{self.rank}", "")
                    self._leave_if_reported()
                    error.add_note(self._missing())
            raise

    def _missing(self) -> str:
        missing = [r for r in range(self.size) if not self.store.check([f"waited_{r}"])]
        steps = {
            rank: self.store.get(f"step_{rank}").decode()
            for rank in missing
            if self.store.check([f"step_{rank}"])
        }
        if not missing:
            return "All workers failed."
        told = ", ".join(f"{rank} (in step {steps.get(rank, '0')})" for rank in missing)
        return f"Workers that did not answer: {told}."

    # Batches

    def share(self, items: Iterable[T]) -> Iterator[tuple[bool, T]]:
        """This worker's share of the items: every data_size-th, starting at its data_rank.

        All workers get the same number of items, since a sharded model communicates at every call:
        a worker that has fewer gets the first item again.

        Yields:
            Whether this worker counts the item (not if it is padding, or if another worker of the
            tensor group counts it), and the item.
        """
        remaining = iter(items)
        group = list(islice(remaining, self.data_size))
        first, counts = group[:1], self.tensor_rank == 0
        while group:
            mine = group[self.data_rank : self.data_rank + 1]
            yield bool(mine) and counts, *(mine or first)
            group = list(islice(remaining, self.data_size))


class _Left(SystemExit):
    """Ends a worker silently, since another one reports why."""


def _leave(status: int) -> NoReturn:
    """Exit silently once the first worker has had time to report: torchrun stops all workers as
    soon as one exits with an error."""
    time.sleep(GRACE_SECONDS)
    raise _Left(status) from None


def _is_of_communication(error: RuntimeError) -> bool:
    """Whether an error means that another worker did not answer; gloo raises plain ones."""
    return isinstance(error, dist.DistError) or bool(_OF_COMMUNICATION.search(str(error)))


def started_as_worker() -> bool:
    """Whether torchrun, or something like it, started this process."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))


ALONE = Workers()
"""A single worker."""


def workers_to_start(count: int, tensor: int = 1) -> Workers:
    """The workers that torchrun would start on this machine, for checks before it does: they have
    nobody to send a message to.

    Args:
        count: How many.
        tensor: See `Workers`; what does not divide is for `preflight` to refuse.
    """
    if count == 1:
        return ALONE
    tensor = 1 if count % tensor else tensor
    return Workers(size=count, local_size=count, store=dist.HashStore(), tensor=tensor)


@contextlib.contextmanager
def join_workers() -> Iterator[Workers]:
    """The workers that torchrun started, connected; a single one without it.

    Messages about CPU tensors go over gloo, those about CUDA tensors over NCCL. A UserError uses up
    no restarts: torchrun then stops all workers, since they would only raise it again.
    """
    if not started_as_worker():
        yield ALONE
        return
    torchrun = os.getppid()
    _end_with_parent()
    store = _store()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=store,
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    place = (int(os.environ[key]) for key in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    workers = Workers(dist.get_rank(), dist.get_world_size(), *place, store)
    # Gloo's threads need the GIL to release tensors, and its destructor holds the GIL while it
    # joins them (seen in torch 2.13), so they must be idle by then.
    ends_torchrun = False
    try:
        with workers.naming_the_missing():
            yield workers
            dist.barrier()  # not after an error: the others may wait elsewhere, or be gone
    except (UserError, _Left):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this worker may have yet to report
        ends_torchrun = True
        raise
    finally:
        time.sleep(SETTLING_SECONDS)
        dist.destroy_process_group()  # from which the others know
        if ends_torchrun:
            _forgo_restarts(torchrun, workers)


def _store() -> dist.Store:
    """The store for the rendezvous. torchrun's store outlives the workers, so each start of them
    uses a prefix of its own: the addresses of workers that died must not be found."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if hosted:
        _refuse_closed(host, port)
    store = dist.TCPStore(host, port, size, is_master=not hosted and rank == 0)
    return dist.PrefixStore(_name_of_start(store, rank, size), store)


def _refuse_closed(host: str, port: int) -> None:
    """Raise UserError if nothing listens at the address of torchrun's store, which is there before
    the workers are: torchrun was killed, and TCPStore would try for minutes. After any other error
    it is right to try again."""
    try:
        socket.create_connection((host, port), REFUSAL_SECONDS).close()
    except ConnectionRefusedError:
        raise UserError(f"torchrun has ended: nothing listens at {host}:{port}.") from None
    except OSError:
        pass


def _name_of_start(store: dist.Store, rank: int, size: int) -> str:
    """A new name that the workers of one start agree on, each time that they are started.

    torchrun's count of restarts is no such name: every node counts the failures of its own workers.
    What an earlier start left in the store is overwritten, or asks for nothing.

    Raises:
        RuntimeError: Some worker has not started within the timeout of the store.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"call_{rank}", own)
        name = store.get(f"answer_{own}").decode()
        store.set(f"{name}_{rank}", "")
        return name
    deadline = time.monotonic() + store.timeout.total_seconds()
    missing = list(range(1, size))
    while missing:
        for other in missing:
            if store.check([f"call_{other}"]):
                store.set(f"answer_{store.get(f'call_{other}').decode()}", own)
        time.sleep(POLL_SECONDS)
        missing = [other for other in missing if not store.check([f"{own}_{other}"])]
        if missing and time.monotonic() > deadline:
            raise RuntimeError(f"Workers that did not start: {', '.join(map(str, missing))}.")
    return own


def _forgo_restarts(torchrun: int, workers: Workers) -> None:
    """Have torchrun stop the workers of this node, if it would start them again instead. One of
    them does it: a second signal would keep torchrun from waiting for them.

    Args:
        torchrun: The process that started this one.
        workers: Of whom this is one.
    """
    done, allowed = (
        int(os.environ.get(f"TORCHELASTIC_{key}", 0)) for key in ("RESTART_COUNT", "MAX_RESTARTS")
    )
    if done >= allowed or torchrun == 1 or torchrun != os.getppid():  # 1 if it was killed
        return
    if workers.size > workers.local_size:
        time.sleep(GRACE_SECONDS)  # the store, which the others ask, may end with it
    try:
        first = workers.store.add(f"stopped_{os.environ.get('GROUP_RANK')}", 1) == 1
    except dist.DistError:  # another node's torchrun took the store
        first = workers.local_rank == 0
    if first:
        with contextlib.suppress(OSError):
            os.kill(torchrun, signal.SIGTERM)


def _end_with_parent() -> None:
    """On Linux, get SIGTERM when the parent dies: a torchrun that is killed stops no workers. One
    that was killed before this has no store any more, see `_store`."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
