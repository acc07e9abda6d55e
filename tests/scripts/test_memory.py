"""The table of estimated and measured memory."""

from __future__ import annotations

import sys

import pytest

from scripts import memory


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_row_is_near_what_was_measured() -> None:
    row = {"arch_preset": "llama", "batch_size": 8, "vocab_size": 8192}
    expected, measured = memory.measured({**row, "parallelism": "ddp"})
    assert expected == pytest.approx(measured, rel=0.2)


def test_every_row_is_a_run() -> None:
    """Vocabularies have room for the bytes of the default dataset and its end-of-text token."""
    rows = memory.cases(quick=False)
    assert len(rows) == 36
    assert min(row["vocab_size"] for row in rows) >= 257
