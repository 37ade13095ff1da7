"""Stacked bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from mpcache.benchmarks.report.svg.axis import Scale, even_ticks
from mpcache.benchmarks.report.svg.canvas import GRID, WIDTH, svg
from mpcache.benchmarks.report.svg.style import Style


@dataclass(frozen=True)
class Bar:
    """A bar of stacked values, and a mark on it."""

    name: str
    values: Sequence[float]
    mark: float | None = None


STEP, FIRST = 34, 6
"""From one bar to the next, and the place of the first."""


def stacked_bars(bars: Sequence[Bar], styles: Sequence[Style], label: str, show: Callable[[float], str]) -> str:
    """Horizontal bars, the name above each, its total at its end."""
    height = FIRST + STEP * len(bars) + 34
    most = max([sum(bar.values) for bar in bars] + [bar.mark or 0 for bar in bars] + [1e-12])
    scale = Scale(0, most, False, 6, WIDTH - 70)
    out = _grid(scale, height)
    for i, bar in enumerate(bars):
        out += _bar(bar, FIRST + i * STEP, styles, scale, show)
    out.append(f'<text x="{(WIDTH - 64) / 2}" y="{height - 4}" text-anchor="middle">{escape(label)}</text>')
    return svg(out, height)


def _grid(scale: Scale, height: int) -> list[str]:
    out = []
    for tick in even_ticks(scale.low, scale.high, False):
        a = scale(tick)
        out.append(f'<line x1="{a:.1f}" y1="{FIRST}" x2="{a:.1f}" y2="{height - 32}" stroke="{GRID}"/>')
        anchor = "middle" if tick else "start"
        out.append(f'<text x="{a:.1f}" y="{height - 20}" text-anchor="{anchor}">{tick:,g}</text>')
    return out


def _bar(bar: Bar, y: int, styles: Sequence[Style], scale: Scale, show: Callable[[float], str]) -> list[str]:
    out, begin = [f'<text x="6" y="{y + 11}">{escape(bar.name)}</text>'], 0.0
    for value, style in zip(bar.values, styles, strict=True):
        a, b = scale(begin), scale(begin + value)
        out.append(
            f'<rect x="{a:.1f}" y="{y + 15}" width="{max(b - a, 0):.1f}" height="13" fill="{style.colour}">'
            f"<title>{show(value)}</title></rect>"
        )
        begin += value
    end, total = scale(begin), show(begin)
    mark = end if bar.mark is None else scale(bar.mark)
    beside = mark if end < mark < end + 7 * len(total) + 6 else end
    out.append(f'<text x="{beside + 4:.1f}" y="{y + 26}">{total}</text>')
    if bar.mark is not None:
        out.append(
            f'<line x1="{mark:.1f}" y1="{y + 12}" x2="{mark:.1f}" y2="{y + 31}" stroke="#000" stroke-width="2"/>'
        )
    return out
