"""Device, dtype, peaks, memory and the description of the machine; no accelerator needed."""

from __future__ import annotations

import json
import mmap
import os
import platform
import random
import re
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from training import hardware
from training.hardware import (
    PEAK_TFLOPS,
    autocast,
    device_name,
    environment,
    host_memory,
    memory_stats,
    peak_flops,
    prepare_device,
    resolve_device,
    resolve_dtype,
    seed_everything,
    synchronize,
    total_memory,
)

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Pretend to be a machine: `machine(cuda=True, name=..., capability=..., flags=...)`."""

    def pretend(*, cuda=False, mps=False, name="NVIDIA X", capability=(8, 0), flags=None, macos=26):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(
            torch.backends.mps, "is_macos_or_newer", lambda major, minor: macos >= major
        )
        monkeypatch.setattr(platform, "mac_ver", lambda: (f"{macos}.0", ("", "", ""), "arm64"))
        cpu_info = tmp_path / "cpuinfo"
        if flags is not None:
            cpu_info.write_text(
                f"processor\t: 0\nmodel name\t: Some CPU @ 2GHz\nflags\t\t: fpu {flags} sse\n"
                "processor\t: 1\nmodel name\t: Other\n"
            )
        monkeypatch.setattr(hardware, "_CPU_INFO", cpu_info)

    return pretend


# --- device


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({"cuda": True, "mps": True}, "cuda"),
        ({"cuda": True}, "cuda"),
        ({"mps": True}, "mps"),
        ({}, "cpu"),
    ],
)
def test_auto_takes_the_fastest_device_that_is_there(machine, there, expected):
    machine(**there)
    assert resolve_device("auto") == torch.device(expected)
    assert resolve_device(expected) == torch.device(expected)
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_an_absent_device_is_an_error_that_names_the_fix(machine, name):
    machine()
    with pytest.raises(ValueError, match=rf"'{name}' is not available .*available: cpu.*'auto'"):
        resolve_device(name)


# --- dtype


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float32)],
)
def test_auto_dtype_on_cuda_goes_by_capability(machine, capability, expected):
    machine(cuda=True, capability=capability)
    assert resolve_dtype("auto", CUDA) is expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("amx_bf16", torch.bfloat16),
        ("avx512_bf16", torch.bfloat16),
        ("avx2 avx512f", torch.float32),
        (None, torch.float32),
    ],
)
def test_auto_dtype_on_a_cpu_goes_by_its_instructions(machine, flags, expected):
    machine(flags=flags)
    assert resolve_dtype("auto", CPU) is expected


def test_auto_dtype_on_mps_is_float32(machine):
    machine(mps=True, flags="amx_bf16")
    assert resolve_dtype("auto", MPS) is torch.float32


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("device", [CPU, CUDA, MPS])
def test_a_dtype_asked_for_is_given(machine, name, device):
    machine(cuda=True, mps=True, flags="")
    assert resolve_dtype(name, device) is getattr(torch, name)


def test_bfloat16_on_an_old_gpu_is_an_error_that_names_the_fix(machine):
    machine(cuda=True, name="Tesla T4", capability=(7, 5))
    with pytest.raises(ValueError, match=r"capability 8\.0, but Tesla T4 has 7\.5; .*'float16'"):
        resolve_dtype("bfloat16", CUDA)
    assert resolve_dtype("float16", CUDA) is torch.float16


def test_bfloat16_on_an_old_macos_is_an_error_that_names_the_fix(machine):
    machine(mps=True, macos=13)
    with pytest.raises(ValueError, match=r"needs macOS 14, but this is 13\.0; .*'float16'"):
        resolve_dtype("bfloat16", MPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_matmuls_under_autocast_compute_in_the_dtype(dtype):
    layer = torch.nn.Linear(4, 4)
    with autocast(CPU, dtype):
        assert layer(torch.ones(2, 4)).dtype is dtype
    assert layer(torch.ones(2, 4)).dtype is torch.float32


def test_synchronize_waits_for_the_device_and_for_no_other(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waited.append(device))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append(MPS))
    for device in (CPU, CUDA, MPS):
        synchronize(device)
    assert waited == [CUDA, MPS]


# --- seeds


def draw() -> tuple[float, ...]:
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_a_seed_sets_every_generator():
    seed_everything(7)
    first = draw()
    seed_everything(7)
    assert draw() == first
    seed_everything(8)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


@pytest.mark.parametrize("seed", [2**32, -1])
def test_a_seed_out_of_range_is_an_error(seed):
    with pytest.raises(ValueError, match=rf"seed={seed} is not in \[0, 4294967296\)"):
        seed_everything(seed)


# --- peaks

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("name", "dtype", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", BF16, 312),
        ("NVIDIA A100-PCIE-40GB", FP32, 19.5),
        ("NVIDIA A100 80GB PCIe", FP16, 312),
        ("NVIDIA H100 80GB HBM3", BF16, 989),
        ("NVIDIA H100 PCIe", BF16, 756),
        ("NVIDIA H100 NVL", BF16, 835.5),
        ("NVIDIA H200", BF16, 989),
        ("NVIDIA H200 NVL", BF16, 835.5),
        ("NVIDIA GH200 480GB", BF16, 989),
        ("NVIDIA B200", BF16, 2250),
        ("NVIDIA GB200", BF16, 2500),
        ("Tesla V100-SXM2-16GB", FP16, 125),
        ("Tesla V100-PCIE-32GB", FP16, 112),
        ("Tesla T4", FP16, 65),
        ("NVIDIA A10", BF16, 125),
        ("NVIDIA A10G", BF16, 70),
        ("NVIDIA L4", BF16, 121),
        ("NVIDIA L40", BF16, 181),
        ("NVIDIA L40S", BF16, 362),
        ("NVIDIA RTX A6000", BF16, 154.8),
        ("NVIDIA GeForce RTX 3090", BF16, 71),
        ("NVIDIA GeForce RTX 4090", BF16, 165.2),
        ("NVIDIA GeForce RTX 5090", BF16, 209.5),
        ("NVIDIA RTX A4000", BF16, 76.7),
        ("NVIDIA RTX A4000", FP32, 19.2),
        ("NVIDIA RTX A5000", FP16, 111.1),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", BF16, 503.8),
        ("NVIDIA B300 SXM6 AC", BF16, 2250),
        ("NVIDIA GB300", BF16, 2500),
        ("AMD Instinct MI250X", BF16, 191.5),
        ("AMD Instinct MI250X", FP32, 47.9),
        ("AMD Instinct MI300X", FP16, 1307.4),
        ("AMD Instinct MI325X", BF16, 1307.4),
        ("AMD Instinct MI355X", BF16, 2516.6),
        ("AMD Instinct MI355 OAM", FP32, 157.3),
    ],
)
def test_peaks_of_known_devices(machine, name, dtype, tflops):
    machine(cuda=True, name=name)
    assert peak_flops(CUDA, dtype) == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", BF16),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", BF16),
        ("NVIDIA GeForce RTX 4090 D", BF16),
        ("NVIDIA A100X", BF16),
        ("NVIDIA RTX A400", BF16),
        ("NVIDIA RTX A4000 Laptop GPU", BF16),
        ("NVIDIA RTX 4000 Ada Generation", BF16),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", BF16),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", BF16),
        ("NVIDIA B300 MIG 1g.34gb", BF16),
        ("AMD Instinct MI250X/MI250", BF16),  # either card
        ("AMD Instinct MI300A", BF16),
        ("NVIDIA Z9000", BF16),
        ("Tesla T4", BF16),  # it cannot
        ("NVIDIA H200", torch.float64),
        ("", BF16),
    ],
)
def test_an_unknown_device_or_dtype_has_no_peak(machine, name, dtype):
    machine(cuda=True, name=name)
    assert peak_flops(CUDA, dtype) is None


def test_float32_is_tf32_only_where_torch_uses_it(machine, monkeypatch):
    machine(cuda=True, name="NVIDIA A100-SXM4-40GB")
    matmul = torch.backends.cuda.matmul
    assert peak_flops(CUDA, FP32) == pytest.approx(19.5e12)
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert matmul.fp32_precision == "tf32"
        assert peak_flops(CUDA, FP32) == pytest.approx(156e12)
        assert peak_flops(CUDA, BF16) == pytest.approx(312e12)
    finally:
        torch.set_float32_matmul_precision(precision)


def test_the_table_is_plausible():
    """Half precision is never slower than TF32, nor that than float32; and units are TFLOP/s."""
    for pattern, peaks in PEAK_TFLOPS.items():
        order = [peaks[kind] for kind in ("float32", "tf32", "float16") if kind in peaks]
        assert order == sorted(order), pattern
        assert peaks.get("bfloat16", peaks["float16"]) == peaks["float16"], pattern
        assert 5 < peaks["float32"] < 200, pattern
        assert peaks["float16"] < 3000, pattern


def rate(cores: int, per_clock: int, gigahertz: float) -> float:
    """TFLOP/s of `cores` that each do `per_clock` multiply-adds a clock."""
    return 2 * cores * per_clock * gigahertz / 1e3


@pytest.mark.parametrize(
    ("name", "kind", "tflops"),
    [  # cores: SMs x 128 for float32, tensor cores for the rest; CUs of the dies of a device
        ("RTX A4000", "float32", rate(6144, 1, 1.560)),
        ("RTX A4000", "tf32", rate(192, 64, 1.560)),
        ("RTX A4000", "bfloat16", rate(192, 128, 1.560)),
        ("RTX A5000", "float32", rate(8192, 1, 1.695)),
        ("RTX A5000", "tf32", rate(256, 64, 1.695)),
        ("RTX A5000", "bfloat16", rate(256, 128, 1.695)),
        ("RTX A6000", "bfloat16", rate(336, 128, 1.800)),
        ("RTX 3090", "bfloat16", rate(328, 64, 1.695)),
        ("RTX PRO 6000 Blackwell Workstation Edition", "float32", rate(24064, 1, 2.617)),
        ("RTX PRO 6000 Blackwell Workstation Edition", "tf32", rate(752, 64, 2.617)),
        ("RTX PRO 6000 Blackwell Workstation Edition", "bfloat16", rate(752, 128, 2.617)),
        ("RTX 5090", "bfloat16", rate(680, 64, 2.407)),
        ("AMD Instinct MI250X", "float32", rate(110, 128, 1.7)),
        ("AMD Instinct MI250X", "bfloat16", rate(110, 512, 1.7)),
        ("AMD Instinct MI325X", "float32", rate(304, 128, 2.1)),
        ("AMD Instinct MI325X", "bfloat16", rate(304, 1024, 2.1)),
        ("AMD Instinct MI355X", "float32", rate(256, 128, 2.4)),
        ("AMD Instinct MI355X", "bfloat16", rate(256, 2048, 2.4)),
    ],
)
def test_peaks_are_cores_times_clock(name, kind, tflops):
    """An independent way to the data sheets' numbers, which are rounded."""
    [peaks] = [peaks for pattern, peaks in PEAK_TFLOPS.items() if re.fullmatch(pattern, name)]
    assert peaks[kind] == pytest.approx(tflops, rel=3e-3)


