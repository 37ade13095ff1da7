"""An axis: its label, limits and ticks, and where on the page a value lies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """ticks: where to write numbers; None: chosen. limits: of the data if None."""

    label: str
    log: bool = False
    limits: tuple[float, float] | None = None
    ticks: Sequence[float] | None = None
    show: Callable[[float], str] = lambda value: f"{value:g}"


@dataclass(frozen=True)
class Scale:
    """From a value between low and high to a place on the page between start and end."""

    low: float
    high: float
    log: bool
    start: float
    end: float

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(max(v, 1e-12)) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / (high - low or 1)


def data_limits(axis: Axis, values: Sequence[float], margin: float) -> tuple[float, float]:
    """Of the values, with a margin to either side, unless the axis has its own."""
    if axis.limits is not None:
        return axis.limits
    low, high = min(values), max(values)
    if axis.log:
        factor = (high / low) ** margin if high > low else 1.2
        return low / factor, high * factor
    space = (high - low) * margin or 1
    return low - space, high + space


def even_ticks(low: float, high: float, log: bool) -> list[float]:
    """Three to six round numbers from low to high, as far as there are any."""
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
