"""The training hardware: device, compute dtype, peak FLOP/s, memory and description."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import random
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from errors import UserError
from recipe.dtypes import DTYPES, BFloat16
from training.allocator import keep_freed_memory
from training.provenance import output_of, provenance

_CPU_INFO = Path("/proc/cpuinfo")
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")

# --- choosing


def resolve_device(name: str) -> torch.device:
    """The device for `auto | cpu | cuda | mps`; auto prefers cuda, then mps, then cpu.

    Raises:
        UserError: If the device is not available.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, is_there in available.items() if is_there)
    if not available[name]:
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise UserError(
            f"device={name!r} is not available to torch {torch.__version__} (available: {there}); "
            f"set device='auto', or install the driver and a torch build with {name.upper()}."
        )
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The compute dtype for `auto | float32 | bfloat16 | float16` on a device.

    auto is bfloat16 if the device has instructions for it (CUDA from capability 8.0, x86 with
    AMX-BF16 or AVX512-BF16), else float32.

    Raises:
        UserError: If the device does not support the dtype.
    """
    if name == "auto":
        return torch.bfloat16 if _has_fast_bfloat16(device) else torch.float32
    kind = DTYPES[name]
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < kind.cuda_capability:
        needed, has = (
            ".".join(map(str, capability))
            for capability in (kind.cuda_capability, torch.cuda.get_device_capability(device))
        )
        raise UserError(
            f"dtype={name!r} needs CUDA capability {needed}, but {device_name(device)} has {has}; "
            "set dtype='float16' or 'float32'."
        )
    if device.type == "mps" and not torch.backends.mps.is_macos_or_newer(kind.macos, 0):
        raise UserError(
            f"dtype={name!r} on mps needs macOS {kind.macos}, but this is "
            f"{platform.mac_ver()[0]}; set dtype='float16' or 'float32'."
        )
    return kind.dtype


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= BFloat16.cuda_capability
    if device.type == "cpu":
        return bool({"amx_bf16", "avx512_bf16"} & set(_cpu_info("flags").split()))
    return False


def _cpu_info(key: str) -> str:
    """The value of `key` for the first processor in Linux's /proc/cpuinfo; empty elsewhere."""
    try:
        text = _CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(rf"^{re.escape(key)}\s*:\s*(.*)$", text, flags=re.MULTILINE)
    return found[1].strip() if found else ""


def resolve_async_save(wanted: bool | str, device: torch.device) -> bool:
    """Whether to write checkpoints in the background for `auto | True | False`; auto does so on an
    accelerator, whose state must be copied to the CPU anyway."""
    return device.type != "cpu" if wanted == "auto" else bool(wanted)


