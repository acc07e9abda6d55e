"""Import and export Hugging Face transformers model folders.

    python -m interop.huggingface export RUN OUT_DIR

writes the weights, config and tokenizer of a run as a folder that transformers loads;
`train.py --init_from=FOLDER` starts a run from such a folder.

Only safetensors and JSON are read and written: nothing is unpickled, and no code from a folder is
run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cli import CommandParser, run_cli, typed_command
from data.tokenizers import Tokenizer
from errors import ConfigError, Problem, UserError, unknown_name
from interop.families import CONFIG, FAMILIES, family_of, read_fields
from interop.family import Family
from interop.own_runs import is_run, load_run_weights
from interop.peft_format import save_adapter
from interop.tokenizer import tokenizer_files
from interop.weights import copy_weights, their_tensors
from model_builder import GPT
from model_config import ModelArchitectureConfig
from options import KEYS
from safe_files import read_json, usual_permissions
from training.saved_plugins import PLUGINS_HELP, named_plugins
from training.trained_model import BASE_HELP, RUN_HELP, Base, TrainedModel, load_trained
from user_files import run_plugins

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


# Reading


def load(source: str | Path | Any, **changes: Any) -> GPT:
    """The model of a folder, or of a model that transformers made, in evaluation mode.

    Args:
        source: The folder, or a model with a `config` and a `state_dict()`.
        changes: Keys of the architecture to change, such as `dropout` and `attention_backend`,
            which have their defaults otherwise.

    Raises:
        UserError: a family that is not known, a field that cannot be expressed here, or weights
            that are missing, too many, or of another shape.
    """
    if isinstance(source, str | Path):
        fields, tensors = read_fields(Path(source)), read_tensors(Path(source))
    else:
        fields, tensors = source.config.to_dict(), source.state_dict()
    family = family_of(fields)
    model = GPT(ModelArchitectureConfig.make(family.read(fields), changes))
    copy_weights(model, family, tensors)
    return model.eval()


def load_weights(model: GPT, folder: Path) -> None:
    """Copy the weights of a model folder, or of a run or checkpoint, into a model of its
    architecture. Raises UserError like `load` and `own_runs.load_run_weights`."""
    if is_run(folder):
        load_run_weights(model, folder, load_weights)
        return
    copy_weights(model, family_of(read_fields(folder)), read_tensors(folder))


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's safetensors, in one file or several.

    Raises:
        UserError: files are missing or damaged.
    """
    files = _weight_files(folder)
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} has no {', '.join(missing)}; only safetensors are supported. Save the "
            "model again with transformers' save_pretrained, which writes them."
        )
    tensors: dict[str, Tensor] = {}
    for name in files:
        try:
            tensors |= load_file(folder / name)
        except SafetensorError as error:
            raise UserError(f"{folder / name} is damaged: {error}.") from error
    return tensors


def _weight_files(folder: Path) -> list[str]:
    """The names of a folder's safetensors; UserError where its index names a file elsewhere."""
    if not (folder / INDEX).is_file():
        return [WEIGHTS]
    index = read_json(folder / INDEX, follow_links=True)
    try:
        names = sorted(set(index["weight_map"].values()))
        plain = all(Path(name).name == name for name in names)
    except (KeyError, TypeError, AttributeError):
        names, plain = [], False
    if not names or not plain:
        raise UserError(
            f"{folder / INDEX} is damaged: its weight_map must name files in the same folder."
        )
    return names


# Writing


def save(
    model: GPT, folder: str | Path, family: str | None = None, tokenizer: Tokenizer | None = None
) -> None:
    """Write a folder that transformers loads.

    Args:
        model: The model.
        folder: Where to; made where it is missing, empty otherwise.
        family: The model_type to write; None: the first that can express the architecture.
        tokenizer: Written too, where transformers can have it (`tokenizer_files`).

    Raises:
        ConfigError: no family, or not the one asked for, can express the architecture; naming the
            keys.
        UserError: an unknown family, or a folder that holds something.
    """
    chosen, folder = choose_family(model.config, family), Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name another folder, or empty it.")
    folder.mkdir(parents=True, exist_ok=True)
    end_of_text = None if tokenizer is None else tokenizer.end_of_text
    tokens = chosen.token_fields(end_of_text)
    fields = chosen.write(model.config) | tokens | {"torch_dtype": _dtype(model)}
    _write_json(folder / CONFIG, fields)
    with usual_permissions(folder / WEIGHTS):
        save_file(their_tensors(model, chosen), folder / WEIGHTS, metadata={"format": "pt"})
    for name, content in tokenizer_files(tokenizer, model.config.block_size).items():
        _write_json(folder / name, content)


