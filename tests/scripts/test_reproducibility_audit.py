"""The audit: what it finds out, and that nothing unknown or different passes for a match."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from scripts import reproducibility_audit as audit
from scripts.reproducibility_audit import (
    DIFFERS,
    ERROR,
    NOTE,
    NOTED,
    OK,
    PROBES,
    RECORDED,
    SCHEMA_VERSION,
    Trained,
    conclusion,
    fact_of,
    main,
    rows,
    same_bits,
    table,
)
from scripts.runs import FAILED, PASSED, UNDECIDED
from training.checkpoint import save_checkpoint
from training.hardware import environment
from training.sharded_tensors import gathered_weights
from training.updates import Updates

CPU = torch.device("cpu")


def value(found) -> dict:
    return {"value": found}


def error(text: str) -> dict:
    return {"error": text}


def report(config: dict | None = None, /, **facts) -> dict:
    """A report in which all is well but for `facts`."""
    sound = {name: value("x") for name in PROBES} | {"bit_identical": value(True)}
    return {"schema_version": SCHEMA_VERSION, "facts": sound | facts, "config": config or {}}


def verdicts(*reports: dict) -> dict[str, str]:
    """The verdict on each fact that is not simply ok."""
    return {row.name: row.verdict for row in rows(*reports) if row.verdict != OK}


def outcome(*reports: dict) -> int:
    return conclusion(list(rows(*reports)))[0]


# What is made of the facts


def test_equal_reports_match():
    assert verdicts(report(), report()) == {}
    assert outcome(report(), report()) == outcome(report()) == PASSED


@pytest.mark.parametrize("name", PROBES)
def test_every_fact_that_matters_fails_where_it_differs(name):
    other = report(**{name: value(False if name == "bit_identical" else "y")})
    expected = NOTE if name in NOTED else DIFFERS
    assert verdicts(report(), other) == verdicts(other, report()) == {name: expected}
    assert outcome(report(), other) == (PASSED if name in NOTED else FAILED)


@pytest.mark.parametrize("name", PROBES)
def test_an_error_is_no_match_even_where_both_have_it(name):
    broken = report(**{name: error("no such program")})
    for reports in ([broken], [broken, report()], [report(), broken], [broken, broken]):
        assert verdicts(*reports) == {name: ERROR}
        assert outcome(*reports) == UNDECIDED


def test_a_fact_that_one_report_lacks_is_no_match():
    less = report()
    del less["facts"]["weights"]
    assert verdicts(report(), less) == verdicts(less, report()) == {"weights": ERROR}


def test_trainings_that_differ_fail_even_where_both_reports_say_so():
    unstable = report(bit_identical=value(False))
    assert outcome(unstable) == outcome(unstable, unstable) == FAILED


def test_a_certain_difference_weighs_more_than_an_unknown():
    assert outcome(report(), report(torch=value("y"), driver=error("?"))) == FAILED


def test_the_config_keys_that_differ_are_named():
    left = report({"n_layer": 2, "bias": True}, config=value("a"))
    right = report({"n_layer": 3, "bias": True, "tf32": False}, config=value("b"))
    found = verdicts(left, right)
    assert found == {"config": DIFFERS, "config.n_layer": DIFFERS, "config.tf32": DIFFERS}


def test_the_table_shows_both_sides_of_a_difference_and_one_of_a_match():
    text = table(rows(report(), report(torch=value("2.12"), driver=error("no smi"))))
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("torch "))
    assert [line.split() for line in lines[at : at + 2]] == [["torch", "DIFFERS", "x"], ["2.12"]]
    assert sum("no smi" in line for line in lines) == 1
    assert [line.split() for line in lines if line.startswith("numpy")] == [["numpy", "ok", "x"]]


# The probes


def trained(folder: Path, *, seed: int = 0, loss: float = 1.0) -> Trained:
    """A run whose last checkpoint is of a small model made with a seed."""
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(
        folder / "checkpoints",
        step=1,
        weights=gathered_weights(model),
        kept=Updates(model, torch.optim.AdamW(model.parameters())).gathered(),
        state={},
        val_loss=loss,
        plugins={},
        keep=1,
    )
    log = {
        "config": {"n_layer": 2, "out_dir": str(folder), "run_name": folder.name},
        "environment": environment(CPU) | {"dtype": "float32"},
        "training_iterations": [{"loss": loss}],
        "eval_steps": [{"val_loss": loss}],
    }
    return Trained(folder, log)


def test_runs_are_the_same_only_to_the_last_bit(tmp_path):
    first = trained(tmp_path / "a")
    assert same_bits(first, trained(tmp_path / "b"))
    assert not same_bits(first, trained(tmp_path / "c", seed=1))
    assert not same_bits(first, trained(tmp_path / "d", loss=1.0 + 1e-15))


def test_where_a_run_is_kept_is_not_its_config(tmp_path):
    assert trained(tmp_path / "a").config == trained(tmp_path / "b").config == {"n_layer": 2}


def test_a_probe_that_raises_is_an_error_and_no_value(tmp_path):
    run = trained(tmp_path / "a")
    run.log["environment"].pop("torch")
    found = fact_of(PROBES["torch"], run, run)
    assert found == error("KeyError: 'torch'")


def test_a_damaged_checkpoint_is_an_error(tmp_path):
    run = trained(tmp_path / "a")
    weights = next(run.folder.rglob("model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    for name in ("weights", "bit_identical"):
        assert "altered" in fact_of(PROBES[name], run, run)["error"]


def test_all_that_a_run_records_of_its_environment_is_looked_at():
    code = {"commit", "dirty", "source_sha256"}
    assert {*RECORDED, "driver", *code} == {*environment(CPU), "dtype"}
    assert {*RECORDED, "driver", "commit", "dirty"} <= PROBES.keys()
    assert set(NOTED) <= PROBES.keys()


def test_no_driver_is_an_error_only_where_there_is_a_cuda_device(tmp_path, monkeypatch):
    run = trained(tmp_path / "a")
    run.log["environment"]["driver"] = None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fact_of(PROBES["driver"], run, run) == value(None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "nvidia-smi" in fact_of(PROBES["driver"], run, run)["error"]


def test_variables_that_change_the_numbers_are_told(monkeypatch):
    for name in audit.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert audit.variables() == "none set"
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    assert audit.variables() == "NVIDIA_TF32_OVERRIDE=0 PYTHONHASHSEED=1"


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A checkout with one commit, in place of the project's own."""
    monkeypatch.setattr(audit, "PROJECT", tmp_path)
    (tmp_path / "a.py").write_text("1\n")
    identity = ("-c", "user.name=T", "-c", "user.email=t@example.org")
    for arguments in (("init", "-q"), ("add", "-A"), (*identity, "commit", "-qm", "x")):
        subprocess.run(("git", "-C", str(tmp_path), *arguments), check=True)
    return tmp_path