def has_tf32(device: torch.device) -> bool:
    """Whether a device can compute float32 matmuls in TF32: CUDA from capability 8.0."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def prepare_device(device: torch.device, *, tf32: bool = False) -> None:
    """Configure the process for training: on a CPU, keep freed memory and choose the float32 matmul
    library; on CUDA, allow or forbid TF32."""
    set_tf32(tf32)
    if device.type == "cpu":
        keep_freed_memory()
        if onednn_multiplies_faster():
            torch.set_float32_matmul_precision("medium")


def onednn_multiplies_faster() -> bool:
    """Whether oneDNN computes float32 matmuls faster than MKL on this CPU.

    MKL uses AVX-512 on Intel CPUs only, oneDNN also on AMD CPUs: it is more than twice as fast on a
    Zen 5 EPYC. torch calls oneDNN if matmuls may round to bfloat16 ("medium"), but oneDNN rounds
    only if the CPU has AMX; otherwise it computes in float32 throughout.
    """
    flags = _cpu_info("flags").split()
    rounds = any(flag.startswith("amx") for flag in flags)
    return _cpu_info("vendor_id") == "AuthenticAMD" and "avx512f" in flags and not rounds


def set_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 in float32 matmuls and convolutions on CUDA, for this process.

    torch's default forbids it in matmuls only.
    """
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """A context in which matmuls compute in `dtype`; weights and reductions stay float32."""
    if dtype is torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def synchronize(device: torch.device) -> None:
    """Wait for all work queued on a device; returns at once for a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on every device.

    Raises:
        UserError: If the seed is not in [0, 2**32), the range that NumPy accepts.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} is not in [0, {2**32}); choose one in that range.")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


# --- peak speed

# Dense peaks in TFLOP/s from the vendors' data sheets and architecture white papers; figures given
# with 2:4 sparsity are halved. Half-precision peaks are those with float32 accumulation, which
# torch uses (GeForce cards have a higher figure for float16 accumulation). "float32" is without
# tensor cores, "tf32" is what torch uses for float32 if TF32 is allowed. The pattern matches the
# full name from torch.cuda.get_device_name, without "NVIDIA", "Tesla" and "GeForce": a laptop GPU
# or a slice of a card has another name, another peak, and no entry. The float32 peak of AMD devices
# is that of their matrix cores, which compute in full float32. torch sees each of the two dies
# (GCDs) of an MI250X as a device, so its peaks are half the card's. Some drivers report
# "MI250X/MI250", which may be either card, so that name has no entry. Sources: V100, T4, A100, A30,
# A40, A10, L4, L40, L40S, H100 and H200 data sheets; A10G data sheet (AWS); GH200 data sheet; HGX
# B200 and GB200 NVL72 (per GPU) in the Blackwell data sheet; HGX B300 and GB300 NVL72 (per GPU) in
# the Blackwell Ultra data sheet; RTX 30 and A6000: GA102 white paper; RTX A4000 and A5000 data
# sheets, TF32 at half the rate of half precision as in the GA102 white paper; RTX 40 and 6000 Ada:
# Ada white paper; RTX 50: RTX Blackwell white paper; RTX PRO 6000: RTX PRO Blackwell white paper;
# MI250X, MI300X, MI325X and MI355X data sheets.
PEAK_TFLOPS: dict[str, dict[str, float]] = {
    r"V100-SXM[23]-\d+GB": {"float32": 15.7, "float16": 125.0},
    r"V100-PCIE-\d+GB": {"float32": 14.0, "float16": 112.0},
    r"V100S-PCIE-\d+GB": {"float32": 16.4, "float16": 130.0},
    r"T4": {"float32": 8.1, "float16": 65.0},
    r"A100-(SXM4|PCIE)-\d+GB|A100 80GB PCIe": {
        "float32": 19.5,
        "tf32": 156.0,
        "bfloat16": 312.0,
        "float16": 312.0,
    },
    r"A30": {"float32": 10.3, "tf32": 82.0, "bfloat16": 165.0, "float16": 165.0},
    r"A40": {"float32": 37.4, "tf32": 74.8, "bfloat16": 149.7, "float16": 149.7},
    r"A10": {"float32": 31.2, "tf32": 62.5, "bfloat16": 125.0, "float16": 125.0},
    r"A10G": {"float32": 35.0, "tf32": 35.0, "bfloat16": 70.0, "float16": 70.0},
    r"RTX A6000": {"float32": 38.7, "tf32": 77.4, "bfloat16": 154.8, "float16": 154.8},
    r"RTX A5000": {"float32": 27.8, "tf32": 55.5, "bfloat16": 111.1, "float16": 111.1},
    r"RTX A4000": {"float32": 19.2, "tf32": 38.3, "bfloat16": 76.7, "float16": 76.7},
    r"RTX 3090": {"float32": 35.6, "tf32": 35.6, "bfloat16": 71.0, "float16": 71.0},
    r"L4": {"float32": 30.3, "tf32": 60.0, "bfloat16": 121.0, "float16": 121.0},
    r"L40": {"float32": 90.5, "tf32": 90.5, "bfloat16": 181.0, "float16": 181.0},
    r"L40S": {"float32": 91.6, "tf32": 183.0, "bfloat16": 362.0, "float16": 362.0},
    r"RTX 6000 Ada Generation": {
        "float32": 91.1,
        "tf32": 182.1,
        "bfloat16": 364.2,
        "float16": 364.2,
    },
    r"RTX 4090": {"float32": 82.6, "tf32": 82.6, "bfloat16": 165.2, "float16": 165.2},
    r"RTX 5090": {"float32": 104.8, "tf32": 104.8, "bfloat16": 209.5, "float16": 209.5},
    r"RTX PRO 6000 Blackwell Workstation Edition": {
        "float32": 125.9,
        "tf32": 251.9,
        "bfloat16": 503.8,
        "float16": 503.8,
    },
    r"H100 PCIe": {"float32": 51.0, "tf32": 378.0, "bfloat16": 756.0, "float16": 756.0},
    r"H100 NVL|H200 NVL": {
        "float32": 60.0,
        "tf32": 417.5,
        "bfloat16": 835.5,
        "float16": 835.5,
    },
    r"H100 80GB HBM3|H200|GH200 (120GB|480GB|144G HBM3e)": {
        "float32": 67.0,
        "tf32": 494.5,
        "bfloat16": 989.0,
        "float16": 989.0,
    },
    r"B200": {"float32": 75.0, "tf32": 1100.0, "bfloat16": 2250.0, "float16": 2250.0},
    r"GB200": {"float32": 80.0, "tf32": 1250.0, "bfloat16": 2500.0, "float16": 2500.0},
    r"B300 SXM6 AC": {"float32": 75.0, "tf32": 1125.0, "bfloat16": 2250.0, "float16": 2250.0},
    r"GB300": {"float32": 80.0, "tf32": 1250.0, "bfloat16": 2500.0, "float16": 2500.0},
    r"AMD Instinct MI250X": {"float32": 47.9, "bfloat16": 191.5, "float16": 191.5},
    r"AMD Instinct (MI300X|MI325X)": {"float32": 163.4, "bfloat16": 1307.4, "float16": 1307.4},
    r"AMD Instinct MI355(X| OAM)": {"float32": 157.3, "bfloat16": 2516.6, "float16": 2516.6},
}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """The dense peak of a device in a compute dtype, in FLOP/s; None if unknown.

    The peak of a CUDA device is from `PEAK_TFLOPS`; on CUDA, float32 means TF32 if torch is set to
    use it. The peak of a CPU is that of the fastest of many matmuls, in this process and earlier
    ones.
    """
    if device.type == "cpu":
        precision = torch.get_float32_matmul_precision()
        return _measured_cpu_peak(dtype, torch.get_num_threads(), precision)
    if device.type != "cuda":
        return None
    return peak_of_gpu(torch.cuda.get_device_name(device), dtype, _uses_tf32())


def peak_of_gpu(name: str, dtype: torch.dtype, tf32: bool = False) -> float | None:
    """The dense peak of a GPU in a compute dtype, in FLOP/s; None if unknown.

    Args:
        name: The name from `torch.cuda.get_device_name`.
        dtype: Compute dtype of the matmuls.
        tf32: Whether float32 means TF32.
    """
    name = re.sub(r"^(NVIDIA |Tesla |GeForce )+", "", name)
    rounding = "tf32" if tf32 else "float32"
    kind = rounding if dtype is torch.float32 else str(dtype).removeprefix("torch.")
    for pattern, peaks in PEAK_TFLOPS.items():
        if re.fullmatch(pattern, name) and kind in peaks:
            return peaks[kind] * 1e12
    return None


KNOWN_GPUS: dict[str, tuple[str, int]] = {
    "V100": ("Tesla V100-SXM2-32GB", 32 * 10**9),
    "T4": ("Tesla T4", 16 * 10**9),
    "A100": ("NVIDIA A100-SXM4-80GB", 80 * 10**9),
    "A100-40GB": ("NVIDIA A100-SXM4-40GB", 40 * 10**9),
    "A10G": ("NVIDIA A10G", 24 * 10**9),
    "A40": ("NVIDIA A40", 48 * 10**9),
    "A6000": ("NVIDIA RTX A6000", 48 * 10**9),
    "L4": ("NVIDIA L4", 24 * 10**9),
    "L40S": ("NVIDIA L40S", 48 * 10**9),
    "RTX3090": ("NVIDIA GeForce RTX 3090", 24 * 10**9),
    "RTX4090": ("NVIDIA GeForce RTX 4090", 24 * 10**9),
    "RTX5090": ("NVIDIA GeForce RTX 5090", 32 * 10**9),
    "H100": ("NVIDIA H100 80GB HBM3", 80 * 10**9),
    "H100-PCIe": ("NVIDIA H100 PCIe", 80 * 10**9),
    "H200": ("NVIDIA H200", 141 * 10**9),
    "B200": ("NVIDIA B200", 180 * 10**9),
    "MI300X": ("AMD Instinct MI300X", 192 * 10**9),
}
"""Full name and memory in bytes, by data sheet, of the GPUs that a dry run knows."""


def _uses_tf32() -> bool:
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


_PEAK_SHAPES = ((512, 512, 512), (1024, 256, 1024), (1024, 1024, 1024), (2048, 768, 3072))
"""Matmuls (rows, inner, columns) that measure a CPU's peak: tokens x width x hidden width."""