def choose_family(config: ModelArchitectureConfig, name: str | None = None) -> Family:
    """The family to write an architecture as; see `save`."""
    if name is not None and name not in FAMILIES:
        raise UserError(unknown_name("family", name, FAMILIES))
    candidates = FAMILIES.values() if name is None else [FAMILIES[name]]
    misfits = {family.model_type: family.misfits(config) for family in candidates}
    nearest = min(misfits, key=lambda family: _distance(misfits[family]))
    if misfits[nearest]:
        raise ConfigError(misfits[nearest])
    return FAMILIES[nearest]


def _distance(misfits: list[Problem]) -> tuple[bool, int]:
    """A family that differs in some keys is nearer than one without such a mixer or model."""
    return any(problem.keys in ((), ("mixer",)) for problem in misfits), len(misfits)


def _dtype(model: GPT) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# The command


def export(
    run: str,
    folder: Path,
    out_dir: Path,
    family: str | None,
    plugins: str,
    download: bool = False,
    base: Path | None = None,
    peft: bool = False,
) -> list[str]:
    """Write a run's newest checkpoint as a folder of transformers; lines that say what was done.

    The adapters of a run are merged into the weights, or, with `peft`, written alone.

    Raises:
        UserError: there is no such run, or what `load_trained`, `save` or `save_adapter` refuses.
    """
    registered = run_plugins(named_plugins(plugins, run, out_dir))
    start = Base(load_weights, base)
    trained = load_trained(run, out_dir, registered, download=download, base=start, merges=not peft)
    model, tokenizer = trained.model, trained.tokenizer
    if peft:
        _save_peft(trained, folder, family)
    else:
        save(model, folder, family, tokenizer)
    written = sorted(file.name for file in folder.iterdir())
    notes = [*trained.notes, f"{trained.checkpoint} -> {folder}: {', '.join(written)}"]
    if model.mtp:
        notes.append(
            f"The modules for multi-token prediction ({model.mtp_parameters():,} parameters) are "
            "left out: transformers has no equivalent."
        )
    if peft and is_run(Path(trained.training.init_from)):
        notes.append(
            f"PEFT cannot load the base {trained.training.init_from}, which is a run: export it, "
            "too, and set base_model_name_or_path in adapter_config.json to its folder."
        )
    if not peft and not tokenizer_files(tokenizer, model.config.block_size):
        notes.append(
            f"No tokenizer is written: transformers has no equivalent of {tokenizer.name!r}."
        )
    return notes


def _save_peft(trained: TrainedModel, folder: Path, family: str | None) -> None:
    if not trained.model.adapted:
        raise UserError(f"{trained.checkpoint} has no adapters; drop --peft to export the model.")
    folder_of_base = Path(trained.training.init_from)
    if is_run(folder_of_base):
        base = choose_family(trained.model.config)
    else:
        base = family_of(read_fields(folder_of_base))
    if family not in (None, base.model_type):
        raise UserError(
            f"--family={family} has no effect with --peft: the adapters are those of a "
            f"{base.model_type}; drop it."
        )
    save_adapter(trained.model, base, folder, trained.training)


def parser() -> argparse.ArgumentParser:
    about = __doc__.splitlines()[0]
    typed = typed_command("python -m interop.huggingface export")
    flags = CommandParser(prog=typed.removesuffix(" export"), description=about, keys=KEYS)
    commands = flags.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "export", help="export a run as a Hugging Face transformers folder"
    )
    command.add_argument("run", help=RUN_HELP)
    command.add_argument("folder", type=Path, help="output folder; must be new or empty")
    command.add_argument("--out_dir", type=Path, default=Path("out"), help="directory of all runs")
    command.add_argument(
        "--family", help=f"one of {', '.join(FAMILIES)}; default: the first that fits"
    )
    command.add_argument("--plugins", default="", help=PLUGINS_HELP)
    command.add_argument(
        "--download",
        action="store_true",
        help="download the vocabulary of the run's tokenizer if it is not cached",
    )
    command.add_argument("--base", type=Path, help=BASE_HELP)
    command.add_argument(
        "--peft", action="store_true", help="write only the run's adapters, in the format of PEFT"
    )
    return flags


def main(argv: list[str]) -> None:
    print("\n".join(export(**vars(parser().parse_args(argv)))))


if __name__ == "__main__":
    run_cli(main)
