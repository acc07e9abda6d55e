"""docs/tour.ipynb: its cells run as they are, and the outputs in it are theirs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.integration.child import ROOT

NOTEBOOK = ROOT / "docs" / "tour.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
TRAINING = next(i for i, cell in enumerate(CODE) if "nanoarch.train" in "".join(cell["source"]))
DATASET = ROOT / "data" / "shakespeare_char" / "meta.json"


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def printed(cell: dict[str, Any]) -> str:
    """What the cell printed, by the notebook."""
    streams = [output for output in cell["outputs"] if output["output_type"] == "stream"]
    return "".join("".join(output["text"]) for output in streams)


def test_every_output_is_there_and_none_is_an_error():
    kinds = [output["output_type"] for cell in CODE for output in cell["outputs"]]
    assert "error" not in kinds
    printing = [cell for cell in CODE if "print(" in source(cell) or 'console="' in source(cell)]
    assert [cell["id"] for cell in CODE if printed(cell)] == [cell["id"] for cell in printing]
    assert any("image/png" in output.get("data", {}) for output in CODE[-1]["outputs"])
    assert NOTEBOOK.stat().st_size < 200_000


def test_the_cells_before_training_print_what_the_notebook_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # and back again, from where the first cell goes
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names: dict[str, Any] = {}
    for cell in CODE[:TRAINING]:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(source(cell), names)
        if "randint" not in source(cell):
            assert out.getvalue() == printed(cell)


@pytest.mark.slow
@pytest.mark.skipif(not DATASET.exists(), reason="data/shakespeare_char is not prepared")
def test_every_cell_runs(tmp_path):
    pytest.importorskip("matplotlib", reason="see requirements-dev.txt")
    script = tmp_path / "tour.py"
    script.write_text("\n\n".join(map(source, CODE)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "difference " in done.stdout
