"""Small tokenizers as Hugging Face models have them, trained on a few kB of text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

TEXT = "It's naïve — 東京 🎭🎉\r\n\n  \tx = 1234567 + y__z\x00 don't DON'T  e\u0301nd <|end|> \n"
_LESSON = (
    "The quick brown fox doesn't jump over 12 lazy dogs; the naïve fox of 東京 does.\n\n"
    "def fox(x):\n    return x + 1  # 🎭🎉🎭🎉 the end\n"
) * 20


def write_byte_level(folder: Path, *, size: int = 400, normalizer: str | None = None) -> Path:
    """A byte-level BPE like Qwen's: <|end|> ends a text, <|tool|> is no special token."""
    tokenizers = pytest.importorskip("tokenizers", reason="pip install tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    if normalizer:
        tokenizer.normalizer = getattr(tokenizers.normalizers, normalizer)()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=["<|begin|>", "<|end|>"]
    )
    tokenizer.train_from_iterator([_LESSON], trainer)
    tokenizer.add_tokens([tokenizers.AddedToken("<|tool|>", normalized=False)])
    begin = tokenizers.processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    tokenizer.post_processor = begin
    return _write(folder, tokenizer, {"eos_token": "<|end|>", "bos_token": "<|begin|>"})


def write_sentencepiece(folder: Path) -> Path:
    """A BPE with byte fallback like Llama 2's, which adds a space before a text."""
    tokenizers = pytest.importorskip("tokenizers", reason="pip install tokenizers")
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    specials = ["<unk>", "<s>", "</s>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=500, special_tokens=specials + fallback)
    tokenizer.train_from_iterator(_LESSON.split("\n")[0].split(" "), trainer)
    _write(folder, tokenizer, {"eos_token": {"__type": "AddedToken", "content": "</s>"}})
    change(folder, lambda spec: spec.update(added_tokens=spec["added_tokens"][:3]))
    return folder


def write_gemma(folder: Path) -> Path:
    """The same as Gemma has it: it adds no space, and cuts text before it merges."""
    replaced = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    cut = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}
    parts = {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": cut | {"invert": False},
        "decoder": _decoder(replaced),
    }
    return change(write_sentencepiece(folder), lambda spec: spec.update(parts))


def write_metaspace(folder: Path) -> Path:
    """The same as later versions of Mistral have it: a step before merging adds the space."""
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    parts = {"normalizer": None, "pre_tokenizer": metaspace, "decoder": _decoder(metaspace)}
    return change(write_sentencepiece(folder), lambda spec: spec.update(parts))


def _decoder(first: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "decoders": [first, {"type": "ByteFallback"}, {"type": "Fuse"}]}


def _write(folder: Path, tokenizer: Any, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def change(folder: Path, how: Any) -> Path:
    """Change the JSON of a folder's tokenizer.json in place."""
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    how(spec)
    path.write_text(json.dumps(spec), encoding="utf-8")
    return folder
