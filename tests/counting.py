"""Batches in which every token is its position in the split."""

import numpy as np

from data.batches import TrainingBatches


def batches(tokens=1000, **options):
    """Batches of a split whose tokens count up from 0."""
    settings = {
        "sequence_length": 10,
        "batch_size": 3,
        "gradient_accumulation_steps": 2,
        "data_seed": 1337,
    }
    return TrainingBatches(np.arange(tokens, dtype=np.uint16), **(settings | options))


def starts(batch):
    """First tokens of a batch's sequences; the tokens of `batches` count up."""
    inputs, _ = batch
    return inputs[..., 0].flatten().tolist()
