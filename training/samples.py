"""Decode generated text token by token, and log samples during training."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Iterator

import torch

from data.tokenizers import Tokenizer
from errors import UserError
from training.hardware import autocast
from training.run import Run
from training_logger import NoLog, TrainingLogger

PROMPT_TOKENS = 8
"""Length of the prompt of a sample, the beginning of the validation text."""

TEMPERATURE = 0.8


def text_of(tokens: Iterator[torch.Tensor], tokenizer: Tokenizer) -> Iterator[str]:
    """Decode a stream of tokens of shape (1, 1), up to an end-of-text token.

    A character that spans several tokens is yielded once it is complete.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        if int(token) == tokenizer.end_of_text:
            break
        yield decoder.decode(tokenizer.decode_bytes([int(token)]))
    yield decoder.decode(b"", final=True)


def sample_due(run: Run) -> bool:
    """Whether a sample of the current weights is due and has not been logged."""
    training = run.settings.training
    if training.sample_tokens == 0 or run.sampled_at == run.step:
        return False
    interval = training.sample_interval
    return run.finished or (interval > 0 and run.step > 0 and run.step % interval == 0)


def log_sample(run: Run, log: TrainingLogger | NoLog) -> None:
    """Log and print generated text, without affecting training.

    The first worker samples if it holds the whole model; otherwise it prints the reason.
    """
    run.watch.stop()
    run.sampled_at = run.step
    if not run.workers.first:
        return
    if not run.placement.keeps_whole:
        log.say("no sample: the model is distributed; use sample.py on a checkpoint.")
        return
    try:
        prompt, text = _continued(run)
    except UserError as error:
        log.say(f"no sample: {error}")
        return
    log.log_sample(iter=run.step, tokens_seen=run.tokens_seen, prompt=prompt, text=text)


def _continued(run: Run) -> tuple[str, str]:
    """The prompt, which is the beginning of the validation text, and the model's continuation.

    Raises:
        UserError: If the vocabulary is not cached, or the logits are not finite.
    """
    tokenizer = run.dataset.tokenizer
    start = torch.as_tensor(run.dataset.val[:PROMPT_TOKENS].astype("int64"), device=run.device)
    tokens = run.network.stream(
        start[None],
        run.settings.training.sample_tokens,
        TEMPERATURE,
        generator=torch.Generator(run.device).manual_seed(run.settings.training.seed),
        vocab_size=tokenizer.vocab_size,  # the model's may be padded
    )
    # Closing the stream puts the model back in training mode.
    with autocast(run.device, run.dtype), contextlib.closing(tokens):
        text = "".join(text_of(tokens, tokenizer))
    return tokenizer.decode(start.tolist()), text