def test_no_device_name_matches_two_entries():
    names = ["A10", "A10G", "A100-SXM4-40GB", "L4", "L40", "L40S", "B200", "GB200", "H200"]
    names += ["GH200 480GB", "H100 NVL", "V100-PCIE-16GB", "V100S-PCIE-32GB"]
    names += ["RTX A4000", "RTX A5000", "RTX A6000", "B300 SXM6 AC", "GB300"]
    names += [f"AMD Instinct MI{card}" for card in ("250X", "300X", "325X", "355X", "355 OAM")]
    for name in names:
        assert sum(bool(re.fullmatch(pattern, name)) for pattern in PEAK_TFLOPS) == 1, name


def test_mps_has_no_known_peak(machine):
    machine(mps=True)
    assert peak_flops(MPS, FP32) is None


@pytest.fixture
def peaks_file(tmp_path, monkeypatch):
    """The file of the CPU's peaks, in a folder of its own; nothing measured in this process yet."""
    monkeypatch.setenv("NANOARCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(hardware, "_PEAK_SECONDS", 0.02)
    hardware._measured_cpu_peak.cache_clear()
    yield tmp_path / "cache" / "cpu_peaks.json"
    hardware._measured_cpu_peak.cache_clear()


def test_the_fastest_matmul_of_any_process_is_the_peak(peaks_file, monkeypatch):
    """A process that others slow down takes the peak of one before; a faster one raises it."""
    for measured, peak in ((3e9, 3e9), (2e9, 3e9), (5e9, 5e9)):
        hardware._measured_cpu_peak.cache_clear()
        monkeypatch.setattr(hardware, "_fastest_matmul", lambda _, known, m=measured: max(m, known))
        assert peak_flops(CPU, FP32) == peak
    assert peak_flops(CPU, BF16) == 5e9
    assert len(json.loads(peaks_file.read_text())) == 2


@pytest.mark.parametrize(
    "text", ["", "[1]", "{", '{"KEY": "fast"}', '{"KEY": 1e30}', '{"KEY": NaN}']
)
def test_a_damaged_file_of_peaks_is_replaced(peaks_file, monkeypatch, text):
    monkeypatch.setattr(hardware, "_fastest_matmul", lambda dtype, known: 3e9)
    peak_flops(CPU, FP32)
    [key] = json.loads(peaks_file.read_text())
    peaks_file.write_text(text.replace("KEY", key.replace("|", "\u007c")))
    hardware._measured_cpu_peak.cache_clear()
    assert peak_flops(CPU, FP32) == 3e9
    assert json.loads(peaks_file.read_text()) == {key: 3e9}


def test_where_peaks_cannot_be_kept_they_are_measured(peaks_file):
    peaks_file.parent.write_text("a file, where a folder should be")
    assert peak_flops(CPU, FP32) > 1e8


def test_a_machine_that_is_busy_at_first(monkeypatch):
    """Matmuls that others slow down for half a second do not make the peak."""
    now = 0.0

    def advance(seconds):
        nonlocal now
        now += seconds

    def matmul(left, right, out):
        advance(2 * left.numel() * right.shape[1] / (90e9 if now > 0.5 else 30e9))

    clock = SimpleNamespace(perf_counter=lambda: now, sleep=advance)
    monkeypatch.setattr(hardware, "time", clock)
    monkeypatch.setattr(torch, "mm", matmul)
    assert hardware._fastest_matmul(FP32, 0.0) == pytest.approx(90e9)
    assert now <= hardware._PEAK_SECONDS + 0.5
    began = now
    hardware._fastest_matmul(FP32, 90e9)
    assert now - began < 0.5


def test_a_cpu_peak_is_measured_once_and_draws_no_random_numbers(peaks_file):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    peak = peak_flops(CPU, FP32)
    assert 1e8 < peak < 1e14
    assert peak_flops(CPU, FP32) == peak
    assert torch.equal(torch.get_rng_state(), before)


# --- memory


def test_cpu_memory_follows_what_the_process_holds():
    before = memory_stats(CPU)
    size = 64 * 2**20
    block = mmap.mmap(-1, size)  # from the system, not from what an allocator holds already
    block.write(b"1" * size)
    after = memory_stats(CPU)
    assert after["resident"] - before["resident"] >= 0.9 * size
    block.close()
    assert memory_stats(CPU)["resident"] < after["resident"]
    assert memory_stats(CPU)["peak"] >= 0.99 * after["resident"]


def test_accelerator_memory_is_what_torch_says(monkeypatch):
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 4)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 5)
    assert memory_stats(CUDA) == {"allocated": 1, "peak": 2, "reserved": 3}
    assert memory_stats(MPS) == {"allocated": 4, "peak": None, "reserved": 5}


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, 64e9), ("max\n", 64e9), ("16000000000\n", 16e9), ("9223372036854771712\n", 64e9)],
)
def test_a_cpus_memory_is_the_machines_or_the_containers(monkeypatch, tmp_path, limit, expected):
    machine = SimpleNamespace(total=64 * 10**9)
    monkeypatch.setattr(hardware.psutil, "virtual_memory", lambda: machine)
    monkeypatch.setattr(hardware, "_MEMORY_LIMIT", tmp_path / "memory.max")
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    assert host_memory() == total_memory(CPU) == expected