_HIGHEST_CPU_PEAK = 1e15
"""FLOP/s that no CPU reaches; a cached peak above it is invalid."""

_PEAK_SECONDS = 2.0
"""Time limit for measuring a CPU's peak in a process."""

_PEAK_STEADY = 20
"""Measuring ends after this many rounds over the shapes without an improvement of over 1 %."""

_PEAK_STEADY_IF_KNOWN = 2
"""The same if an earlier process has measured the peak: a few rounds show whether that process was
slowed down."""

_PEAK_PAUSE = 0.02
"""Seconds between rounds: other load on the machine slows down all matmuls in quick succession."""

_PEAK_LONGEST = 0.02
"""Seconds. Shapes that take longer at the best speed so far are skipped, except the smallest: long
matmuls are likely to be interrupted, and on such a slow machine smaller ones suffice to keep all
threads busy."""


@functools.cache
def _measured_cpu_peak(dtype: torch.dtype, threads: int, precision: str) -> float:
    """FLOP/s of the fastest matmul known on this machine, with `threads` threads and the float32
    matmul library that torch's `precision` selects.

    Other load only ever slows a matmul down, often for seconds on a shared machine. The best result
    of earlier processes therefore counts too; it is cached in `_cpu_peaks_file`.
    """
    machine = (device_name(torch.device("cpu")), threads, dtype, torch.__version__, precision)
    key = " | ".join(map(str, machine))
    fastest = _fastest_matmul(dtype, _known_cpu_peaks().get(key, 0.0))
    _remember_cpu_peak(key, fastest)
    return fastest


