"""Measure tokens per second of whole training steps, for several settings and for nanoGPT.

python benchmarks/throughput.py config/arch_gpt2.py --vocab_size=50304 --batch_size=4 \\
    --sequence_length=256 --variant "" --variant compile=True --against=../nanoGPT

Everything is measured in one process, interleaved: in each round every contender takes a few steps,
so that a slowdown of the machine affects all of them. The medians over the rounds are compared.
A step is forward, backward, clipping and the optimizer, on random tokens. Our steps are those of
train.py. nanoGPT's model.py is imported from a checkout of its repository and trained as in its
train.py, in float32, in bfloat16, and in compiled bfloat16. On a CPU it benefits from the
process-wide settings of our train.py: the allocator and the library of float32 matmuls
(`training.hardware.prepare_device`).

Exit status: 0 measured, 2 not.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

import configurator
import train
from data.dataset_writer import Document, write_dataset
from data.tokenizers import ByteTokenizer
from errors import UserError
from interop.starting_model import new_settings
from scripts.runs import PASSED, run_script
from training.hardware import autocast, environment, peak_flops, synchronize
from training.resume import find_start
from training.run import Run

WARM_UP = 2
"""Warm-up steps of each contender; the first one includes compilation."""

NANOGPT = {
    "nanoGPT float32": (torch.float32, False),
    "nanoGPT bfloat16": (torch.bfloat16, False),
    "nanoGPT bfloat16 compiled": (torch.bfloat16, True),
}


@dataclasses.dataclass(frozen=True)
class Contender:
    """A model and settings to measure.

    Attributes:
        name: Its name in the table.
        step: Runs a training step.
        tokens: Tokens per step.
        flops_per_token: Matmul FLOPs; see `GPT.flops_per_token`.
        peak: Peak FLOP/s of the device in the compute dtype; None if unknown.
    """

    name: str
    step: Callable[[], None]
    tokens: int
    flops_per_token: float
    peak: float | None

    def seconds(self, steps: int, device: torch.device) -> float:
        synchronize(device)
        began = time.perf_counter()
        for _ in range(steps):
            self.step()
        synchronize(device)
        return (time.perf_counter() - began) / steps


def random_batch(run: Run) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a step, (micro-batches, B, T)."""
    training = run.settings.training
    shape = (
        training.gradient_accumulation_steps,
        training.batch_size,
        training.sequence_length + 1,
    )
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(run.settings.model.vocab_size, shape, generator=generator)
    return tuple(part.contiguous().to(run.device) for part in (tokens[..., :-1], tokens[..., 1:]))


def ours(run: Run, name: str) -> Contender:
    """Steps of train.py, for a run that is set up."""
    inputs, targets = random_batch(run)
    rate = run.settings.training.learning_rate

    def step() -> None:
        train.train_step(run, inputs, targets, rate, statistics=False)

    length = run.settings.training.sequence_length
    return Contender(
        name,
        step,
        inputs.numel(),
        run.network.flops_per_token(length),
        peak_flops(run.device, run.dtype),
    )


