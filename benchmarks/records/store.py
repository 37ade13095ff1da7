"""Records in a folder: one JSON line each, written as they finish, so that an interrupted run resumes."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from mpcache.benchmarks.records.record import Record, canonical
from mpcache.protocols.errors import ConfigError

FILE = "records.jsonl"


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
