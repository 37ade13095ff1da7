"""Freed memory stays with the process for the next tensor: the system's page faults are dear.

Every step of a computation makes and frees the same large tensors. glibc would map each of them anew, and the system
would clear each of their pages. So here large blocks come from the heap like small ones, freed ones stay there, and
all threads share one heap, as those of other threads cannot grow beyond 64 MiB. What a process needs at most does not
grow by that; it keeps what it needed until `give_back`.

Nothing reads what a block held before: torch and numpy treat it like any new one.
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache

KEPT_BYTES = 1 << 30
"""Blocks up to this size come from the heap, and so much of it may be free at its end before it shrinks."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h


@cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is the one whose settings these are."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def keep_memory() -> bool:
    """Call it before other threads are started. False where there is nothing to set; then all works as well."""
    libc = _glibc()
    if libc is None:
        return False
    settings = ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, KEPT_BYTES), (_TRIM_THRESHOLD, KEPT_BYTES))
    return all([libc.mallopt(name, value) == 1 for name, value in settings])


def give_back() -> None:
    """Return what is free to the system: when nothing is computed for a while."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)
