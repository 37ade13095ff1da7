"""The frame of a plot with two axes, and the points that are drawn in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mpcache.benchmarks.report.svg.axis import Axis, Scale, data_limits, even_ticks
from mpcache.benchmarks.report.svg.canvas import BOTTOM, GRID, LEFT, RIGHT, TOP, WIDTH, svg
from mpcache.benchmarks.report.svg.style import Style


@dataclass(frozen=True)
class Point:
    """x, y and the ends of its error bar."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    name: str = ""


@dataclass(frozen=True)
class Series:
    """strong: drawn thick, above the others."""

    name: str
    points: Sequence[Point]
    style: Style
    strong: bool = False


class Frame:
    """A frame with axes, to which shapes are added."""

    def __init__(self, series: Sequence[Series], x: Axis, y: Axis, height: int) -> None:
        self._height, self._shapes = height, list[str]()
        points = [point for one in series for point in one.points]
        bottom, end = height - BOTTOM, WIDTH - RIGHT
        self.x = Scale(*data_limits(x, [p.x for p in points], 0.04), x.log, LEFT, end)
        values = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
        self.y = Scale(*data_limits(y, values, 0.08), y.log, bottom, TOP)
        self._x_axis(x, height)
        self._y_axis(y, height)

    def _x_axis(self, axis: Axis, height: int) -> None:
        bottom, end = height - BOTTOM, WIDTH - RIGHT
        for tick in axis.ticks or even_ticks(self.x.low, self.x.high, axis.log):
            a = self.x(tick)
            self.add(f'<line x1="{a:.1f}" y1="{TOP}" x2="{a:.1f}" y2="{bottom}" stroke="{GRID}"/>')
            self.add(f'<text x="{a:.1f}" y="{bottom + 15}" text-anchor="middle">{axis.show(tick)}</text>')
        self.add(f'<text x="{(LEFT + end) / 2}" y="{height - 6}" text-anchor="middle">{escape(axis.label)}</text>')

    def _y_axis(self, axis: Axis, height: int) -> None:
        bottom, end = height - BOTTOM, WIDTH - RIGHT
        for tick in axis.ticks or even_ticks(self.y.low, self.y.high, axis.log):
            b = self.y(tick)
            self.add(f'<line x1="{LEFT}" y1="{b:.1f}" x2="{end}" y2="{b:.1f}" stroke="{GRID}"/>')
            self.add(f'<text x="{LEFT - 5}" y="{b + 3.5:.1f}" text-anchor="end">{axis.show(tick)}</text>')
        middle = (TOP + bottom) / 2
        turned = f'text-anchor="middle" transform="rotate(-90 11 {middle})"'
        self.add(f'<text x="11" y="{middle}" {turned}>{escape(axis.label)}</text>')

    def add(self, shape: str) -> None:
        self._shapes.append(shape)

    def error_bar(self, point: Point, a: float, style: Style) -> None:
        if point.low is not None and point.high is not None and point.high > point.low:
            low, high = self.y(point.low), self.y(point.high)
            self.add(
                f'<line x1="{a:.1f}" y1="{low:.1f}" x2="{a:.1f}" y2="{high:.1f}" stroke="{style.colour}" '
                'stroke-width="1" opacity="0.7"/>'
            )

    def text(self) -> str:
        return svg(self._shapes, self._height)
