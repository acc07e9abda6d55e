"""Whether compile=auto compiles, by arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from configurator import Settings, load
from model_builder import GPT
from training import compiling
from training.compiling import Compilation, compilation, compile_seconds, has_compiler

CPU = torch.device("cpu")
SIZES = ["--n_layer=2", "--n_head=2", "--n_embd=64", "--block_size=64", "--vocab_size=512"]
PEAK = 1e11


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "peak_flops", lambda device, dtype: PEAK)
    monkeypatch.setattr(compiling, "has_compiler", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def settings(*flags: str) -> Settings:
    return load([*SIZES, "--batch_size=8", *flags])


def asked(device: str, *flags: str, workers: int = 1) -> Compilation:
    return compilation(settings(*flags), torch.device(device), torch.float32, workers)


def steps_that_pay() -> int:
    """Steps of which the time saved is the time that compiling takes."""
    flops = GPT(settings().model).flops_per_token(64) * 8 * 64
    seconds = flops / (compiling.EAGER_SHARE * PEAK)
    return round(compile_seconds(2) / (compiling.SAVED_SHARE * seconds))


def test_a_cpu_compiles_what_trains_long_enough() -> None:
    enough = steps_that_pay()
    assert asked("cpu", f"--max_iters={int(1.01 * enough)}").compiles
    found = asked("cpu", f"--max_iters={int(0.99 * enough)}")
    assert not found.compiles
    assert str(found) == "not compiled (compiling takes 28 s and would save 27 s)"
    assert not asked("cpu", f"--max_iters={int(1.99 * enough)}", workers=2).compiles
    assert asked("cpu", f"--max_iters={int(2.01 * enough)}", workers=2).compiles


def test_a_limit_of_minutes_is_the_time_of_the_run() -> None:
    minutes = compile_seconds(2) / compiling.SAVED_SHARE / 60
    many = f"--max_iters={10 * steps_that_pay()}"
    assert asked("cpu", many, f"--max_minutes={1.01 * minutes}").compiles
    assert not asked("cpu", many, f"--max_minutes={0.99 * minutes}").compiles
    assert not asked("cpu", "--max_iters=10", f"--max_minutes={2 * minutes}").compiles


def test_a_short_run_does_not_measure_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "peak_flops", lambda *_: pytest.fail("measured"))
    assert not asked("cpu", "--max_iters=10").compiles


def test_what_is_asked_for_is_done() -> None:
    for device in ("cpu", "cuda", "mps"):
        assert str(asked(device, "--compile=True", "--max_iters=1")) == "compiled"
        assert str(asked(device, "--compile=False", "--max_iters=1000000")) == "not compiled"


def test_auto_elsewhere() -> None:
    assert asked("cuda", "--max_iters=1").compiles
    assert not asked("mps", "--max_iters=1000000").compiles


def test_what_may_not_compile_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = "--max_iters=1000000"
    assert asked("cpu", long).compiles
    plugin = tmp_path / "own.py"
    plugin.write_text(
        "from components.norms import NORMS, LayerNorm\n"
        "@NORMS.register('own_norm', label='Own')\n"
        "class Own(LayerNorm):\n    'LayerNorm by another name.'\n"
    )
    assert str(asked("cpu", long, f"--plugins={plugin}")) == "not compiled (plugins)"
    monkeypatch.setattr(compiling, "has_compiler", lambda: False)
    assert str(asked("cpu", long)) == "not compiled (no C++ compiler)"


def test_a_compiler_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiling.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(compiling.shutil, "which", lambda name: name == "my-c++")
    monkeypatch.setenv("CXX", "my-c++")
    assert not has_compiler()  # without Python's headers
    (tmp_path / "Python.h").touch()
    assert has_compiler()
    monkeypatch.delenv("CXX")
    assert not has_compiler()
