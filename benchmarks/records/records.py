"""Records of benchmark cases: one JSON line each, written as they finish, so that an interrupted run resumes."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from mpcache import __version__
from mpcache.model.shapes import model_shape
from mpcache.protocols.errors import ConfigError, MpcacheError

Record = dict[str, Any]
FILE = "records.jsonl"
SIZES = ("repeat", "documents", "max_new_tokens")
"""The settings that say how much was measured; all others say what."""


@dataclass
class Records:
    """What has been measured so far; in `folder`, if there is one. Raises ConfigError if it cannot be used."""

    folder: Path | None = None
    records: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.folder is not None:
            self.records = read_records(self.folder) if (self.folder / FILE).exists() else []

    def find(self, settings: Record) -> Record | None:
        """The record of a case that did not fail, by its settings."""
        wanted = canonical(settings)
        done = (r for r in self.records if r["status"] == "done" and canonical(r["settings"]) == wanted)
        return next(done, None)

    def add(self, record: Record) -> None:
        """A failed record of the same case is superseded."""
        same = canonical(record["settings"])
        self.records = [r for r in self.records if canonical(r["settings"]) != same] + [record]
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / FILE).open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise ConfigError(f"records cannot be written to {self.folder}: {error}") from None


def read_records(folder: Path) -> list[Record]:
    """A folder's records; of each case the last. Raises ConfigError if there are none."""
    try:
        lines = (folder / FILE).read_text().splitlines()
    except OSError as error:
        raise ConfigError(f"{folder} has no records of a benchmark: {error}") from None
    latest: dict[str, Record] = {}
    for line in lines:
        with contextlib.suppress(ValueError):  # a line that an interrupted run did not finish
            record = json.loads(line)
            latest.pop(canonical(record["settings"]), None)
            latest[canonical(record["settings"])] = record
    return list(latest.values())


def is_block(record: Record) -> bool:
    """Whether a decode step or prefill is that of one block, on loopback."""
    settings = record["settings"]
    ends = settings["program"]["head"] or settings["program"].get("embedding")
    return settings["layers"] == 1 and not settings["network"] and not ends


def is_whole_model(record: Record) -> bool:
    """Whether it is that of all of a model, from the token to the next one, on loopback."""
    settings = record["settings"]
    ends = settings["program"]["head"] and settings["program"].get("embedding")
    return bool(ends) and not settings["network"] and _all_layers(settings)


def _all_layers(settings: Record) -> bool:
    try:
        return bool(settings["layers"] == model_shape(settings["shape"]).layers)
    except MpcacheError:  # a model folder that is not on this machine: nobody knows
        return False


def size(record: Record) -> tuple[int, ...]:
    """How much was measured: repeats, documents and tokens, 0 where a case has none."""
    return tuple(record["settings"].get(name) or 0 for name in SIZES)


def largest_run(records: Iterable[Record]) -> list[Record]:
    """Of records from runs of several sizes, those of the largest, so that all of them were measured alike."""
    every = list(records)
    most = max((size(r) for r in every), default=())
    return [r for r in every if size(r) == most]


def most_measured(records: Iterable[Record]) -> list[Record]:
    """Each case once: of records that differ in size alone, the largest. All policies that answer the same task are one
    case, because only answers about the same documents compare."""
    every = list(records)
    most: dict[str, tuple[int, ...]] = {}
    for r in every:
        most[_case(r)] = max(most.get(_case(r), ()), size(r))
    return [r for r in every if size(r) == most[_case(r)]]


def _case(record: Record) -> str:
    left_out = {*SIZES, "policy", "label"} if record["bench"] == "quality" else set(SIZES)
    return canonical({key: value for key, value in record["settings"].items() if key not in left_out})


def canonical(settings: Record) -> str:
    """Equal settings give equal text."""
    return json.dumps(settings, sort_keys=True, separators=(",", ":"))


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


@cache
def versions() -> dict[str, str | None]:
    """Of this package (and its commit, where it is a checkout) and of what its figures depend on."""
    packages = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "grpcio", "crypten")}
    return {"mpcache": __version__, "commit": _commit(), "python": platform.python_version(), **packages}


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
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "threads_per_process": 1,
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
