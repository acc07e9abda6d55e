"""Freed memory that is kept: a second allocation of the same size has no page faults."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]

FAULTS = """
import ctypes, resource
from training.allocator import keep_freed_memory

def faults(size):
    '''Page faults of writing to freshly allocated memory, which is freed again.'''
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    c = ctypes.CDLL(None)
    c.malloc.restype, c.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    place = c.malloc(ctypes.c_size_t(size))
    ctypes.memset(place, 1, size)
    c.free(place)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(keep_freed_memory())
print(*(faults(2**26) for _ in range(3)))
"""


def run(**variables: str) -> tuple[str, list[int]]:
    environment = {key: v for key, v in os.environ.items() if not key.startswith("MALLOC_")}
    command = [sys.executable, "-c", FAULTS]
    printed = subprocess.check_output(
        command, cwd=PROJECT, env={**environment, **variables}, text=True
    )
    kept, faults = printed.splitlines()
    return kept, [int(count) for count in faults.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_memory_is_mapped_once() -> None:
    kept, (first, *later) = run()
    assert kept == "True"
    assert first > 100
    assert max(later) < first / 10


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_a_tuned_environment_is_left_alone() -> None:
    kept, faults = run(MALLOC_ARENA_MAX="4")
    assert kept == "False"
    assert min(faults) > 100
