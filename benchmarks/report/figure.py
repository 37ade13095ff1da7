"""What a figure of the report is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mpcache.benchmarks.records.record import Record
from mpcache.benchmarks.records.tables import PARTS, Rows
from mpcache.benchmarks.report.svg import Legend, Style


@dataclass(frozen=True)
class Figure:
    """title: the finding. note: what is plotted, with units. plot: SVG or HTML. name: of its file, where others link to
    it."""

    title: str
    note: str
    plot: str
    header: Sequence[str]
    rows: Rows
    legend: str = ""
    name: str = ""


Maker = Callable[[Sequence[Record], Legend], list[Figure]]
"""Makes the figures of a section that the records suffice for; none if there are none."""

COMPARED = ("full", "mpcache")
"""What a reader looks for first: drawn thick, and set beside others' systems."""


def part_styles(names: Sequence[str]) -> list[Style]:
    """A part of a step has the same colour in every plot."""
    return [Style.of(PARTS.index(name)) for name in names]
