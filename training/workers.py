"""Workers: the processes that train one model together, each on its share of every batch.

`torchrun` starts them and gives each a rank; `parallel` spreads the model over them. A process
started without torchrun is a single worker, for which all operations here do nothing.

A worker that acted on its own clock or signals would leave the others waiting, so such decisions
are made together; see `any` and `clock`.
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
from typing import Any, NoReturn, TypeVar

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
"""How long a failing worker waits for the others, whose timeouts expire at about the same time, or
for one of them to print why the run ends."""

_FIRST_IS_DONE = "first_is_done"

_REPORTED = "reported"
"""Key in the store for the exit status of a worker that reports a UserError."""

REFUSAL_SECONDS = 5.0
"""How long to wait for a connection to torchrun's store."""

_OF_COMMUNICATION = re.compile(r"gloo|nccl|pair closure|timed out|timeout", re.IGNORECASE)
"""Matches the text of a RuntimeError that is due to failed communication."""

POLL_SECONDS = 0.01
"""Interval at which a worker polls the store."""

SETTLING_SECONDS = 0.05
"""Time for the threads of a backend to release the tensors of completed messages."""


@dataclasses.dataclass(frozen=True)
class Workers:
    """The workers of a run, from the point of view of one of them.

    Attributes:
        rank: Rank of this worker, from 0.
        size: Number of workers.
        local_rank: Rank of this worker on its machine.
        local_size: Number of workers on its machine.
        store: Key-value store shared by the workers; None if torchrun was not used.
        group: The process group for messages; None: the default group, with torch's timeout.
        timeout: Timeout of messages; None: torch's.
        tensor: Number of workers with consecutive ranks that share the weights of each block and
            train on the same sequences.
        tensor_group: The workers that share the weights with this one.
        data_group: The workers that have the same share of the weights as this one.
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
        """Whether torchrun started this process, possibly as the only worker."""
        return self.store is not None

    @property
    def first(self) -> bool:
        """Whether this is the worker that prints, logs and saves."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """This worker's device of the given type."""
        if self.size == 1 or device.type != "cuda":
            return device
        own = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(own)
        return own

    @property
    def data_rank(self) -> int:
        """Index of this worker's share of every batch."""
        return self.rank // self.tensor

    @property
    def data_size(self) -> int:
        """Number of shares of every batch."""
        return self.size // self.tensor

    @property
    def tensor_rank(self) -> int:
        """Index of this worker's share of the weights of each block."""
        return self.rank % self.tensor

    def arranged(self, timeout_seconds: float, tensor: int) -> Workers:
        """The same workers, with process groups that have a timeout.

        Args:
            timeout_seconds: The timeout of messages.
            tensor: See `Workers`; `preflight` refuses values that do not divide the workers.
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
        """The process group of the row of `ranks` that contains this worker."""
        return dist.new_subgroups_by_enumeration(ranks.tolist(), self.timeout)[0]

    def mesh(self, device: torch.device, copies: int = 1) -> DeviceMesh:
        """The device mesh for `fully_shard`: a row of workers for each copy of the model, over
        which its parameters are sharded."""
        if copies == 1:
            return DeviceMesh.from_group(self.data_group, device.type)
        grid = torch.arange(self.size).view(copies, -1, self.tensor)  # tensor innermost
        rows = self._subgroup(grid.transpose(1, 2).flatten(0, 1))
        columns = self._subgroup(grid.flatten(1).T)
        names, own = ("replicate", "shard"), grid[..., self.tensor_rank]
        return DeviceMesh.from_group([columns, rows], device.type, own, mesh_dim_names=names)

    # Reductions

    def mean(self, tree: T) -> T:
        """Average every tensor of a nested structure over the workers, in one all-reduce."""
        return self._reduced(tree, dist.ReduceOp.SUM, self.size)

    def maximum(self, tree: T) -> T:
        """The maximum over the workers of every element of a nested structure, in one
        all-reduce."""
        return self._reduced(tree, dist.ReduceOp.MAX)

    def _reduced(self, tree: T, operation: Any, divisor: int = 1) -> T:
        leaves, shape = tree_flatten(tree)
        if self.size == 1 or not leaves:
            return tree
        flat = torch.cat([leaf.detach().reshape(-1).float() for leaf in leaves])
        dist.all_reduce(flat, operation, group=self.group)
        parts = (flat / divisor).split([leaf.numel() for leaf in leaves])
        return tree_unflatten(
            [p.view(leaf.shape).to(leaf.dtype) for p, leaf in zip(parts, leaves, strict=True)],
            shape,
        )

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the workers, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def largest(self, numbers: dict[str, int | None]) -> dict[str, int | None]:
        """For each name, the largest number of any worker; None if no worker has one."""
        if self.size == 1:
            return numbers
        held = torch.tensor([-1 if n is None else n for n in numbers.values()])
        dist.all_reduce(held, dist.ReduceOp.MAX, group=self.group)
        return {name: None if n < 0 else n for name, n in zip(numbers, held.tolist(), strict=True)}

    # Decisions

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any worker."""
        return bool(self.sum(torch.tensor(float(flag)))) if self.size > 1 else flag

    def clock(self, seconds: float) -> float:
        """The seconds counted by the first worker."""
        if self.size == 1:
            return seconds
        shared = torch.tensor(seconds, dtype=torch.float64)
        dist.broadcast(shared, 0, group=self.group)
        return shared.item()

    def from_first(self, value: T) -> T:
        """The first worker's value."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, group=self.group)
        return box[0]

    def first_in_common(self, choices: list[str]) -> str:
        """The first of this worker's choices that all workers share; at least one must exist."""
        if self.size == 1:
            return choices[0]
        found: list[list[str]] = [[]] * self.size
        dist.all_gather_object(found, choices, self.group)
        return next(choice for choice in choices if all(choice in own for own in found))

    def first_then_all(self, action: Callable[[], T]) -> T:
        """Run an action, which may take hours, on the first worker, and then on the others, which
        find its work already done."""
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
        """A context whose body succeeds on all workers or on none.

        If the body raises a UserError on any worker, the first worker raises it and the others exit
        silently. The body must not communicate.
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
        only."""
        if self.size > 1:
            sequence = np.random.SeedSequence(seed, spawn_key=(step, self.data_rank))
            torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))

    # Failures

    def note(self, step: int) -> None:
        """Record this worker's step for `naming_the_missing`."""
        if self.size > 1:
            with contextlib.suppress(dist.DistError):  # the store is gone if torchrun was killed
                self.store.set(f"step_{self.rank}", str(step))

    @contextlib.contextmanager
    def ending_together(self) -> Iterator[None]:
        """A context that all workers leave together. If several raise a UserError in it, the first
        worker reports it and the others exit silently."""
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
        """Add a note to communication errors that names the workers that did not respond: those
        that do not raise one at about the same time. If a worker reports a UserError, exit silently
        instead."""
        try:
            yield
        except RuntimeError as error:
            if self.size > 1 and _is_of_communication(error):
                # torchrun sends SIGTERM once a worker exits, but this one has yet to report.
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
        listed = ", ".join(f"{rank} (at step {steps.get(rank, '0')})" for rank in missing)
        return f"Workers that did not respond: {listed}."

    # Batches

    def share(self, items: Iterable[T]) -> Iterator[tuple[bool, T]]:
        """This worker's share of the items: every data_size-th, starting at its data_rank.

        All workers get the same number of items, because a sharded model communicates in every
        call: workers with fewer items get the first item of the last group as padding.

        Yields:
            Whether this worker counts the item (False for padding, or if another worker of the
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
    """Ends a worker silently, because another one reports the error."""


def _leave(status: int) -> NoReturn:
    """Exit silently after giving the first worker time to report: torchrun stops all workers as
    soon as one exits with an error."""
    time.sleep(GRACE_SECONDS)
    raise _Left(status) from None


def _is_of_communication(error: RuntimeError) -> bool:
    """Whether an error is a communication failure; gloo raises plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or bool(_OF_COMMUNICATION.search(str(error)))


