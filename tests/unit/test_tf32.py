"""`tf32`: what it sets, and where it is refused because it would have no effect."""

from __future__ import annotations

import pytest
import torch

import configurator
import train
from errors import ConfigError
from tests.tiny_data import tiny_run_flags, write_tiny_dataset
from training import preflight
from training.hardware import environment, has_tf32, set_tf32
from training.resume import find_start
from training_config import TrainingConfig

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.fixture
def capability(monkeypatch):
    """Pretend to have a CUDA device of some capability."""

    def pretend(major: int, minor: int) -> None:
        found = (major, minor)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: found)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Some GPU")

    return pretend


@pytest.fixture
def flags_restored():
    precision, allowed = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = allowed


@pytest.mark.usefixtures("flags_restored")
@pytest.mark.parametrize("allowed", [True, False])
def test_it_holds_for_matmuls_and_convolutions_in_old_flags_and_new(allowed):
    set_tf32(not allowed)
    set_tf32(allowed)
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    assert (cuda.fp32_precision == "tf32") == allowed
    assert cuda.allow_tf32 == allowed
    assert (cudnn.conv.fp32_precision == "tf32") == allowed
    assert cudnn.allow_tf32 == allowed
    assert environment(CPU)["tf32"] is False  # it is CUDA's


@pytest.mark.parametrize(("version", "there"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_cuda_has_it_from_capability_8(capability, version, there):
    capability(*version)
    assert has_tf32(CUDA) == there
    assert not has_tf32(CPU)
    assert not has_tf32(MPS)


def problems(device: torch.device, dtype: torch.dtype, tf32: bool = True) -> list[str]:
    found = preflight._tf32_problems(TrainingConfig(tf32=tf32), device, dtype)
    return [problem.message for problem in found]


def test_it_is_taken_where_it_does_something(capability):
    capability(8, 0)
    assert problems(CUDA, torch.float32) == []


def test_it_is_refused_where_it_has_no_effect(capability):
    capability(7, 0)
    for dtype in (torch.float32, torch.bfloat16):
        assert problems(CUDA, dtype) == [
            "tf32=True has no effect on Some GPU: it needs a CUDA device of compute capability 8.0 "
            "or higher; drop it."
        ]
    capability(8, 0)
    assert problems(CUDA, torch.bfloat16) == [
        "tf32=True has no effect in bfloat16: it affects float32 matmuls only; drop it, or "
        "set dtype='float32'."
    ]
    assert problems(CPU, torch.float32)[0].endswith("drop it.")


def test_off_is_taken_everywhere(capability):
    capability(7, 0)
    for device in (CPU, CUDA):
        assert problems(device, torch.float32, tf32=False) == []


# In a run


def set_up(tmp_path, *flags: str) -> train.Run:
    dataset = write_tiny_dataset(tmp_path / "data")
    argv = [*tiny_run_flags(dataset), f"--out_dir={tmp_path}", *flags]
    return train.set_up(find_start(configurator.read(argv)))


@pytest.mark.usefixtures("flags_restored")
def test_a_run_sets_it_whatever_it_was(tmp_path):
    set_tf32(True)
    set_up(tmp_path)
    assert not torch.backends.cudnn.allow_tf32


def test_a_run_on_a_cpu_refuses_it(tmp_path):
    with pytest.raises(ConfigError, match="tf32=True has no effect on "):
        set_up(tmp_path, "--tf32=True")
