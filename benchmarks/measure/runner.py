"""Run cases one after another: progress with the time left, finished ones skipped, failed ones recorded."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mpcache.benchmarks.records.record import Record, make_record
from mpcache.benchmarks.records.store import Records
from mpcache.protocols.errors import MpcacheError

log = logging.getLogger("mpcache.bench")


@dataclass(frozen=True)
class Case:
    """settings: everything that decides the figures, `bench` among it. run: measures, and returns the figures, with a
    `status` and an `error` if they are not there to be had."""

    name: str
    settings: Record
    run: Callable[[], Record]


def run_cases(cases: Sequence[Case], records: Records) -> list[Record]:
    """The cases' records in order. A case that fails is recorded as failed, with the reason, and the rest goes on."""
    out = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(cases))
        for case in cases:
            bar.update(task, description=case.name)
            record = records.find(case.settings)
            if record is None:
                record = _run(case)
                records.add(record)
            if record["status"] != "done":
                bar.console.print(f"{record['status']}: {case.name}: {record['error']}")
            out.append(record)
            bar.advance(task)
    return out


def _run(case: Case) -> Record:
    begun = time.perf_counter()
    try:
        figures = case.run()
    except Exception as error:  # whatever it was, the other cases are still worth having
        log.info("case %s failed", case.name, exc_info=True)
        reason = str(error) if isinstance(error, MpcacheError) else f"{type(error).__name__}: {error}"
        return make_record(case.settings, "failed", {"error": reason})
    figures = {"status": "done", **figures, "case_seconds": time.perf_counter() - begun}
    return make_record(case.settings, figures.pop("status"), figures)
