"""The model of `init_from`: the base of a run's architecture, and its first weights."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from configurator import Asked, Base, Settings, resolve
from data.dataset import Dataset
from data.tokenizer_json import TOKENIZER_FILE
from data.tokenizers import HuggingFaceTokenizer, NotCached, Tokenizer, tokenizer_from_meta
from errors import ConfigError, Problem, UserError, quoted
from interop.families import family_of, read_fields
from interop.family import OF_A_RUN
from interop.own_runs import is_run, settings_of_run, tokenizer_of_run
from interop.peft_format import CONFIG as PEFT_CONFIG
from model_config import ModelArchitectureConfig
from options import KEYS, Role
from patterns import spelled


def new_settings(asked: Asked, *, allow_unused: Collection[str] = ()) -> Settings:
    """The settings of a new run, whose model is a preset's or that of `init_from`.

    Raises ConfigError with every problem; see `configurator.resolve` for `allow_unused`.
    """
    base, problems = starting_base(asked)
    return resolve(asked, base, problems, allow_unused=allow_unused)


def starting_base(asked: Asked) -> tuple[Base | None, list[Problem]]:
    """The base that the model in the folder of `init_from` is, and what is wrong about it.

    Returns:
        The base, or None where no folder is named or it cannot be used; and the problems: that
        there is no such model, or which keys are at odds with it.
    """
    item = asked.given.get("init_from")
    if item is None or not isinstance(item.value, str) or item.value == "none":
        return None, []
    folder = item.value
    if (Path(folder) / PEFT_CONFIG).is_file():
        message = (
            f"{item.origin}: {folder} contains PEFT adapters, not a model; set init_from to the "
            "folder of their base model, which its base_model_name_or_path names."
        )
        return None, [Problem(("init_from",), message)]
    try:
        model = _architecture(Path(folder), asked.plugins)
    except UserError as error:
        message = (
            f"{item.origin}: {error} init_from takes a folder written by transformers' "
            "save_pretrained, a run directory or a checkpoint; to continue a run, use resume."
        )
        return None, [Problem(("init_from",), message)]
    keys = {key: value for key, value in model.to_dict().items() if key not in OF_A_RUN}
    return Base(keys, f"init_from {folder}", "custom"), list(_contradictions(asked, model, folder))


def _architecture(folder: Path, plugins: Mapping[str, str]) -> ModelArchitectureConfig:
    """The architecture of the model in a folder, or of a run."""
    if is_run(folder):
        return settings_of_run(folder, plugins).model
    fields = read_fields(folder)
    return ModelArchitectureConfig.from_dict(family_of(fields).read(fields))


def refuse_other_tokenizer(init_from: str, dataset: Dataset) -> None:
    """Raise UserError if the tokenizer in the folder of `init_from` differs from that of the data.

    Compares the text of each token id, regardless of the type of tokenizer. Checks nothing if a
    model folder has no tokenizer.json, or if the vocabulary of a run's tokenizer would have to be
    downloaded; and only the number of tokens if that of the data's tokenizer would have to be.
    """
    folder = Path(init_from)
    if init_from == "none":
        return
    theirs, found = _tokenizer_of(folder), ""
    if theirs is None:
        return
    if theirs.vocab_size != dataset.vocab_size:
        found = f"has {dataset.vocab_size} tokens, but the model's has {theirs.vocab_size}"
    with contextlib.suppress(NotCached):
        ours, wanted = dataset.tokenizer.vocabulary_sha256(), theirs.vocabulary_sha256()
        if not found and ours != wanted:
            found = (
                f"differs from the model's: the SHA-256 of its vocabulary is {ours}, but that of "
                f"the model's is {wanted}"
            )
    if found and is_run(folder):
        raise UserError(
            f"the tokenizer {dataset.meta['tokenizer']['name']!r} of dataset={dataset.name!r} "
            f"{found} (init_from={init_from!r}); prepare the text with the run's tokenizer."
        )
    if found:
        raise UserError(
            f"the tokenizer {dataset.meta['tokenizer']['name']!r} of dataset={dataset.name!r} "
            f"{found} (init_from={init_from!r}); prepare the text with the model's: "
            f"python data/text/prepare.py --tokenizer={shlex.quote(init_from)} --name=NAME "
            "--input FILES"
        )


def _tokenizer_of(folder: Path) -> Tokenizer | None:
    """The tokenizer of a model folder or a run; None if it is not available."""
    if is_run(folder):
        with contextlib.suppress(NotCached):
            return tokenizer_from_meta(*tokenizer_of_run(folder))
        return None
    if not (folder / TOKENIZER_FILE).is_file():
        return None
    return HuggingFaceTokenizer.from_path(folder)


def _contradictions(asked: Asked, model: ModelArchitectureConfig, folder: str) -> Iterator[Problem]:
    """What a user asks for that the model in the folder is not."""
    for key, own in asked.given.items():
        if key in model and key not in OF_A_RUN and _departs(model, key, own.value):
            yield Problem(
                (key, "init_from"),
                f"{own.origin}: {key}={quoted(own.value)}, but the model of init_from={folder!r} "
                f"has {key}={spelled(model.to_dict()[key])}; drop it, or train another model "
                "without init_from.",
            )
    if "arch_preset" in asked.given:
        yield Problem(
            ("arch_preset", "init_from"),
            f"{asked.given['arch_preset'].origin}: arch_preset has no effect with "
            f"init_from={folder!r}, which determines the architecture; drop one.",
        )


def _departs(model: ModelArchitectureConfig, key: str, value: Any) -> bool:
    """Whether a sound value of a key, however it is spelled, makes another model."""
    try:
        made = ModelArchitectureConfig.make(model.to_dict(), {key: value})
    except ConfigError:
        return KEYS[key].problem(value) is None
    return not _alike(made, model)


def _alike(made: ModelArchitectureConfig, model: ModelArchitectureConfig) -> bool:
    """Whether two configs compute the same function of the same weights: keys that only say how it
    is computed, and the rate at which router biases change, belong to a run, whereas the presence
    of these biases belongs to the model."""
    both = ([_of_model(layer.values()) for layer in one.layers] for one in (made, model))
    return made == model or next(both) == next(both)


def _of_model(values: dict[str, Any]) -> dict[str, Any]:
    own = {key: v for key, v in values.items() if KEYS[key].role is not Role.EXECUTION}
    return {key: bool(v) if key == "router_bias_rate" else v for key, v in own.items()}
