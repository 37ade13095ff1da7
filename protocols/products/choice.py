"""Which kernel multiplies a shape: the one that was fastest on this machine, measured once on fixed numbers.

Measured speeds are kept in the user's cache folder, by processor, torch and threads. What is chosen depends on public
shapes, this machine and MPCACHE_PRODUCTS alone; no peer has a say, and none needs to know: all kernels are exact, so
parties that choose differently compute the same.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mpcache.protocols.errors import ConfigError
from mpcache.protocols.products.kernels import KERNELS, heads_product
from mpcache.protocols.ring import stored

SETTING = "MPCACHE_PRODUCTS"
"""Environment variable: a kernel's name, or auto."""

WIDTHS = (32, 48, 56, 64)
ROWS = {"few": 4, "some": 16, "many": 64}
"""Rows of the smaller operand: of what is measured, for those up to twice as many (many: and more)."""

SMALL = 1 << 17
"""Multiply-adds below which nothing is gained by a choice: torch multiplies."""

LONG = 1 << 10
"""Multiply-adds of a matrix times a vector that are worth a call for each head."""

FASTER = 1.25
"""How much faster than torch another kernel must be to be taken: a measurement is as good as the machine is quiet."""

LEAST_RUNS, MOST_RUNS = 3, 9
ENOUGH_SECONDS = 0.01
"""A kernel that has had so much time, and its LEAST_RUNS, is run no more."""

_FILE_BYTES = 1 << 16
_VERSION = 1  # of the kernels and of the file

Speeds = Mapping[str, float]
"""G multiply-adds a second by kernel."""


@dataclass(frozen=True)
class ShapeClass:
    """Products that one measurement stands for. rows: of the smaller operand, one of ROWS."""

    form: str
    """'matrix' (rows times a weight) or 'heads' (a batch of smaller matrices)."""

    rows: str
    bits: int

    def __str__(self) -> str:
        return f"{self.form}, {self.rows} rows, {self.bits} bits"


CLASSES = tuple(ShapeClass(form, rows, bits) for form in ("matrix", "heads") for rows in ROWS for bits in WIDTHS)


def shape_class(form: str, rows: int, bits: int) -> ShapeClass:
    size = next((name for name, measured in ROWS.items() if rows < 2 * measured), "many")
    return ShapeClass(form, size, next(width for width in WIDTHS if width >= bits))


def kernel_for(form: str, shape: tuple[int, int, int, int], bits: int) -> str:
    """The kernel for `shape` = (heads, rows, inner length, columns)."""
    forced = setting()
    heads, rows, inner, columns = shape
    multiply_adds = heads * rows * inner * columns
    if forced != "auto" and multiply_adds:
        return forced
    if min(rows, columns) == 1 and multiply_adds >= heads * LONG:
        return "vectors"  # the fastest everywhere: integers are read once, and nothing is cut
    if multiply_adds < SMALL:
        return "torch"
    return _chosen(shape_class(form, min(rows, columns), bits), _machine())


def setting() -> str:
    """A kernel's name, or 'auto'. Raises ConfigError."""
    value = os.environ.get(SETTING) or "auto"
    if value != "auto" and value not in KERNELS:
        raise ConfigError(f"{SETTING} is one of auto, {', '.join(KERNELS)}, not {value[:32]!r}")
    return value


@cache
def _chosen(what: ShapeClass, machine: str) -> str:
    return fastest(speeds(what, machine))


def fastest(measured: Speeds) -> str:
    """torch, unless another kernel is clearly faster."""
    name = max(measured, key=lambda kernel: measured[kernel])
    return name if measured[name] > FASTER * measured["torch"] else "torch"


# ---------------------------------------------------------------- measuring

_lock = threading.Lock()


def speeds(what: ShapeClass, machine: str | None = None, anew: bool = False) -> Speeds:
    """Of every kernel for shapes like these: as measured earlier, or measured now and kept."""
    machine = machine or _machine()
    with _lock:  # a process serves several sessions, and none is to measure while another one does
        kept = _load()
        known = kept.setdefault(machine, {}).get(str(what))
        if known is None or anew:
            known = kept[machine][str(what)] = measure(what)
            _save(kept)
            _chosen.cache_clear()
        return known


