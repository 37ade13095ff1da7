"""Run a command's cases, and show their records."""

from __future__ import annotations

from pathlib import Path

from mpcache.benchmarks.measure.processes import ProcessPool
from mpcache.benchmarks.measure.runner import Case, run_cases
from mpcache.benchmarks.records.record import Record
from mpcache.benchmarks.records.store import Records
from mpcache.benchmarks.run.show import show_records
from mpcache.files import write_json


def run_and_show(cases: list[Case], out: Path | None, json_path: Path | None, pool: ProcessPool | None = None) -> None:
    """The pool's processes are ended, whatever happens. Raises ConfigError if records cannot be kept or written."""
    try:
        records = run_cases(cases, Records(out))
    finally:
        if pool is not None:
            pool.close()
    show_and_write(records, json_path)


def show_and_write(records: list[Record], json_path: Path | None) -> None:
    if json_path is not None:
        write_json(json_path, records, "the records")
    show_records(records)
