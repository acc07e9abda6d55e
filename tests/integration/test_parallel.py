"""Several workers train as one would: torchrun's processes, on gloo."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from interop.huggingface import export
from tests.integration.child import Child
from tests.integration.runs import (
    Workshop,
    assert_same_course,
    checkpoint_at,
    log_of,
    moments_at,
    weights_at,
)
from tests.parametrized import in_turn
from training_components import OPTIMIZERS

SAME = 1e-5
"""Nats: rounding differs, since sums are taken in another order."""

COURSE = {
    "max_iters": 20,
    "eval_interval": 10,
    "batch_size": 4,
    "gradient_accumulation_steps": 4,
    "grad_clip": 0.5,
    "eval_tokens": 0,
}
LLAMA = ("config/arch_llama.py", "--n_layer=2", "--n_head=4", "--n_kv_head=2")
MODELS = {
    "gpt2": ("config/arch_gpt2.py", "--n_layer=2"),
    "tied": (*LLAMA, "--weight_tying=True"),
    "moe": (*LLAMA, "--ffn_type=moe", "--n_experts=4", "--n_experts_per_token=2"),
    "hybrid": (*LLAMA, "--mixer=gated_deltanet+attention"),
    # Without a large epsilon, Adam magnifies the rounding of the tiny gradients of rare rows.
    "lookups": (*LLAMA, "--engram=True", "--per_layer_embedding=16", "--adam_eps=1e-4"),
    "mtp": (*LLAMA, "--mtp=sequential", "--mtp_depth=2", "--ffn_type=moe", "--n_experts=4"),
    "looped": (*LLAMA, "--loop_count=2", "--position_encoding=fire"),
    "sources and tables": (
        *(*LLAMA, "--residual=attention", "--kv_sharing=False+True", "--engram=False+True"),
        *("--engram_heads=2", "--per_layer_embedding=8"),
    ),
}


def course(**changes: object) -> tuple[str, ...]:
    return tuple(f"--{key}={value}" for key, value in {**COURSE, **changes}.items())


def finish(workers: list[Child]) -> list[int]:
    return [worker.finish() for worker in workers]


def losses_of(run: Path, kind: str, key: str) -> list[float]:
    return [record[key] for record in log_of(run)[kind]]


def assert_same_losses(one: Path, other: Path) -> None:
    """The losses of steps and of validation, gradient norms, and whatever parts report."""
    pairs = (("training_iterations", "loss"), ("eval_steps", "val_loss"))
    for kind, key in pairs:
        expected = losses_of(other, kind, key)
        assert losses_of(one, kind, key) == pytest.approx(expected, abs=SAME)
        assert len(expected) > 1
    for own, theirs in zip(
        *(log_of(run)["training_iterations"] for run in (one, other)), strict=True
    ):
        assert own["gradients"]["norm"] == pytest.approx(theirs["gradients"]["norm"], rel=1e-4)
        assert own["tokens_seen"] == theirs["tokens_seen"]
        assert flat(own.get("metrics")) == pytest.approx(flat(theirs.get("metrics")), abs=1e-4)


def flat(values: Any) -> list[float]:
    if isinstance(values, dict | list):
        items = values.values() if isinstance(values, dict) else values
        return [number for item in items for number in flat(item)]
    return [] if values is None else [values]


def test_two_workers_train_as_one(workshop: Workshop) -> None:
    one = workshop.train(*LLAMA, *course(), run_name="one")
    first, second = workshop.start_workers(2, *LLAMA, *course(), run_name="two")
    assert finish([first, second]) == [0, 0], first.errors + second.errors
    two = workshop.out_dir / "two"
    assert_same_losses(two, one)
    log = log_of(two)
    assert log["environment"]["device_count"] == 2
    assert log["environment"]["parallelism"] == "ddp"
    peaks = [log_of(run)["training_iterations"][0]["mfu"]["peak_tflops"] for run in (one, two)]
    assert peaks[1] > 1.2 * peaks[0]  # that of two devices, each measured
    assert "completed in" in first.output
    assert (second.output, second.errors) == ("", "")


def assert_trains_as_one(
    workshop: Workshop, count: int, flags: tuple[str, ...], *of_workers: str
) -> None:
    """So many workers, with flags that one process does not have."""
    one = workshop.train(*flags, *course(), run_name="one")
    workers = workshop.start_workers(count, *flags, *course(), *of_workers, run_name="many")
    assert finish(workers) == [0] * count, workers[0].errors
    assert_same_losses(workshop.out_dir / "many", one)


def test_shards_train_as_one(workshop: Workshop) -> None:
    assert_trains_as_one(workshop, 2, LLAMA, "--parallelism=fsdp")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "of_workers"),
    [
        (2, ("--parallelism=zero1",)),
        (4, ("--parallelism=hsdp", "--shard_size=2")),
        (2, ("--parallelism=fsdp", "--activation_checkpointing=block")),
        (2, ("--parallelism=fsdp", "--compile=True", "--activation_checkpointing=selective")),
        (2, ("--parallelism=ddp", "--compile=True", "--activation_checkpointing=block")),
    ],
)
def test_every_way_to_spread_a_model_trains_as_one(
    workshop: Workshop, count: int, of_workers: tuple[str, ...]
) -> None:
    assert_trains_as_one(workshop, count, LLAMA, *of_workers)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "parallelism"), in_turn(MODELS, ["fsdp", "zero1", "ddp"]))
def test_any_model_trains_on_two_workers_as_on_one(
    workshop: Workshop, model: str, parallelism: str
) -> None:
    assert_trains_as_one(workshop, 2, MODELS[model], f"--parallelism={parallelism}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "parallelism"),
    in_turn(sorted(set(OPTIMIZERS) - {"adamw"}), ["zero1", "fsdp", "ddp"]),
)
def test_any_optimizer_trains_on_two_workers_as_on_one(
    workshop: Workshop, optimizer: str, parallelism: str
) -> None:
    flags = (*LLAMA, f"--optimizer={optimizer}")
    flags += ("--muon_dtype=float32",) if optimizer == "muon" else ()
    assert_trains_as_one(workshop, 2, flags, f"--parallelism={parallelism}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heads", "optimizer", "parallelism"),
    [
        ("--n_kv_head=2", "adamw", "ddp"),
        ("--n_kv_head=4", "muon", "zero1"),
        ("--n_kv_head=4", "adamw", "fsdp"),
        ("--n_kv_head=2", "muon", "fsdp"),
    ],
)
def test_logits_are_clipped_on_two_workers_as_on_one(
    workshop: Workshop, heads: str, optimizer: str, parallelism: str
) -> None:
    flags = (*LLAMA[:-1], heads, "--attention_bias=True", "--qk_clip=0.05")
    flags += (f"--optimizer={optimizer}",)
    flags += ("--muon_dtype=float32",) if optimizer == "muon" else ()
    assert_trains_as_one(workshop, 2, flags, f"--parallelism={parallelism}")
    largest = log_of(workshop.out_dir / "one")["training_iterations"][-1]["metrics"]
    assert max(flat(largest["mixer.largest_attention_logit"])) > 0.05  # some heads are clipped


SPLIT = {
    "gpt2": ("config/arch_gpt2.py", "--n_layer=2", "--n_head=4"),
    "norms of heads": (*LLAMA, "--ffn_multiple_of=2", "--qk_norm=True", "--attention_bias=True"),
    "norms of all heads": (
        *LLAMA,
        "--ffn_multiple_of=2",
        "--qk_norm=True",
        "--qk_norm_over=projection",
    ),
    "score bias": (*LLAMA, "--ffn_multiple_of=2", "--position_encoding=alibi"),
    "keys that tokens change": (*LLAMA, "--ffn_multiple_of=2", "--position_encoding=path"),
    "vectors of all heads": (*LLAMA, "--ffn_multiple_of=2", "--position_encoding=cope"),
    "values": (*LLAMA, "--ffn_multiple_of=2", "--value_residual=learned"),
    "values of some": (
        *(*LLAMA, "--ffn_multiple_of=2", "--value_residual=fixed", "--qk_norm=True+False"),
        "--qk_norm_over=projection+head",
    ),
    "shared keys": (*LLAMA, "--ffn_multiple_of=2", "--kv_sharing=False+True"),
    "tied": (*LLAMA, "--ffn_multiple_of=2", "--weight_tying=True"),
    "moe": (*MODELS["moe"], "--ffn_hidden=32"),
    "hybrid": (*MODELS["hybrid"], "--ffn_multiple_of=2"),
    "unet": (*LLAMA, "--ffn_multiple_of=2", "--residual=unet"),
    "mtp": (*LLAMA, "--ffn_multiple_of=2", "--mtp=sequential", "--value_residual=learned"),
}


def test_heads_and_hidden_units_split_over_workers_train_as_one(workshop: Workshop) -> None:
    flags = (*LLAMA, "--ffn_multiple_of=2")
    assert_trains_as_one(workshop, 2, flags, "--tensor_parallel=2")
    log = log_of(workshop.out_dir / "many")
    assert log["architecture"] == log_of(workshop.out_dir / "one")["architecture"]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "parallelism"), in_turn(SPLIT, ["ddp", "fsdp"]))
def test_any_model_can_be_split(workshop: Workshop, model: str, parallelism: str) -> None:
    flags = ("--tensor_parallel=2", f"--parallelism={parallelism}")
    assert_trains_as_one(workshop, 2, SPLIT[model], *flags)


@pytest.mark.slow
@pytest.mark.parametrize(
    "of_workers",
    [
        ("--parallelism=zero1",),
        ("--parallelism=hsdp", "--shard_size=1"),
        ("--parallelism=fsdp", "--compile=True", "--activation_checkpointing=selective"),
    ],
)
def test_a_split_model_is_spread_in_every_way(
    workshop: Workshop, of_workers: tuple[str, ...]
) -> None:
    flags = SPLIT["norms of heads"]
    assert_trains_as_one(workshop, 4, flags, "--tensor_parallel=2", *of_workers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "trained"),
    [
        ("--parallelism=fsdp", ()),
        ("--tensor_parallel=2", ()),
        ("--parallelism=ddp", ("--adapter=dora", "--adapter_rank=2")),
    ],
)
def test_a_run_starts_from_the_weights_of_another_project(
    workshop: Workshop, tmp_path: Path, way: str, trained: tuple[str, ...]
) -> None:
    run = workshop.train(*LLAMA, "--ffn_multiple_of=2", *course(max_iters=5), run_name="before")
    export(str(run), tmp_path / "model", workshop.out_dir, None, "")
    sizes = {"--n_layer", "--n_head", "--n_embd"}
    started = []
    for name, count, flags in (("one", 1, ()), ("many", 2, (way,))):
        argv = (f"--init_from={tmp_path / 'model'}", *course(), *trained, *flags)
        argv = [a for a in workshop.argv(*argv, run_name=name) if a.split("=")[0] not in sizes]
        started.append(workshop.start_workers_with(count, argv))
        assert finish(started[-1]) == [0] * count, started[-1][0].errors
    assert_same_losses(workshop.out_dir / "many", workshop.out_dir / "one")
    assert losses_of(workshop.out_dir / "one", "eval_steps", "val_loss")[0] == pytest.approx(
        losses_of(run, "eval_steps", "val_loss")[-1], abs=SAME
    )


def resume_with(workshop: Workshop, count: int, run: str, *flags: str) -> None:
    workers = workshop.start_workers(count, *flags, f"--resume={run}", run_name=run)
    assert finish(workers) == [0] * count, workers[0].errors


@pytest.mark.slow
def test_a_run_goes_on_with_its_model_spread_in_another_way(workshop: Workshop) -> None:
    """FSDP on two workers, then one process; it ends as a run that one process trained."""
    whole = workshop.train(*LLAMA, *course(), run_name="whole")
    workers = workshop.start_workers(
        2, *LLAMA, *course(max_iters=10, lr_decay_iters=20), "--parallelism=fsdp", run_name="moved"
    )
    assert finish(workers) == [0, 0], workers[0].errors
    workshop.train(*LLAMA, *course(), "--resume=moved", run_name="moved")
    assert_same_losses(workshop.out_dir / "moved", whole)


WAYS = [
    (2, "--parallelism=fsdp"),
    (2, "--parallelism=zero1"),
    (4, "--parallelism=hsdp --shard_size=2"),
    (2, "--parallelism=ddp"),
]
SPLIT_WAYS = [(2, "--tensor_parallel=2"), (4, "--tensor_parallel=2 --parallelism=fsdp")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "ways"), [("adamw", [*SPLIT_WAYS, *WAYS, *SPLIT_WAYS]), ("muon", WAYS)]
)
def test_a_run_goes_through_every_way_to_spread_it(
    workshop: Workshop, optimizer: str, ways: list[tuple[int, str]]
) -> None:
    """Weights and moments are at the end what they are in one process."""
    steps = 10 * len(ways) + 10
    flags = (*LLAMA, f"--optimizer={optimizer}", f"--lr_decay_iters={steps}", "--ffn_multiple_of=2")
    flags += ("--muon_dtype=float32",) if optimizer == "muon" else ()
    whole = workshop.train(*flags, *course(max_iters=steps), run_name="whole")
    flags += ("--async_save=True",)
    workshop.train(*flags, *course(max_iters=10), run_name="moved")
    for place, (count, way) in enumerate(ways, start=2):
        resume_with(workshop, count, "moved", *flags, *course(max_iters=10 * place), *way.split())
    moved = workshop.out_dir / "moved"
    assert_same_losses(moved, whole)
    for tensors_at in (weights_at, moments_at):
        ours, theirs = tensors_at(moved, steps), tensors_at(whole, steps)
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--parallelism=none",), "but 2 were started"),
        *(
            pytest.param(*refusal, marks=pytest.mark.slow)
            for refusal in (
                (
                    ("--parallelism=hsdp", "--shard_size=3"),
                    "does not divide 2 workers; use one of 1, 2",
                ),
                (("--shard_size=2",), "shard_size=2 has no effect with parallelism='auto'"),
                (
                    ("--tensor_parallel=3",),
                    "tensor_parallel=3 does not divide 2 workers; use one of 1, 2",
                ),
                (
                    ("--tensor_parallel=2",),
                    "does not divide ffn_hidden=85; use one of 1, 5, 17, 85",
                ),
                (
                    ("--tensor_parallel=2", "--optimizer=muon"),
                    "optimizer='muon' needs whole matrices, which tensor_parallel=2 splits",
                ),
            )
        ),
    ],
)
def test_what_workers_cannot_do_is_refused(
    workshop: Workshop, flags: tuple[str, ...], message: str
) -> None:
    first, second = workshop.start_workers(2, *LLAMA, *course(), *flags)
    assert finish([first, second]) == [2, 2]
    assert message in first.errors
    assert (second.output, second.errors) == ("", "")


def test_a_model_is_not_spread_over_one_process(workshop: Workshop) -> None:
    message = workshop.refused("config/arch_gpt2.py", "--parallelism=fsdp")
    assert "start it with torchrun --standalone --nproc_per_node=N train.py" in message


@pytest.mark.slow
def test_workers_share_the_sequences_of_one_micro_batch(workshop: Workshop) -> None:
    flags = (*LLAMA, *course(gradient_accumulation_steps=1))
    one = workshop.train(*flags, run_name="one")
    assert finish(workshop.start_workers(2, *flags, run_name="two")) == [0, 0]
    assert_same_losses(workshop.out_dir / "two", one)


@pytest.mark.slow
def test_a_batch_that_does_not_divide_is_refused_once(workshop: Workshop) -> None:
    first, second = workshop.start_workers(
        2, *LLAMA, *course(gradient_accumulation_steps=3, batch_size=3)
    )
    assert finish([first, second]) == [2, 2]
    assert "does not divide among 2 workers; use batch_size=2 or 4" in first.errors
    assert (second.output, second.errors) == ("", "")
    assert not (workshop.out_dir / "run").exists()


@pytest.mark.slow
def test_a_signal_to_one_worker_stops_all_and_one_process_goes_on(workshop: Workshop) -> None:
    """The run that goes on alone ends as one that was never stopped."""
    flags = (*LLAMA, *course(max_iters=60, eval_interval=60))
    whole = workshop.train(*flags, run_name="whole")
    first, second = workshop.start_workers(2, *flags, run_name="two")
    first.wait_for("step  5/60 | loss")
    second.send(signal.SIGTERM)
    assert finish([first, second]) == [0, 0], first.errors
    stopped = log_of(workshop.out_dir / "two")
    assert stopped["status"] == "interrupted"
    step = stopped["checkpoints"][-1]["step"]
    assert 5 <= step < 60
    assert checkpoint_at(workshop.out_dir / "two", step).is_dir()
    workshop.train(*flags, "--resume=two", run_name="two")
    assert_same_losses(workshop.out_dir / "two", whole)


FAULTY = """
import os