def test_memory_of_a_device_is_what_torch_says_or_unknown(monkeypatch):
    properties = SimpleNamespace(total_memory=80)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert total_memory(CUDA) == 80
    assert total_memory(MPS) is None


# --- description


def test_the_environment_says_what_the_numbers_depend_on(machine):
    machine(flags="")
    found = environment(CPU)
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__
    assert found["device"] == "Some CPU @ 2GHz"
    assert found["cpu_count"] == os.cpu_count()
    assert found["threads"] == torch.get_num_threads()
    assert json.loads(json.dumps(found)) == found


def test_the_device_name_is_that_of_the_device(machine):
    machine(cuda=True, name="NVIDIA H200", flags="")
    assert device_name(CUDA) == "NVIDIA H200"
    assert device_name(CPU) == "Some CPU @ 2GHz"
    machine()
    hardware._CPU_INFO.unlink()
    assert device_name(CPU)


def _no_such_file(*_args, **_kwargs):
    raise FileNotFoundError


def test_the_environment_never_fails_for_want_of_a_program(monkeypatch):
    monkeypatch.setattr(subprocess, "run", _no_such_file)
    found = environment(CPU)
    assert (found["driver"], found["commit"], found["dirty"]) == (None, None, None)
    assert found["device"]


def test_the_driver_is_that_of_the_first_gpu(monkeypatch):
    monkeypatch.setattr(hardware, "output_of", lambda *command: "570.1\n570.1")
    assert hardware._driver_version() == "570.1"