def of_nanogpt(
    module: ModuleType, run: Run, name: str, dtype: torch.dtype, compiled: bool
) -> Contender:
    """Steps of nanoGPT with a model and batches of the same size."""
    model_keys, training = run.settings.model, run.settings.training
    sizes = {key: getattr(model_keys, key) for key in ("n_layer", "n_head", "n_embd", "vocab_size")}
    with contextlib.redirect_stdout(None):  # it prints its sizes
        network = module.GPT(
            module.GPTConfig(**sizes, block_size=model_keys.block_size, dropout=0.0, bias=True)
        ).to(run.device)
        betas = (training.get("beta1"), training.get("beta2"))
        optimizer = network.configure_optimizers(
            0.1, training.learning_rate, betas, run.device.type
        )
    model = torch.compile(network) if compiled else network
    inputs, targets = random_batch(run)

    def step() -> None:
        for x, y in zip(inputs, targets, strict=True):
            with autocast(run.device, dtype):
                _, loss = model(x, y)
            (loss / len(inputs)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    flops = run.network.flops_per_token(training.sequence_length)
    return Contender(name, step, inputs.numel(), flops, peak_flops(run.device, dtype))


def set_up(flags: Sequence[str], variant: str, folder: Path) -> Run:
    """Set up a run of train.py; its dataset is only a placeholder."""
    changes = [f"--{pair}" for pair in variant.split(",") if pair]
    changed = {change.partition("=")[0] for change in changes}
    kept = [flag for flag in flags if flag.partition("=")[0] not in changed]
    where = (f"--dataset={folder / 'data'}", f"--out_dir={folder}", "--eval_tokens=1")
    return train.set_up(find_start(configurator.read([*kept, *changes, *where]), new_settings))


def write_data(folder: Path, tokens: int) -> None:
    text = "nanoarch " * (tokens // 8 + 2)
    documents = [Document(split, [text]) for split in ("train", "val")]
    write_dataset(
        documents, ByteTokenizer(), folder, name="bench", source="this script", separate=False
    )


def load_nanogpt(checkout: Path) -> ModuleType:
    """nanoGPT's model.py. Raises UserError if it is not there."""
    path = checkout / "model.py"
    if not path.is_file():
        raise UserError(f"--against={checkout} has no model.py; name a checkout of nanoGPT.")
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def measured(
    contenders: Sequence[Contender], rounds: int, steps: int, device: torch.device
) -> dict[str, list[float]]:
    """Tokens per second of each contender, by name, in every round."""
    for contender in contenders:
        contender.seconds(WARM_UP, device)
    speeds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            speeds[contender.name].append(contender.tokens / contender.seconds(steps, device))
    return speeds


def row(contender: Contender, speeds: Sequence[float]) -> dict[str, Any]:
    speed = median(speeds)
    achieved = speed * contender.flops_per_token
    return {
        "name": contender.name,
        "tokens_per_second": speed,
        "lowest": min(speeds),
        "highest": max(speeds),
        "flops_per_token": contender.flops_per_token,
        "mfu_percent": contender.peak and 100 * achieved / contender.peak,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    width = max(len(own["name"]) for own in rows)
    lines = [f"{'':{width}}  tokens/s  lowest to highest   MFU   of the first"]
    for own in rows:
        share = own["tokens_per_second"] / rows[0]["tokens_per_second"]
        spread = f"{own['lowest']:.0f} to {own['highest']:.0f}"
        mfu = "-" if own["mfu_percent"] is None else f"{own['mfu_percent']:.0f} %"
        lines.append(
            f"{own['name']:{width}}  {own['tokens_per_second']:8.0f}  {spread:>17}  {mfu:>4}"
            f"  {share:12.2f}x"
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument(
        "--variant",
        action="append",
        metavar="KEY=VALUE,...",
        help="settings to measure, added to the flags of train.py; may be repeated (default: none)",
    )
    flags.add_argument("--against", type=Path, metavar="FOLDER", help="a checkout of nanoGPT")
    flags.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    flags.add_argument("--steps", type=int, default=2, help="of a round (default: %(default)s)")
    flags.add_argument("--out", type=Path, metavar="FILE", help="also write it as JSON")
    return flags


def main(argv: Sequence[str]) -> int:
    args, of_train = parser().parse_known_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        length = new_settings(configurator.read(of_train)).training.sequence_length
        write_data(folder / "data", length)
        variants = args.variant or [""]
        runs = {variant: set_up(of_train, variant, folder) for variant in variants}
        contenders = [ours(run, variant or "as given") for variant, run in runs.items()]
        first = next(iter(runs.values()))
        if args.against:
            module = load_nanogpt(args.against)
            contenders += [of_nanogpt(module, first, name, *how) for name, how in NANOGPT.items()]
        speeds = measured(contenders, args.rounds, args.steps, first.device)
    rows = [row(contender, speeds[contender.name]) for contender in contenders]
    machine = {**environment(first.device), "processor": platform.processor()}
    print(f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}")
    print(f"{first.network.config.architecture_name}, {contenders[0].tokens:,} tokens a step")
    print(table(rows))
    if args.out:
        document = {"command": list(argv), "environment": machine, "results": rows}
        args.out.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return PASSED


if __name__ == "__main__":
    run_script(main)