import torch

from components.ffns import FFNS, StandardFFN


@FFNS.register("faulty", label="Faulty")
class Faulty(StandardFFN):
    '''Gives NaN once, on the second worker.'''

    calls = 0

    def forward(self, x, context):
        y = super().forward(x, context)
        if self.training:
            Faulty.calls += 1
            if Faulty.calls == 6 and os.environ.get("RANK") == "1":
                y = y * torch.nan
        return y
"""


@pytest.mark.parametrize(
    "parallelism",
    ["ddp", *(pytest.param(own, marks=pytest.mark.slow) for own in ("zero1", "fsdp"))],
)
def test_a_step_that_is_not_finite_on_one_worker_is_skipped_on_all(
    workshop: Workshop, tmp_path: Path, parallelism: str
) -> None:
    plugin = tmp_path / "faulty.py"
    plugin.write_text(FAULTY)
    flags = (*course(gradient_accumulation_steps=2), f"--plugins={plugin}")
    flags += (f"--parallelism={parallelism}",)
    workers = workshop.start_workers(
        2, "config/arch_gpt2.py", "--n_layer=1", "--ffn_type=faulty", *flags
    )
    assert finish(workers) == [0, 0], workers[0].errors + workers[1].errors
    steps = log_of(workshop.out_dir / "run")["training_iterations"]
    assert [step["bad_steps"] for step in steps].count(1) > 10
    assert steps[-1]["bad_steps"] == 1
    assert steps[-1]["loss"] < steps[0]["loss"]


STUCK = """
import os
import time

