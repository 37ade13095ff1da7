"""What one case of a benchmark leaves behind: its figures, its settings, and where and when it was measured."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mpcache import __version__
from mpcache.protocols.products.choice import processor
from mpcache.protocols.session import Cost

Record = dict[str, Any]


def make_record(settings: Record, status: str, figures: Record) -> Record:
    """A record with where and when it was measured."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {
        "bench": settings["bench"],
        "status": status,
        **figures,
        "settings": settings,
        "versions": versions(),
        "machine": machine(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "measured_at": now,
    }


def cost_figures(cost: Cost) -> Record:
    """Bytes between the parties, bytes that the dealer sends, and rounds."""
    return {
        "online_bytes": cost.online_bytes,
        "correlation_bytes": cost.correction_bytes,
        "rounds": cost.rounds,
    }


def canonical(settings: Record) -> str:
    """Equal settings give equal text."""
    return json.dumps(settings, sort_keys=True, separators=(",", ":"))


@cache
def versions() -> dict[str, str | None]:
    """Of this package (and its commit, where it is a checkout) and of what its figures depend on."""
    packages = {name: _installed(name) for name in ("torch", "numpy", "grpcio", "crypten")}
    return {"mpcache": __version__, "commit": _commit(), "python": platform.python_version(), **packages}


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # CrypTen, where nobody compares with it
        return None


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


@cache
def machine() -> dict[str, Any]:
    """What ran it, without its name."""
    return {
        "processor": processor(),
        "model": _processor_model(),
        "vector_width": _vector_width(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "threads_per_process": 1,
    }


def _vector_width() -> str:
    width = torch.backends.cpu.get_cpu_capability()
    return f"{width} (wider ones hidden)" if "only_avx2" in os.environ.get("LD_PRELOAD", "") else width


def _processor_model() -> str | None:
    """Maker, family and model: a virtual machine's processor often has no other name."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
    parts = [found.get(name) for name in ("vendor_id", "cpu family", "model")]
    return "{} family {} model {}".format(*parts) if all(parts) else None


def described(machine: dict[str, Any]) -> str:
    """A record's machine in words. Older records have no model and vector width."""
    model, width = machine.get("model"), machine.get("vector_width")
    return "".join(
        (
            machine["processor"],
            f" ({model})" if model else "",
            f", {width}" if width else "",
            f", {machine['cores']} cores",
        )
    )
