"""Plots as SVG text: lines with error bars, points with names, stacked bars. Drawn for the width of a phone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C7A00")
"""Okabe and Ito's colours, which colour-blind people can tell apart; their yellow darkened, to be seen on white."""
DASHES = ("", "5 3", "1.5 2.5")
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 420, 52, 14, 12, 40
ASIDE = 1.2
"""Between neighbouring series: sixteen stay well within the space from one length to the next."""
GRID, TEXT = "#dddddd", "#333333"


@dataclass(frozen=True)
class Style:
    """Colour, dashes and marker of a series: three ways to tell it apart."""

    colour: str
    dash: str
    marker: int

    @staticmethod
    def of(index: int) -> Style:
        turn = index // len(OKABE_ITO)
        return Style(OKABE_ITO[index % len(OKABE_ITO)], DASHES[turn % len(DASHES)], index + turn)


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


@dataclass(frozen=True)
class Axis:
    """ticks: where to write numbers; None: chosen. limits: of the data if None."""

    label: str
    log: bool = False
    limits: tuple[float, float] | None = None
    ticks: Sequence[float] | None = None
    show: Callable[[float], str] = lambda value: f"{value:g}"


@dataclass
class _Scale:
    low: float
    high: float
    log: bool
    start: float
    end: float

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(max(v, 1e-12)) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / (high - low or 1)


def line_plot(series: Sequence[Series], x: Axis, y: Axis, height: int = 280) -> str:
    """Lines through each series' points. Where points have error bars, series stand side by side, so that bars of the
    same x do not cover each other."""
    drawing = _Drawing(series, x, y, height)
    barred = any(p.low is not None for one in series for p in one.points)
    aside = {one.name: (i - (len(series) - 1) / 2) * ASIDE if barred else 0.0 for i, one in enumerate(series)}
    for one in sorted(series, key=lambda one: one.strong):
        places = [(drawing.x(p.x) + aside[one.name], drawing.y(p.y)) for p in one.points]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        dash = f' stroke-dasharray="{one.style.dash}"' if one.style.dash else ""
        stroke = f'stroke="{one.style.colour}" stroke-width="{3 if one.strong else 1.3}"{dash}'
        drawing.add(f'<polyline points="{path}" fill="none" {stroke}/>')
        for point, (a, b) in zip(one.points, places, strict=True):
            drawing.error_bar(point, a, one.style)
            title = f"{escape(one.name)}: {x.show(point.x)}, {y.show(point.y)}"
            drawing.add(f"<g>{marker(a, b, one.style)}<title>{title}</title></g>")
    return drawing.text()


def scatter_plot(series: Sequence[Series], x: Axis, y: Axis, front: Sequence[Point] = (), height: int = 380) -> str:
    """Points with their names beside them; `front` is joined by a line."""
    drawing = _Drawing(series, x, y, height)
    if front:
        path = " ".join(f"{drawing.x(p.x):.1f},{drawing.y(p.y):.1f}" for p in front)
        drawing.add(f'<polyline points="{path}" fill="none" stroke="#999999" stroke-dasharray="3 3"/>')
    places = [(drawing.x(p.x), drawing.y(p.y)) for one in series for p in one.points]
    names = _Names(places, height)
    for one in series:
        for point in one.points:
            a, b = drawing.x(point.x), drawing.y(point.y)
            drawing.error_bar(point, a, one.style)
            drawing.add(marker(a, b, one.style))
            drawing.add(names.beside(a, b, point.name or one.name, one.style.colour))
    return drawing.text()


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


NAME_SIZE, NAME_WIDTH = 10.5, 6.3


@dataclass(frozen=True)
class Bar:
    """A bar of stacked values, and a mark on it."""

    name: str
    values: Sequence[float]
    mark: float | None = None


def stacked_bars(bars: Sequence[Bar], styles: Sequence[Style], label: str, show: Callable[[float], str]) -> str:
    """Horizontal bars, the name above each, its total at its end."""
    step, top = 34, 6
    height = top + step * len(bars) + 34
    most = max([sum(bar.values) for bar in bars] + [bar.mark or 0 for bar in bars] + [1e-12])
    scale = _Scale(0, most, False, 6, WIDTH - 70)
    out = []
    for tick in _ticks(0, most, False):
        a = scale(tick)
        out.append(f'<line x1="{a:.1f}" y1="{top}" x2="{a:.1f}" y2="{height - 32}" stroke="{GRID}"/>')
        anchor = "middle" if tick else "start"
        out.append(f'<text x="{a:.1f}" y="{height - 20}" text-anchor="{anchor}">{tick:,g}</text>')
    for i, bar in enumerate(bars):
        y, begin = top + i * step, 0.0
        out.append(f'<text x="6" y="{y + 11}">{escape(bar.name)}</text>')
        for value, style in zip(bar.values, styles, strict=True):
            a, b = scale(begin), scale(begin + value)
            out.append(
                f'<rect x="{a:.1f}" y="{y + 15}" width="{max(b - a, 0):.1f}" height="13" fill="{style.colour}">'
                f"<title>{show(value)}</title></rect>"
            )
            begin += value
        end, total = scale(begin), show(begin)
        marked = end if bar.mark is None else scale(bar.mark)
        beside = marked if end < marked < end + 7 * len(total) + 6 else end
        out.append(f'<text x="{beside + 4:.1f}" y="{y + 26}">{total}</text>')
        if bar.mark is not None:
            a = marked
            out.append(f'<line x1="{a:.1f}" y1="{y + 12}" x2="{a:.1f}" y2="{y + 31}" stroke="#000" stroke-width="2"/>')
    out.append(f'<text x="{(WIDTH - 64) / 2}" y="{height - 4}" text-anchor="middle">{escape(label)}</text>')
    return _svg(out, height)


