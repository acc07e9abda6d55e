"""The size of the container disk that the work needs; RunPod's default is 10 GB."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from cloud.package import Contents
from configurator import Settings
from data.dataset_files import SPLITS, bin_file
from data.dataset_lookup import prepared_folder
from model_builder import GPT

IMAGE_GB, INSTALLED_GB = 5, 15
"""GB written to the image's directories, and installed by setup: torch and its libraries."""

BYTES_PER_PARAMETER = 12
"""Bytes per parameter of a checkpoint: float32 weights and two moments."""

DATA_COPIES = 3
"""Space for data that is sent, as a multiple of its size: package, unpacked, and reserve."""

PREPARED_COPIES = 5
"""Space for data that is prepared in the pod, as a multiple of its size: including downloads."""


def disk_gb(settings: Settings, runs: int, contents: Contents) -> int:
    """GB of container disk.

    Args:
        settings: Settings of a run.
        runs: Number of such runs, all of whose checkpoints are kept.
        contents: The files that are sent.
    """
    state = BYTES_PER_PARAMETER * _parameters(settings)
    checkpoints = state * (settings.training.keep_checkpoints + 2) * runs  # the best, a new one
    code = sum(path.stat().st_size for path in contents.files.values())
    carried = sum(_folder_bytes(folder) for folder in contents.carried.values())
    data = DATA_COPIES * contents.data_bytes
    if contents.dataset is None:
        data = PREPARED_COPIES * _prepared_bytes(settings.training.dataset)
    total = checkpoints + data + DATA_COPIES * (code + carried)
    return IMAGE_GB + INSTALLED_GB + math.ceil(total / 10**9)


def _parameters(settings: Settings) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in GPT(settings.model).parameters())


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _prepared_bytes(dataset: str) -> int:
    """Bytes of a dataset that is prepared here and too large to be sent; 0 if unknown."""
    folder = prepared_folder(dataset)
    return 0 if folder is None else sum((folder / bin_file(s)).stat().st_size for s in SPLITS)
