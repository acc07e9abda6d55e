"""The page of what is proven: how it is made, and that it names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from scripts import verification
from tests.contract.test_random_combinations import EXAMPLES, FEW
from tests.measured import assert_close, assert_within, observing, observing_torch, relative_error

PROJECT = Path(__file__).parents[2]


def test_the_page_names_tests_that_exist():
    named = set(re.findall(r"`(test_\w+)`", verification.PAGE.read_text(encoding="utf-8")))
    files = (PROJECT / "tests").rglob("test_*.py")
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    missing = {name for name in named if f"def {name}(" not in source}
    assert not missing, f"run scripts/verification.py; the page names {missing}"


def test_every_section_has_rows():
    text = verification.PAGE.read_text(encoding="utf-8")
    for section in verification.SECTIONS:
        rows = text.split(f"## {section.title}\n")[1].split("\n## ")[0].count("\n| ")
        assert rows > 2, f"{section.title} has no rows"


def test_the_number_of_combinations_is_the_one_drawn():
    text = verification.PAGE.read_text(encoding="utf-8")
    assert f"{FEW} in the default tests, and {EXAMPLES} with `pytest -m slow`" in text


def test_a_row_has_words_cases_and_the_largest_of_each_tolerance(monkeypatch):
    proof = verification.Proof("tests/a.py", "test_it_holds", "Always.\n\nAnd more.", 3)
    proof.largest |= {1e-4: 3e-6, 1e-12: 0.0}
    section = verification.VerificationSection("Laws", "Text.", ("tests/a.py",))
    recorder = verification.Recorder()
    recorder.proofs["tests/a.py::test_it_holds"] = proof
    monkeypatch.setattr(verification, "SECTIONS", (section,))
    row = "| It holds. Always. | `test_it_holds` | 3 | 0.0e+00 of 1e-12<br>3.0e-06 of 1e-04 |"
    assert row in verification.page(recorder).splitlines()


def test_a_failure_leaves_the_page(monkeypatch, tmp_path, capsys):
    page = tmp_path / "page.md"
    monkeypatch.setattr(verification, "PAGE", page)
    monkeypatch.setattr(verification.pytest, "main", lambda *_, **__: pytest.ExitCode.TESTS_FAILED)
    assert verification.main([]) == 1
    assert not page.exists()
    assert "a test failed" in capsys.readouterr().err


def test_what_is_measured_is_observed_and_checked():
    with observing() as seen:
        assert_within(0.5, 1.0)
        with pytest.raises(AssertionError, match="the loss is 2; 1 is allowed"):
            assert_within(2.0, 1.0, "the loss")
        with pytest.raises(AssertionError):
            assert_within(float("nan"), 1.0)
    assert [tuple(pair) for pair in seen[:2]] == [(0.5, 1.0), (2.0, 1.0)]
    assert_within(0.5, 1.0)
    assert len(seen) == 3
    assert relative_error(torch.tensor([1.0, -3.0]), torch.tensor([1.0, -4.0])) == 0.25
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0.0
    with pytest.raises(AssertionError, match="is not"):
        assert_close(torch.zeros(2), torch.zeros(3), 1.0)


def test_what_torch_finds_close_is_observed():
    one, near = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0 + 1e-6])
    with observing_torch(), observing() as seen:
        assert torch.allclose(near, one, rtol=1e-3)
        assert not torch.allclose(near, one + 1)
        torch.testing.assert_close((near, [one], {"a": near}), (one, [one], {"a": one}))
    assert [round(error, 8) for error, _ in seen] == [4.8e-07, 4.8e-07, 0.0, 4.8e-07]
    assert [tolerance for _, tolerance in seen] == [1e-3, 1.3e-6, 1.3e-6, 1.3e-6]
    with observing() as seen:
        assert torch.allclose(near, one)
    assert not seen
