"""What a figure of the report is, and the decode steps that several of them are about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mpcache.benchmarks.records.records import Record, is_block
from mpcache.benchmarks.records.tables import Rows
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


SHAPE = "gpt2"
"""The shape that others' systems, and quality, are set beside."""


def decoded(records: Sequence[Record], backend: str = "mpc", shape: str = SHAPE) -> list[Record]:
    """Decode steps of one block on loopback, without embedding and head."""
    return [r for r in steps_of(records, shape) if r["backend"] == backend and is_block(r)]


def steps_of(records: Sequence[Record], shape: str) -> list[Record]:
    return [r for r in records if r["bench"] == "decode" and r["settings"]["shape"] == shape]


def keys(names: Sequence[str], styles: Sequence[Style]) -> str:
    squares = (
        '<span><svg width="12" height="12" aria-hidden="true">'
        f'<rect width="12" height="12" fill="{style.colour}"/></svg> {name}</span>'
        for name, style in zip(names, styles, strict=True)
    )
    return f'<div class="legend">{"".join(squares)}</div>'
