"""Scatter plots, with the name of each point beside it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from mpcache.benchmarks.report.svg.axis import Axis
from mpcache.benchmarks.report.svg.canvas import BOTTOM, LEFT, WIDTH
from mpcache.benchmarks.report.svg.frame import Frame, Point, Series
from mpcache.benchmarks.report.svg.style import marker


def scatter_plot(series: Sequence[Series], x: Axis, y: Axis, front: Sequence[Point] = (), height: int = 380) -> str:
    """Points with their names beside them; `front` is joined by a line."""
    frame = Frame(series, x, y, height)
    if front:
        path = " ".join(f"{frame.x(p.x):.1f},{frame.y(p.y):.1f}" for p in front)
        frame.add(f'<polyline points="{path}" fill="none" stroke="#999999" stroke-dasharray="3 3"/>')
    places = [(frame.x(p.x), frame.y(p.y)) for one in series for p in one.points]
    names = _Names(places, height)
    for one in series:
        for point in one.points:
            a, b = frame.x(point.x), frame.y(point.y)
            frame.error_bar(point, a, one.style)
            frame.add(marker(a, b, one.style))
            frame.add(names.beside(a, b, point.name or one.name, one.style.colour))
    return frame.text()


NAME_SIZE, NAME_WIDTH = 10.5, 6.3


class _Names:
    """Finds each name a place near its point where it covers neither another name nor another point."""

    def __init__(self, points: Sequence[tuple[float, float]], height: int) -> None:
        self._boxes = [(a - 4, b - 4, a + 4, b + 4) for a, b in points]
        self._bottom = height - BOTTOM

    def beside(self, a: float, b: float, name: str, colour: str) -> str:
        """The name; with a thin line to its point, if it is not next to it."""
        width = NAME_WIDTH * len(name)
        down = sorted((step * 12 for step in range(-12, 13)), key=abs)
        places = [(side, d) for d in down for side in (8, -8 - width, 24, -24 - width)]
        boxes = [(a + side, b + d - 6, a + side + width, b + d + 6) for side, d in places]
        inside = [box for box in boxes if self._is_inside(box)]
        box = min(inside, key=lambda box: self._covered(box) + abs((box[1] + box[3]) / 2 - b), default=boxes[0])
        left, top, right, bottom = box
        self._boxes.append(box)
        x, anchor, near = (left, "start", left - 1) if left > a else (right, "end", right + 1)
        beside = abs(near - a) < 9 and abs((top + bottom) / 2 - b) < 1
        end = f'x2="{near:.1f}" y2="{(top + bottom) / 2:.1f}"'
        line = f'<line x1="{a:.1f}" y1="{b:.1f}" {end} stroke="{colour}" stroke-width="0.6"/>'
        text = f'<text x="{x:.1f}" y="{top + 9.5:.1f}" text-anchor="{anchor}" font-size="{NAME_SIZE}" fill="{colour}">'
        return f"{'' if beside else line}{text}{escape(name)}</text>"

    def _is_inside(self, box: tuple[float, float, float, float]) -> bool:
        return box[0] > LEFT and box[1] > 0 and box[2] < WIDTH and box[3] < self._bottom

    def _covered(self, box: tuple[float, float, float, float]) -> float:
        """The area of it that other names and points take."""
        wide = ((min(box[2], o[2]) - max(box[0], o[0]), min(box[3], o[3]) - max(box[1], o[1])) for o in self._boxes)
        return sum(max(w, 0) * max(h, 0) for w, h in wide)