def _fastest_matmul(dtype: torch.dtype, known: float) -> float:
    """Time matmuls in rounds over the shapes until the best result is steady.

    Args:
        dtype: Dtype of the operands.
        known: The best known result in FLOP/s, or 0.

    Returns:
        FLOP/s of the fastest matmul, at least `known`.
    """
    wanted = _PEAK_STEADY_IF_KNOWN if known else _PEAK_STEADY
    deadline = time.perf_counter() + _PEAK_SECONDS
    operands = [
        [torch.full(size, 0.5, dtype=dtype) for size in ((m, k), (k, n), (m, n))]
        for m, k, n in _PEAK_SHAPES  # constants, to leave the random number generators alone
    ]
    fastest, steady = known, 0
    while steady < wanted:
        before = fastest
        for left, right, out in operands:
            flops = 2 * left.numel() * right.shape[1]
            if left is not operands[0][0] and flops > _PEAK_LONGEST * fastest:
                continue
            start = time.perf_counter()
            torch.mm(left, right, out=out)
            end = time.perf_counter()
            fastest = max(fastest, flops / (end - start))
            if end > deadline:
                return fastest
        steady = 0 if fastest > 1.01 * before else steady + 1
        time.sleep(_PEAK_PAUSE)
    return fastest


def _cpu_peaks_file() -> Path:
    """The cache of CPU peaks, in NANOARCH_CACHE_DIR (default ~/.cache/nanoarch)."""
    folder = os.environ.get("NANOARCH_CACHE_DIR") or Path("~/.cache/nanoarch").expanduser()
    return Path(folder) / "cpu_peaks.json"


