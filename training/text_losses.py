"""The losses of a run's final weights on blocks of the validation text.

The file text_losses.npy in the run directory contains the mean loss of each block of the text,
float32, in nats per token. Comparisons use it to find out whether a difference depends on the
choice of text.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from errors import UserError, file_errors
from safe_files import open_regular, write_atomically

TEXT_LOSSES_FILE = "text_losses.npy"

LARGEST_FILE = 64 * 2**20
"""Maximum size in bytes, enough for 64 GB of text in blocks of 4 KB."""


def save_text_losses(run_dir: Path, losses: np.ndarray) -> None:
    """Write the losses of blocks, shape (blocks,), atomically."""
    path = run_dir / TEXT_LOSSES_FILE
    content = io.BytesIO()
    np.save(content, losses.astype(np.float32), allow_pickle=False)
    with file_errors(f"write {path}"):
        write_atomically(path, [content.getvalue()])


def load_text_losses(run_dir: Path) -> np.ndarray | None:
    """The losses of blocks, float32 of shape (blocks,); None if the run has none.

    Raises:
        UserError: If the file is damaged.
    """
    path = run_dir / TEXT_LOSSES_FILE
    if not path.exists():
        return None
    try:
        with open_regular(path, follow_links=True) as file:
            content = file.read(LARGEST_FILE + 1)
        return _parsed(content)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}.") from error


def _parsed(content: bytes) -> np.ndarray:
    """Parse a .npy file without allocating memory for the size that its header claims."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"it has version {version} of the format, not (1, 0)")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    rest = content[file.tell() :]
    if dtype != np.float32 or len(shape) != 1 or len(rest) != 4 * shape[0]:
        raise ValueError("it does not contain float32 losses of shape (blocks,)")
    losses = np.frombuffer(rest, np.float32)
    if not np.isfinite(losses).all():
        raise ValueError("it contains non-finite losses")
    return losses