def measure(what: ShapeClass) -> dict[str, float]:
    """The best of interleaved runs, on fixed numbers. A kernel that computes anything else than torch is left out."""
    run, multiply_adds = _example(what)
    exact = run("torch")
    right = [name for name in KERNELS if not ((run(name) - exact) << (64 - what.bits)).any()]  # and all are warm
    seconds: dict[str, list[float]] = {name: [] for name in right}
    for _ in range(MOST_RUNS):
        for name, taken in seconds.items():
            if len(taken) < LEAST_RUNS or sum(taken) < ENOUGH_SECONDS:
                taken.append(_seconds(run, name))
    return {name: round(multiply_adds / min(taken) / 1e9, 4) for name, taken in seconds.items()}


def _example(what: ShapeClass) -> tuple[Callable[[str], torch.Tensor], int]:
    """Multiplies an example of the class by the kernel of a name; and its multiply-adds."""
    rows = ROWS[what.rows]
    if what.form == "matrix":
        x, matrix = _numbers(rows, 512), stored(_numbers(256, 512), what.bits)
        return lambda name: KERNELS[name](x, matrix, what.bits), rows * 256 * 512
    queries, keys = _numbers(4, rows, 64), _numbers(4, 256, 64).transpose(1, 2)
    return lambda name: heads_product(name, queries, keys, what.bits), 4 * rows * 64 * 256


def _numbers(*shape: int) -> torch.Tensor:
    """Numbers with all bits in use, the same ones always: nothing here is or looks at a secret."""
    count = torch.Size(shape).numel()
    return (torch.arange(1, count + 1) * -7046029254386353131).reshape(shape)  # 2^64 / golden ratio, odd


def _seconds(run: Callable[[str], Any], name: str) -> float:
    """One thread is timed by the time that it had: the other parties may be at work, too."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    run(name)
    return max(clock() - start, 1e-9)


# ---------------------------------------------------------------- this machine, and what is kept of it


@cache
def processor() -> str:
    """The processor's name, as the system gives it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _machine() -> str:
    return _described(torch.get_num_threads())


@cache
def _described(threads: int) -> str:
    return f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}, {threads} threads"


def cache_file() -> Path | None:
    """In the user's cache folder; None for a user without one."""
    folder = os.environ.get("XDG_CACHE_HOME") or ""
    with suppress(RuntimeError):
        return (Path(folder) if os.path.isabs(folder) else Path.home() / ".cache") / "mpcache" / "products.json"
    return None


def _load() -> dict[str, dict[str, dict[str, float]]]:
    """Measured speeds by machine and class; of a file that is missing, broken or not ours, what is right in it."""
    path = cache_file()
    if path is None:
        return {}
    try:
        with open(path, "rb") as file:
            data = json.loads(file.read(_FILE_BYTES))
        machines = data["machines"] if data["version"] == _VERSION else {}
        return {
            machine: {what: known for what, known in classes.items() if _is_speeds(known)}
            for machine, classes in machines.items()
        }
    except (OSError, TypeError, ValueError, KeyError, AttributeError, RecursionError):
        return {}


def _is_speeds(known: Any) -> bool:
    if not isinstance(known, dict) or "torch" not in known or not known.keys() <= KERNELS.keys():
        return False
    return all(type(speed) in (int, float) and 0 < speed < 1e6 for speed in known.values())


def _save(measured: Mapping[str, Any]) -> None:
    """Whole or not at all. Who cannot keep a measurement measures again."""
    path = cache_file()
    if path is None:
        return
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _written(path) as file:
            file.write(json.dumps({"version": _VERSION, "machines": measured}, indent=1).encode())


@contextmanager
def _written(path: Path) -> Iterator[Any]:
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            yield file
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)