from components.ffns import FFNS, StandardFFN


@FFNS.register("stuck", label="Stuck")
class Stuck(StandardFFN):
    '''Sleeps once, on the second worker.'''

    calls = 0

    def forward(self, x, context):
        if self.training:
            Stuck.calls += 1
            if Stuck.calls == 13 and os.environ.get("RANK") == "1":
                time.sleep(20)
        return super().forward(x, context)
"""


@pytest.mark.slow
def test_a_worker_that_hangs_is_named(workshop: Workshop, tmp_path: Path) -> None:
    plugin = tmp_path / "stuck.py"
    plugin.write_text(STUCK)
    flags = (*course(gradient_accumulation_steps=2), f"--plugins={plugin}", "--hang_timeout=4")
    first, second = workshop.start_workers(
        2, "config/arch_gpt2.py", "--n_layer=1", "--ffn_type=stuck", *flags
    )
    assert first.finish() == 1
    assert "Workers that did not respond: 1 (at step 12)." in first.errors
    assert log_of(workshop.out_dir / "run")["status"] == "failed"
    assert second.finish() != 0


@pytest.mark.slow
def test_a_worker_that_hangs_before_the_first_step_is_named(
    workshop: Workshop, tmp_path: Path
) -> None:
    plugin = tmp_path / "stuck.py"
    slow = "    def __init__(self, config):\n        super().__init__(config)\n"
    slow += "        time.sleep(9 * (os.environ.get('RANK') == '1'))\n"
    plugin.write_text(STUCK.replace("    calls = 0\n", f"    calls = 0\n\n{slow}"))
    flags = (*course(), "--n_layer=1", f"--plugins={plugin}", "--hang_timeout=3")
    first, second = workshop.start_workers(2, "config/arch_gpt2.py", "--ffn_type=stuck", *flags)
    assert first.finish() == 1
    assert "Workers that did not respond: 1 (at step 0)." in first.errors
    assert second.finish() != 0


@pytest.mark.slow
def test_dropout_goes_on_where_it_was(workshop: Workshop) -> None:
    """A run on two workers that is resumed is the run that was not stopped, bit for bit."""
    flags = ("config/arch_gpt2.py", "--n_layer=1", "--dropout=0.2", *course(keep_checkpoints=3))
    assert finish(workshop.start_workers(2, *flags, run_name="whole")) == [0, 0]
    whole = workshop.out_dir / "whole"
    again = Path(shutil.copytree(whole, workshop.out_dir / "again"))
    shutil.rmtree(checkpoint_at(again, 20))
    resumed = workshop.start_workers(2, *flags, "--resume=again", run_name="again")
    assert finish(resumed) == [0, 0], resumed[0].errors
    assert_same_course(again, whole, 20)
    one = workshop.train(*flags, run_name="one")
    assert losses_of(one, "training_iterations", "loss") != losses_of(
        whole, "training_iterations", "loss"
    )  # which draws other numbers


@pytest.mark.slow
def test_what_ends_all_workers_is_said_once(workshop: Workshop, tmp_path: Path) -> None:
    plugin = tmp_path / "faulty.py"
    plugin.write_text(FAULTY.replace("== 6", ">= 6"))
    flags = (*course(max_bad_steps=4), "--n_layer=1", "--ffn_type=faulty", f"--plugins={plugin}")
    first, second = workshop.start_workers(2, "config/arch_gpt2.py", *flags)
    assert finish([first, second]) == [1, 1]
    assert "4 steps in a row had a non-finite loss" in first.errors
    assert second.output == ""
    assert "in a row" not in second.errors
    assert log_of(workshop.out_dir / "run")["status"] == "diverged"


@pytest.mark.slow
def test_an_error_of_one_worker_alone_names_it(workshop: Workshop, tmp_path: Path) -> None:
    """The other loses it, and did answer."""
    plugin = tmp_path / "faulty.py"
    raised = FAULTY.replace("y = y * torch.nan", 'raise RuntimeError("out of memory, say")')
    plugin.write_text(raised)
    flags = (*course(), "--n_layer=1", "--ffn_type=faulty", f"--plugins={plugin}")
    first, second = workshop.start_workers(2, "config/arch_gpt2.py", *flags)
    assert second.finish() == 1
    assert "RuntimeError: out of memory, say" in second.errors
    assert "did not respond" not in second.errors
    assert first.finish() == 1
    assert "Workers that did not respond: 1 (at step" in first.errors


SCALING = """
import os