def marker(a: float, b: float, style: Style, size: float = 3.6) -> str:
    """A circle, square, diamond or triangle."""
    kind, s = style.marker % 4, size
    if kind == 0:
        return f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{s}" fill="{style.colour}"/>'
    corners = {
        1: [(-s, -s), (s, -s), (s, s), (-s, s)],
        2: [(0, -s * 1.3), (s * 1.3, 0), (0, s * 1.3), (-s * 1.3, 0)],
        3: [(0, -s * 1.2), (s * 1.2, s), (-s * 1.2, s)],
    }[kind]
    points = " ".join(f"{a + dx:.1f},{b + dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{points}" fill="{style.colour}"/>'


class _Drawing:
    """A frame with axes, to which shapes are added."""

    def __init__(self, series: Sequence[Series], x: Axis, y: Axis, height: int) -> None:
        self._height, self._shapes = height, list[str]()
        points = [point for one in series for point in one.points]
        bottom, end = height - BOTTOM, WIDTH - RIGHT
        self.x = _Scale(*_limits(x, [p.x for p in points], 0.04), x.log, LEFT, end)
        values = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
        self.y = _Scale(*_limits(y, values, 0.08), y.log, bottom, TOP)
        for tick in x.ticks or _ticks(self.x.low, self.x.high, x.log):
            a = self.x(tick)
            self.add(f'<line x1="{a:.1f}" y1="{TOP}" x2="{a:.1f}" y2="{bottom}" stroke="{GRID}"/>')
            self.add(f'<text x="{a:.1f}" y="{bottom + 15}" text-anchor="middle">{x.show(tick)}</text>')
        for tick in y.ticks or _ticks(self.y.low, self.y.high, y.log):
            b = self.y(tick)
            self.add(f'<line x1="{LEFT}" y1="{b:.1f}" x2="{end}" y2="{b:.1f}" stroke="{GRID}"/>')
            self.add(f'<text x="{LEFT - 5}" y="{b + 3.5:.1f}" text-anchor="end">{y.show(tick)}</text>')
        self.add(f'<text x="{(LEFT + end) / 2}" y="{height - 6}" text-anchor="middle">{escape(x.label)}</text>')
        middle = (TOP + bottom) / 2
        turned = f'text-anchor="middle" transform="rotate(-90 11 {middle})"'
        self.add(f'<text x="11" y="{middle}" {turned}>{escape(y.label)}</text>')

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
        return _svg(self._shapes, self._height)


def _svg(shapes: Sequence[str], height: int) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" xmlns="http://www.w3.org/2000/svg" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{TEXT}">{"".join(shapes)}</svg>'
    )


def _limits(axis: Axis, values: Sequence[float], margin: float) -> tuple[float, float]:
    if axis.limits is not None:
        return axis.limits
    low, high = min(values), max(values)
    if axis.log:
        factor = (high / low) ** margin if high > low else 1.2
        return low / factor, high * factor
    space = (high - low) * margin or 1
    return low - space, high + space


def _ticks(low: float, high: float, log: bool) -> list[float]:
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        for steps in ((1,), (1, 3), (1, 2, 5)):
            ticks = [m * 10.0**e for e in range(first, last + 1) for m in steps if low <= m * 10.0**e <= high]
            if len(ticks) >= 3:
                break
        return ticks
    step = 10 ** math.floor(math.log10((high - low) or 1))
    step = next(step * m for m in (0.2, 0.25, 0.5, 1, 2, 5) if (high - low) / (step * m) <= 5.5)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


@dataclass
class Legend:
    """Styles by name, in the order of their first use, the same in every plot of a page."""

    styles: dict[str, Style] = field(default_factory=dict)

    def style(self, name: str) -> Style:
        return self.styles.setdefault(name, Style.of(len(self.styles)))

    def html(self, names: Sequence[str]) -> str:
        items = []
        for name in names:
            style = self.style(name)
            dash = f' stroke-dasharray="{style.dash}"' if style.dash else ""
            line = f'<line x1="0" y1="6" x2="26" y2="6" stroke="{style.colour}" stroke-width="2"{dash}/>'
            icon = f'<svg width="26" height="12" aria-hidden="true">{line}{marker(13, 6, style)}</svg>'
            items.append(f"<span>{icon} {escape(name)}</span>")
        return f'<div class="legend">{"".join(items)}</div>'