def _known_cpu_peaks() -> dict[str, float]:
    """The peaks in FLOP/s from earlier processes; empty if the file is missing or damaged."""
    try:
        found = json.loads(_cpu_peaks_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        key: peak
        for key, peak in found.items()
        if type(peak) is float and 0 < peak < _HIGHEST_CPU_PEAK
    }


def _remember_cpu_peak(key: str, peak: float) -> None:
    """Cache a peak that is higher than the cached one; does nothing if the file is not writable."""
    known = _known_cpu_peaks()
    if known.get(key, 0.0) >= peak:
        return
    path = _cpu_peaks_file()
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(known | {key: peak}, indent=1), encoding="utf-8")
        draft.replace(path)


# --- memory


def memory_stats(device: torch.device) -> dict[str, int | None]:
    """Memory of this process on a device, in bytes; None if the platform does not report it.

    Returns:
        allocated: Memory in use by tensors. On a CPU, `resident` instead: the resident set size.
        peak: The peak since the process started.
        reserved: Memory held by torch's allocator, in use or not; absent on a CPU.
    """
    return _MEMORY_STATS[device.type](device)


def _cuda_memory(device: torch.device) -> dict[str, int | None]:
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "peak": torch.cuda.max_memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
    }


def _mps_memory(_device: torch.device) -> dict[str, int | None]:
    return {
        "allocated": torch.mps.current_allocated_memory(),
        "peak": None,
        "reserved": torch.mps.driver_allocated_memory(),
    }


def _cpu_memory(_device: torch.device) -> dict[str, int | None]:
    resident = psutil.Process().memory_info().rss
    # The kernel updates the two counters at different times.
    return {"resident": resident, "peak": max(resident, _peak_resident_bytes())}


_MEMORY_STATS = {"cuda": _cuda_memory, "mps": _mps_memory, "cpu": _cpu_memory}


def _peak_resident_bytes() -> int:
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows; psutil has no peak elsewhere

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def total_memory(device: torch.device) -> int | None:
    """Total memory of a device in bytes; None if the platform does not report it.

    For a CPU this is `host_memory`.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "cpu":
        return host_memory()
    return None


def host_memory() -> int:
    """Total RAM of the machine in bytes, or the container's limit (cgroup v2) if lower."""
    total = psutil.virtual_memory().total
    try:
        limit = _MEMORY_LIMIT.read_text(encoding="ascii").strip()
    except OSError:
        return total
    return total if limit == "max" else min(total, int(limit))


# --- description


def device_name(device: torch.device) -> str:
    """The product name of a device, such as `NVIDIA H200` or the CPU model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return (
        _cpu_info("model name")
        or output_of("sysctl", "-n", "machdep.cpu.brand_string")
        or platform.processor()
        or platform.machine()
    )


def environment(device: torch.device) -> dict[str, Any]:
    """The software and hardware that a run's results depend on, including `provenance`; unknown
    values are None."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": _driver_version(),
        "device": device_name(device),
        "device_count": 1,
        "host": platform.node(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "tf32": device.type == "cuda" and _uses_tf32(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "platform": platform.platform(),
        **provenance(),
    }


def _driver_version() -> str | None:
    versions = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return versions.splitlines()[0] if versions else None