def started_as_worker() -> bool:
    """Whether torchrun, or a similar launcher, started this process."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))


ALONE = Workers()
"""A single worker."""


def workers_to_start(count: int, tensor: int = 1) -> Workers:
    """The workers that torchrun would start on this machine, for checks in advance; they cannot
    communicate.

    Args:
        count: Number of workers.
        tensor: See `Workers`; `preflight` refuses values that do not divide the workers.
    """
    if count == 1:
        return ALONE
    tensor = 1 if count % tensor else tensor
    return Workers(size=count, local_size=count, store=dist.HashStore(), tensor=tensor)


@contextlib.contextmanager
def join_workers() -> Iterator[Workers]:
    """Connect the workers that torchrun started; yields a single worker without torchrun.

    CPU tensors are sent over gloo, CUDA tensors over NCCL. A UserError does not cause a restart:
    torchrun is made to stop all workers, since they would only raise it again.
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
            dist.barrier()  # not after an error: the others may wait elsewhere or have exited
    except (UserError, _Left):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this worker may have yet to report
        ends_torchrun = True
        raise
    finally:
        time.sleep(SETTLING_SECONDS)
        dist.destroy_process_group()  # which tells the others
        if ends_torchrun:
            _forgo_restarts(torchrun, workers)


def _store() -> dist.Store:
    """The store for the rendezvous. torchrun's store outlives the workers, so each start uses its
    own prefix, which prevents workers from finding the addresses of dead ones."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if hosted:
        _refuse_closed(host, port)
    store = dist.TCPStore(host, port, size, is_master=not hosted and rank == 0)
    return dist.PrefixStore(_name_of_start(store, rank, size), store)


def _refuse_closed(host: str, port: int) -> None:
    """Raise UserError if nothing listens at the address of torchrun's store. torchrun starts its
    store before the workers, so it was killed, and TCPStore would retry for minutes. Other errors
    are left to TCPStore, which retries."""
    try:
        socket.create_connection((host, port), REFUSAL_SECONDS).close()
    except ConnectionRefusedError:
        raise UserError(f"torchrun has ended: nothing listens at {host}:{port}.") from None
    except OSError:
        pass


def _name_of_start(store: dist.Store, rank: int, size: int) -> str:
    """Agree on a unique name for this start of the workers.

    torchrun's restart count is not unique: every node counts the failures of its own workers.
    Entries of earlier starts in the store are overwritten or have no effect.

    Raises:
        RuntimeError: If a worker has not started within the timeout of the store.
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
    """Make torchrun stop the workers of this node if it would restart them instead. Only one worker
    does so, because a second signal would keep torchrun from waiting for them.

    Args:
        torchrun: Process ID of the torchrun that started this worker.
        workers: The workers, including this one.
    """
    done, allowed = (
        int(os.environ.get(f"TORCHELASTIC_{key}", 0)) for key in ("RESTART_COUNT", "MAX_RESTARTS")
    )
    if done >= allowed or torchrun == 1 or torchrun != os.getppid():  # 1 if it was killed
        return
    if workers.size > workers.local_size:
        time.sleep(GRACE_SECONDS)  # the store, which the others still use, may end with torchrun
    try:
        first = workers.store.add(f"stopped_{os.environ.get('GROUP_RANK')}", 1) == 1
    except dist.DistError:  # the store ended with the torchrun of another node
        first = workers.local_rank == 0
    if first:
        with contextlib.suppress(OSError):
            os.kill(torchrun, signal.SIGTERM)


def _end_with_parent() -> None:
    """On Linux, request SIGTERM for when the parent dies: a killed torchrun does not stop its
    workers. If it was killed before this call, its store is gone; see `_store`."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
