"""Environments in which a process computes as on another machine: other kernels of torch, numpy and the BLAS."""

import numpy as np
import torch

LEVELS = ("default", "avx2", "avx512")


def processors() -> dict[str, dict[str, str]]:
    """Environment variables by the processor that they make of this one: a plain one, one with AVX2 if this one has it,
    and this one as it is."""
    found = {"plain": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"}}
    dispatched = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])  # type: ignore[index,call-overload]
    found["plain"]["NPY_DISABLE_CPU_FEATURES"] = " ".join(dispatched)
    if torch.backends.cpu.get_cpu_capability().lower() in LEVELS[1:]:
        found["plain"]["OPENBLAS_CORETYPE"] = "Nehalem"
        kernels = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "OPENBLAS_CORETYPE": "Haswell"}
        found["avx2"] = {**kernels, "OMP_NUM_THREADS": "2"}
    return {**found, "this machine's": {}}