@pytest.mark.parametrize(
    ("vendor", "flags", "faster"),
    [
        ("AuthenticAMD", "avx2 avx512f avx512_bf16", True),
        ("AuthenticAMD", "avx2", False),
        ("AuthenticAMD", "avx512f amx_bf16", False),
        ("GenuineIntel", "avx512f", False),
    ],
)
def test_float32_matmuls_are_left_to_onednn_where_it_is_faster_and_does_not_round(
    vendor, flags, faster, tmp_path, monkeypatch
):
    file = tmp_path / "cpuinfo"
    file.write_text(f"vendor_id\t: {vendor}\nflags\t\t: {flags}\n")
    monkeypatch.setattr(hardware, "_CPU_INFO", file)
    assert hardware.onednn_multiplies_faster() == faster


@pytest.mark.parametrize("shape", [(64, 64, 64), (768, 128, 512), (1024, 1024, 1024)])
def test_float32_matmuls_on_a_cpu_are_of_full_precision(shape):
    m, k, n = shape
    precision = torch.get_float32_matmul_precision()
    try:
        prepare_device(CPU)
        left, right = torch.randn(m, k), torch.randn(k, n)
        error = (left @ right - left.double() @ right.double()).abs().max()
    finally:
        torch.set_float32_matmul_precision(precision)
    assert error < 1e-6 * k  # with operands of 8 bits it would be about 1e-2 * sqrt(k)