from torch import nn

from components.ffns import FFNS, StandardFFN


@FFNS.register("scaling", label="Scaling")
class Scaling(StandardFFN):
    '''Uses a further layer, `scale`, in some of its calls only.'''

    calls = 0

    def __init__(self, config):
        super().__init__(config)
        self.scale = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, context):
        y = super().forward(x, context)
        Scaling.calls += self.training
        return THE_OUTPUT
"""


def scaling(folder: Path, output: str) -> tuple[str, str]:
    """Flags of a run with the FFN `Scaling`, whose output is this expression of x and y."""
    plugin = folder / "scaling.py"
    plugin.write_text(SCALING.replace("THE_OUTPUT", output))
    return f"--plugins={plugin}", "--ffn_type=scaling"


@pytest.mark.slow
def test_a_part_may_leave_parameters_out_of_a_step(workshop: Workshop, tmp_path: Path) -> None:
    """Those of `scale`, in every third call."""
    own = scaling(tmp_path, "y if Scaling.calls % 3 == 0 else self.scale(y)")
    flags = (*course(gradient_accumulation_steps=2), *own)
    workers = workshop.start_workers(2, "config/arch_gpt2.py", "--n_layer=1", *flags)
    assert finish(workers) == [0, 0], workers[0].errors
    assert log_of(workshop.out_dir / "run")["status"] == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["ddp", "zero1", "fsdp"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_parameter_without_a_gradient_stays_as_it_is(
    workshop: Workshop, tmp_path: Path, optimizer: str, parallelism: str
) -> None:
    """That of `scale`, in the first two steps."""
    early = 'self.training and Scaling.calls <= 8 // int(os.environ.get("WORLD_SIZE", "1"))'
    own = scaling(tmp_path, f"y if {early} else y + self.scale(x)")
    flags = ("config/arch_gpt2.py", "--n_layer=1", *own)
    flags += (f"--optimizer={optimizer}",)
    flags += ("--muon_dtype=float32",) if optimizer == "muon" else ()
    for name, count, way in (("one", 1, ()), ("many", 2, (f"--parallelism={parallelism}",))):
        workers = workshop.start_workers(count, *flags, *course(), *way, run_name=name)
        assert finish(workers) == [0] * count, workers[0].errors
    assert_same_losses(workshop.out_dir / "many", workshop.out_dir / "one")


BIAS = """
import torch
from torch import nn

