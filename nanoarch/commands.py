"""The commands of `nanoarch`."""

from __future__ import annotations

COMMANDS = {
    "train": ("train", "train an architecture and log what it costs"),
    "sweep": ("sweep", "train comparable arms and report verdicts"),
    "compare": ("compare_architectures", "compare runs"),
    "sample": ("sample", "generate text with a trained model"),
    "export": ("interop.huggingface", "export a trained model to Hugging Face transformers"),
    "completion": ("nanoarch.completion", "print a shell completion script"),
}
"""By name the module whose `main` runs, and what it does."""
