"""Generate text with a trained model.

python sample.py --run=latest --prompt="def main" --max_new_tokens=300
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from cli import CommandParser, run_cli
from data.tokenizers import is_unicode
from errors import UserError, quoted
from interop.huggingface import load_weights
from model_builder import check_sampling
from options import KEYS
from training.hardware import autocast, resolve_device, resolve_dtype
from training.samples import text_of
from training.saved_plugins import PLUGINS_HELP, named_plugins
from training.trained_model import BASE_HELP, RUN_HELP, Base, load_trained
from training_components import DTYPES
from training_config import DEVICES
from user_files import run_plugins


def parser() -> argparse.ArgumentParser:
    """The command-line parser."""
    flags = CommandParser(
        keys=KEYS,
        description="Generate text with a trained model; tokens are printed as they are generated.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    flags.add_argument(
        "--run",
        default="latest",
        help=RUN_HELP,
    )
    flags.add_argument("--out_dir", default="out", help="directory of all runs")
    prompt = flags.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", default="\n", help="text to continue (default: %(default)r)")
    prompt.add_argument("--prompt_file", type=Path, help="file with the text to continue")
    flags.add_argument(
        "--max_new_tokens", type=int, default=500, help="maximum number of tokens to generate"
    )
    flags.add_argument("--num_samples", type=int, default=1, help="number of samples")
    flags.add_argument(
        "--temperature", type=float, default=0.8, help="sampling temperature; 0: greedy decoding"
    )
    flags.add_argument("--top_k", type=int, help="sample from the k most likely tokens")
    flags.add_argument(
        "--top_p", type=float, help="sample from the most likely tokens with total probability p"
    )
    flags.add_argument("--seed", type=int, default=1337, help="random seed")
    flags.add_argument("--device", choices=DEVICES, default="auto", help="device")
    flags.add_argument("--dtype", choices=[*DTYPES, "auto"], default="auto", help="compute dtype")
    flags.add_argument("--base", type=Path, help=BASE_HELP)
    flags.add_argument("--plugins", default="", help=f"{PLUGINS_HELP} (default: %(default)r)")
    flags.add_argument(
        "--download",
        action="store_true",
        help="download the vocabulary of the run's tokenizer if it is not cached",
    )
    return flags


def read_prompt(path: Path) -> str:
    """Read a prompt file. Raises UserError if it cannot be read as UTF-8."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read --prompt_file={path}: {error}.") from error


def main(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    prompt = read_prompt(args.prompt_file) if args.prompt_file else args.prompt
    if not prompt:
        raise UserError("the prompt is empty; pass at least one character.")
    if not is_unicode(prompt):
        raise UserError(f"the prompt {prompt!r} is not valid UTF-8; use --prompt_file.")
    check_sampling(args.max_new_tokens, args.temperature, args.top_k, args.top_p)
    if args.num_samples < 1:
        raise UserError(f"num_samples={args.num_samples} must be at least 1.")
    if not 0 <= args.seed < 2**64:
        raise UserError(f"seed={quoted(args.seed)} must be at least 0 and below {2**64}.")
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    out_dir = Path(args.out_dir)
    trained = load_trained(
        args.run,
        out_dir,
        run_plugins(named_plugins(args.plugins, args.run, out_dir)),
        device=device,
        download=args.download,
        base=Base(load_weights, args.base),
        attention_backend="auto",  # the one that suits this device, not that of training
    )
    for note in (*trained.notes, f"{trained.checkpoint}:"):
        print(note, file=sys.stderr)
    model, tokenizer = trained.model, trained.tokenizer
    idx = torch.as_tensor(tokenizer.encode(prompt), dtype=torch.long, device=device)[None]
    generator = torch.Generator(device).manual_seed(args.seed)
    for _ in range(args.num_samples):
        print(prompt, end="")
        with autocast(device, dtype):  # the decoding state uses the compute dtype, too
            tokens = model.stream(
                idx,
                args.max_new_tokens,
                args.temperature,
                args.top_k,
                args.top_p,
                generator=generator,
                vocab_size=tokenizer.vocab_size,  # the model's may be padded
            )
            for text in text_of(tokens, tokenizer):
                print(text, end="", flush=True)
        print()


if __name__ == "__main__":
    run_cli(main)