from components.positions import POSITIONS, PositionEncoding


@POSITIONS.register("table", label="Table")
class Table(PositionEncoding):
    '''A learned bias for each head.'''

    biases_scores = True

    def __init__(self, config):
        super().__init__(config)
        self.bias = nn.Parameter(torch.zeros(4, 1, 1))

    def score_bias(self, start, length, keys):
        return self.bias.expand(4, length, keys)
"""


@pytest.mark.slow
def test_a_position_encoding_that_heads_train_is_not_split(
    workshop: Workshop, tmp_path: Path
) -> None:
    plugin = tmp_path / "table.py"
    plugin.write_text(BIAS)
    flags = ("--position_encoding=table", f"--plugins={plugin}", "--tensor_parallel=2")
    first, second = workshop.start_workers(2, *LLAMA, "--ffn_multiple_of=2", *course(), *flags)
    assert finish([first, second]) == [2, 2]
    assert "Table has parameters that are trained by attention" in first.errors


@pytest.mark.slow
@pytest.mark.parametrize("async_save", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_checkpoint_that_cannot_be_written_ends_all(workshop: Workshop, async_save: bool) -> None:
    flags = (*LLAMA, *course(max_iters=400, eval_interval=400), f"--async_save={async_save}")
    first, second = workshop.start_workers(2, *flags)
    first.wait_for("step   5/400 | loss")
    shutil.rmtree(workshop.out_dir / "run")
    first.send(signal.SIGTERM)
    assert finish([first, second]) == [1, 1]
    assert "Traceback" not in first.errors + second.errors
