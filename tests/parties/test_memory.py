"""Freed memory is used again, and given back in the end. Each test in a process of its own: the settings stay."""

import platform
import subprocess
import sys

import pytest

from mpcache.parties import memory

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library: nothing is set")
TENSORS = """
import resource, threading, torch
from pathlib import Path
from mpcache.parties.memory import give_back, keep_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def faults(megabytes, times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(megabytes << 17, dtype=torch.int64)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def in_a_thread(work):
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start(), thread.join()
    return found[0]
"""


def printed(code: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", TENSORS + code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


@glibc
def test_large_tensors_of_any_thread_get_the_pages_of_those_before() -> None:
    """glibc lays the first few of a size beside each other: what is left of them after alignment waits in a cache.

    How many tensors that takes depends on what was freed before: the last of several rounds counts."""
    pages = 10 * (100 << 20) // 4096
    code = "print(in_a_thread(lambda: faults(100, 10)))"
    (as_it_comes,) = printed(code)
    *_, again = printed(f"keep_memory(); {'; '.join([code] * 5)}")
    assert as_it_comes > pages / 2, "the system's own behaviour changed: is all this still needed?"
    assert again < pages / 5


@glibc
def test_kept_memory_is_given_back() -> None:
    kept, left = printed(
        "keep_memory(); in_a_thread(lambda: faults(100, 3)); print(resident()); give_back(); print(resident())"
    )
    assert kept - left > 90 << 20


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    memory._glibc.cache_clear()
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    try:
        assert not memory.keep_memory()
        memory.give_back()
    finally:
        memory._glibc.cache_clear()


@pytest.mark.parametrize("largest", [memory.KEPT_BYTES, memory.LARGEST_IN_OLD_GLIBC, 0])
def test_the_largest_block_that_the_library_allows_is_set_or_nothing(
    monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    """To set one threshold alone would make it worse: glibc would no longer find the other by itself."""
    asked: list[tuple[int, int]] = []

    class Library:
        def mallopt(self, name: int, value: int) -> int:
            allowed = name != memory._MMAP_THRESHOLD or value <= largest
            if allowed:
                asked.append((name, value))
            return int(allowed)

    monkeypatch.setattr(memory, "_glibc", lambda: Library())
    assert memory.keep_memory() == bool(largest)
    assert asked[:1] == ([(memory._MMAP_THRESHOLD, largest)] if largest else [])
    assert len(asked) == (3 if largest else 0)
