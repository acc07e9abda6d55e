"""One of two workers is killed at a random moment, and torchrun starts both again.

One try for each way to spread the model. For 20 of each:

    python -m pytest -m slow -n 0 tests/integration/test_random_kills.py --random_kills=20
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.integration.runs import Workshop, log_of, moments_at, weights_at
from tests.integration.torchrun import PATIENCE, Torchrun

pytestmark = pytest.mark.slow  # it imports torch in five processes

STEPS = 60
EVERY = 4
"""Steps from one validation to the next; a checkpoint follows each."""

FLAGS = (
    *("config/arch_llama.py", "--n_layer=2", "--n_head=4", "--n_kv_head=2", "--ffn_multiple_of=2"),
    *(f"--max_iters={STEPS}", f"--eval_interval={EVERY}", "--gradient_accumulation_steps=2"),
    "--eval_tokens=640",
)
WAYS = {
    "ddp": ("--parallelism=ddp", "--dropout=0.1"),
    "fsdp": ("--parallelism=fsdp", "--dropout=0.1"),
    "tensor_parallel": ("--tensor_parallel=2",),
}
SAME = 1e-6

START_SECONDS = 4.0
"""About how long workers take to start."""

ROUND_SECONDS = 0.3
"""About how long they take for `EVERY` steps, a validation and a checkpoint."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(metafunc.config.getoption("random_kills")))


def kill_at_random(torchrun: Torchrun, moment: random.Random) -> None:
    """Kill a worker: in one try of four while it starts, else while it trains, validates or
    saves."""
    worker = torchrun.worker(moment.randrange(2))
    if moment.random() < 0.25:
        time.sleep(moment.uniform(0, START_SECONDS))
    else:
        torchrun.wait_for(f"step {moment.randrange(0, STEPS, EVERY):>2}/{STEPS} | val loss")
        time.sleep(moment.uniform(0, ROUND_SECONDS))
    worker.kill()


def processes_of(workshop: Workshop) -> list[psutil.Process]:
    """Those that train in its folder, whoever started them."""
    out_dir = f"--out_dir={workshop.out_dir}"
    found = psutil.process_iter(["cmdline"])
    return [process for process in found if out_dir in (process.info["cmdline"] or ())]


def losses_of(run: Path) -> list[float]:
    log = log_of(run)
    steps = [record["loss"] for record in log["training_iterations"]]
    return steps + [record["val_loss"] for record in log["eval_steps"]]


@pytest.mark.parametrize("way", WAYS)
def test_a_run_comes_back_from_a_kill_at_any_moment(
    workshop: Workshop, started: list[Torchrun], way: str, seed: int
) -> None:
    """It ends with the losses, weights and moments of a run that nobody disturbed."""
    flags = (*FLAGS, *WAYS[way])
    torchrun = Torchrun(workshop, "--max-restarts=3", flags=(*flags, "--resume=auto"))
    started.append(torchrun)
    kill_at_random(torchrun, random.Random(f"{way} {seed}"))
    assert torchrun.process.wait(PATIENCE) == 0, torchrun.output
    assert processes_of(workshop) == []
    whole = workshop.start_workers(2, *flags, run_name="whole")
    assert [worker.finish() for worker in whole] == [0, 0], whole[0].errors
    run, undisturbed = (workshop.out_dir / name for name in ("run", "whole"))
    assert log_of(run)["status"] == "completed"
    assert losses_of(run) == pytest.approx(losses_of(undisturbed), abs=SAME)
    for tensors_at in (weights_at, moments_at):
        ours, theirs = tensors_at(run, STEPS), tensors_at(undisturbed, STEPS)
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=SAME, msg=name)
