"""Make glibc's memory allocator keep freed memory, because the next training step needs it again.

By default glibc returns large freed blocks to the system, and every step pays to map and clear them
again.
"""

from __future__ import annotations

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt(3)
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for later allocations of this process.

    Returns:
        Whether the options were set. False if the C library is not glibc, or if the environment
        already tunes the allocator (MALLOC_*, GLIBC_TUNABLES).
    """
    tuned = "GLIBC_TUNABLES" in os.environ or any(key.startswith("MALLOC_") for key in os.environ)
    if tuned or platform.libc_ver()[0] != "glibc":
        return False
    set_option = ctypes.CDLL(None).mallopt
    options = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _LARGEST_INT))
    return all(set_option(option, value) for option, value in options)