def test_the_code_is_what_lies_on_the_disk(project):
    committed = audit.source()
    assert (len(audit.commit()), audit.dirty()) == (40, False)
    (project / "tests").mkdir()
    (project / "tests" / "test_a.py").write_text("2\n")
    assert audit.source() == committed
    (project / "a.py").write_text("2\n")
    edited = audit.source()
    assert edited != committed
    assert audit.dirty()
    (project / "b.py").write_text("2\n")
    with_another = audit.source()
    assert with_another != edited
    (project / "b.py").rename(project / "c.py")
    assert audit.source() not in (edited, with_another)


def test_a_deleted_file_is_no_code(project):
    before = audit.source()
    (project / "a.py").unlink()
    assert audit.source() != before


def test_git_that_cannot_tell_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "PROJECT", tmp_path / "nowhere")
    for name in ("commit", "dirty", "source"):
        assert "git" in fact_of(PROBES[name], None, None)["error"]


def test_a_copy_inside_another_checkout_is_an_error(project, monkeypatch):
    (project / ".gitignore").write_text("copy/")
    (project / "copy").mkdir()
    monkeypatch.setattr(audit, "PROJECT", project / "copy")
    for name in ("commit", "dirty", "source"):
        assert "clone the project" in fact_of(PROBES[name], None, None)["error"]


# The command


def written(path: Path, content: dict) -> str:
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def test_comparing_files(tmp_path, capsys):
    left = written(tmp_path / "a.json", report())
    right = written(tmp_path / "b.json", report(torch=value("y")))
    assert main(["--compare", left, left]) == PASSED
    assert "PASSED: no relevant differences" in capsys.readouterr().out
    assert main(["--compare", left, right]) == FAILED
    assert "FAILED: different: torch" in capsys.readouterr().out
    unknown = written(tmp_path / "c.json", report(driver=error("?")))
    assert main(["--compare", left, unknown]) == UNDECIDED
    assert "UNDECIDED: unknown: driver" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", "[]", "{}", '"schema_version"'])
def test_a_file_that_is_no_report_is_an_error(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="is not an audit report"):
        main(["--compare", str(path), str(path)])


def test_a_report_of_another_version_or_not_whole_is_an_error(tmp_path):
    newer, torn = report() | {"schema_version": 99}, copy.deepcopy(report())
    del torn["facts"]
    with pytest.raises(ValueError, match=f"version 99, but this code reads {SCHEMA_VERSION}"):
        main(["--compare", *[written(tmp_path / "a.json", newer)] * 2])
    with pytest.raises(ValueError, match="is not an audit report"):
        main(["--compare", *[written(tmp_path / "b.json", torn)] * 2])


def test_comparing_takes_no_flags_of_training(tmp_path):
    path = written(tmp_path / "a.json", report())
    with pytest.raises(ValueError, match="drop --max_iters=3"):
        main(["--compare", path, path, "--max_iters=3"])


@pytest.mark.slow
def test_two_real_trainings_are_bit_identical_and_match_themselves(tmp_path, tiny_run, capfd):
    path = tmp_path / "reports" / "a.json"
    status = main(["--save", str(path), *tiny_run])
    saved = json.loads(path.read_text())
    assert saved["facts"]["bit_identical"] == value(True)
    assert len(saved["facts"]["weights"]["value"]) == 64
    assert saved["config"]["n_embd"] == 8
    unknown = {name for name, fact in saved["facts"].items() if "error" in fact}
    assert unknown <= {"commit", "dirty", "source"}  # those of a project that is no checkout
    assert status == main(["--compare", str(path), str(path)]) == (UNDECIDED if unknown else PASSED)
    assert "bit_identical" in capfd.readouterr().out


def test_trainings_that_end_apart_fail(tmp_path, monkeypatch, capsys):
    seeds = iter((1, 2))
    monkeypatch.setattr(
        audit, "train", lambda arguments, folder: trained(folder, seed=next(seeds)).log
    )
    assert audit.audit([], tmp_path)["facts"]["bit_identical"] == value(False)
    seeds = iter((1, 2))
    assert main([]) == FAILED
    assert "FAILED: different: bit_identical" in capsys.readouterr().out
