"""Text that a model writes, token by token, and the samples that a run shows as it trains."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Iterator

import torch

from data.tokenizers import Tokenizer, tokenizer_from_meta
from errors import UserError
from training.hardware import autocast
from training.run import Run
from training_logger import NoLog, TrainingLogger

PROMPT_TOKENS = 8
"""Tokens of the validation text that a sample continues."""

TEMPERATURE = 0.8


def text_of(tokens: Iterator[torch.Tensor], tokenizer: Tokenizer) -> Iterator[str]:
    """The text of a stream of tokens (1, 1), up to an end-of-text token.

    Characters of several tokens come when complete.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        if int(token) == tokenizer.end_of_text:
            break
        yield decoder.decode(tokenizer.decode_bytes([int(token)]))
    yield decoder.decode(b"", final=True)


def sample_due(run: Run) -> bool:
    """Whether the weights as they are now are to be sampled, and have not been."""
    training = run.settings.training
    if training.sample_tokens == 0 or run.sampled_at == run.step:
        return False
    interval = training.sample_interval
    return run.finished or (interval > 0 and run.step > 0 and run.step % interval == 0)


def log_sample(run: Run, log: TrainingLogger | NoLog) -> None:
    """Log and print text that the model writes. Training goes on as if it had not been.

    The first worker samples, if it has the whole model. If there is no sample, it says why.
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
    """The start of the validation text, and how the model continues it.

    Raises:
        UserError: the vocabulary is not cached, or the logits are not finite.
    """
    tokenizer = tokenizer_from_meta(run.dataset.meta["tokenizer"])
    start = torch.as_tensor(run.dataset.val[:PROMPT_TOKENS].astype("int64"), device=run.device)
    tokens = run.network.stream(
        start[None],
        run.settings.training.sample_tokens,
        TEMPERATURE,
        generator=torch.Generator(run.device).manual_seed(run.settings.training.seed),
        vocab_size=tokenizer.vocab_size,  # the model's may be padded
    )
    # closed, the stream leaves the model in training mode again
    with autocast(run.device, run.dtype), contextlib.closing(tokens):
        text = "".join(text_of(tokens, tokenizer))
    return tokenizer.decode(start.tolist()), text
