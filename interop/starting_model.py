"""The model of `init_from`: the base of a run's architecture, and its first weights."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from configurator import Asked, Base, Settings, resolve
from data.dataset import Dataset
from data.tokenizer_json import TOKENIZER_FILE
from data.tokenizers import HuggingFaceTokenizer, NotCached
from errors import ConfigError, Problem, UserError, quoted
from interop.families import family_of, read_fields
from interop.family import OF_A_RUN
from model_config import ModelArchitectureConfig
from options import KEYS
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
    try:
        fields = read_fields(Path(folder))
        model = ModelArchitectureConfig.from_dict(family_of(fields).read(fields))
    except UserError as error:
        message = (
            f"{item.origin}: {error} init_from takes a folder written by transformers' "
            "save_pretrained; to continue a run, use resume."
        )
        return None, [Problem(("init_from",), message)]
    keys = {key: value for key, value in model.to_dict().items() if key not in OF_A_RUN}
    return Base(keys, f"init_from {folder}", "custom"), list(_contradictions(asked, model, folder))


def refuse_other_tokenizer(init_from: str, dataset: Dataset) -> None:
    """Raise UserError if the tokenizer in the folder of `init_from` differs from that of the data.

    Compares the text of each token id, regardless of the type of tokenizer. Checks nothing if the
    folder has no tokenizer.json, and only the number of tokens if the vocabulary of the data's
    tokenizer would have to be downloaded.
    """
    folder = Path(init_from)
    if init_from == "none" or not (folder / TOKENIZER_FILE).is_file():
        return
    theirs, found = HuggingFaceTokenizer.from_path(folder), ""
    if theirs.vocab_size != dataset.vocab_size:
        found = f"has {dataset.vocab_size} tokens, but the model's has {theirs.vocab_size}"
    with contextlib.suppress(NotCached):
        ours, wanted = dataset.tokenizer.vocabulary_sha256(), theirs.vocabulary_sha256()
        if not found and ours != wanted:
            found = (
                f"differs from the model's: the SHA-256 of its vocabulary is {ours}, but that of "
                f"the model's is {wanted}"
            )
    if found:
        raise UserError(
            f"the tokenizer {dataset.meta['tokenizer']['name']!r} of dataset={dataset.name!r} "
            f"{found} (init_from={init_from!r}); prepare the text with the model's: "
            f"python data/text/prepare.py --tokenizer={shlex.quote(init_from)} --name=NAME "
            "--input FILES"
        )


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
    return made != model
