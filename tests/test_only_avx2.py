"""scripts/only-avx2: figures of a processor with AVX2 alone, on a wider one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "only-avx2"
UNAVAILABLE = 69


def run(code: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([SCRIPT, sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    if done.returncode == UNAVAILABLE:
        pytest.skip(done.stderr.strip() or "CPUID cannot be trapped here")
    return done


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_libraries_and_records_see_avx2_and_nothing_wider() -> None:
    code = """
import numpy, torch
from mpcache.benchmarks.records.record import described, machine
numpy.show_runtime()
print(torch.backends.cpu.get_cpu_capability(), described(machine()), sep="\\n")
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    *features, capability, machine = done.stdout.splitlines()
    assert "AVX512" not in "".join(features).partition("'found'")[2].partition("'not_found'")[0]
    assert capability in ("AVX2", "DEFAULT") and f"{capability} (wider ones hidden)" in machine


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_a_fault_of_the_programs_own_ends_it() -> None:
    assert run("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)").returncode == 139


def test_no_command_is_explained() -> None:
    done = subprocess.run([SCRIPT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "usage: scripts/only-avx2 COMMAND" in done.stdout
