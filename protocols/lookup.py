"""Functions of one shared value by a one-time table of polynomials: one opening, no product.

The parties open c = x + r modulo 2^bits. With c's and r's upper `index_bits` bits c_hi and r_hi, and the lower ones
c_lo and r_lo, u = c_hi - r_hi is x's segment up to one, and x - u 2^low = c_lo - r_lo exactly, so
    f(x) = sum_i a_i[u] (C - R)^i = sum_j C^j (sum_{i >= j} binom(i, j) (-R)^(i - j) a_i[u])
with C, R = c_lo, r_lo / 2^low.
The dealer knows all but c: it shares, for every c_hi, the inner sums; the parties look up and combine with powers of
the public C. The exponential needs no polynomial: exp(C - R) is a product. (One-time truth tables, Ishai et al., TCC
2013, with the remainder as in Pika, Wagh, PETS 2022.)

Outside the table's domain the value wraps: callers compare first and saturate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from protocols.correlation import Corrected, Correlation, Dealer, Random, Shape
from protocols.ring import shift_right
from protocols.session import Session

POWER_BITS = 14
"""Fractional bits of the public powers of C."""


@dataclass(frozen=True)
class Table:
    """A function on [start, start + 2^index_bits * width), as one polynomial a segment.

    Segment u's polynomial is in (x - u width) / width and holds on (-1, 1): the segment is found up to one.
    """

    function: Callable[[np.ndarray], np.ndarray]
    start: float
    width: float
    index_bits: int
    degree: int

    @property
    def segments(self) -> int:
        return 1 << self.index_bits

    def coefficients(self) -> np.ndarray:
        """(segments, degree + 1), row u for the segment at u * width modulo the domain; fitted at Chebyshev nodes."""
        base = np.arange(self.segments) * self.width
        size = self.segments * self.width
        base = (base - self.start) % size + self.start
        nodes = np.cos((2 * np.arange(self.degree + 1) + 1) * np.pi / (2 * self.degree + 2))
        values = self.function(base[:, None] + nodes * self.width)
        return np.linalg.solve(np.vander(nodes, increasing=True), values.T).T


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2)))(x)


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


TABLES = {
    "silu": Table(lambda x: x / (1 + np.exp(-x)), -16.0, 1.0, 5, 5),
    "gelu": Table(_gelu, -4.0, 0.25, 5, 3),
    "gelu_tanh": Table(_gelu_tanh, -4.0, 0.25, 5, 3),
    "reciprocal": Table(lambda x: 1 / x, 0.25, 1 / 16, 4, 4),
    "rsqrt": Table(lambda x: 1 / np.sqrt(x), 0.25, 1 / 16, 4, 4),
}


@cache
def _coefficients(name: str) -> torch.Tensor:
    return torch.from_numpy(TABLES[name].coefficients())


def _rotate(values: torch.Tensor, r_hi: torch.Tensor) -> torch.Tensor:
    """values (..., segments), indexed by u, to the same indexed by c_hi = u + r_hi."""
    segments = values.shape[-1]
    index = (torch.arange(segments) - r_hi[..., None]) % segments
    return values.gather(-1, index)


@dataclass(frozen=True)
class PolynomialTable(Correlation):
    """r modulo 2^bits and, for each power j of C, the table over c_hi of its coefficient, at scale 2^value_bits."""

    shape: Shape
    table: str
    bits: int
    value_bits: int
    out_bits: int

    def fields(self) -> Sequence[Random | Corrected]:
        table = TABLES[self.table]
        entries = (*self.shape, table.segments)
        return [Random(self.shape, self.bits), *[Corrected(entries, self.out_bits)] * (table.degree + 1)]

    def deal(self, randoms: Sequence[torch.Tensor], kept: object, dealer: Dealer) -> list[torch.Tensor]:
        table, (r,) = TABLES[self.table], randoms
        low = self.bits - table.index_bits
        a = _coefficients(self.table) * 2.0**self.value_bits
        minus_r = -shift_right(r << (64 - low), 64 - low).double()[..., None] / 2.0**low
        # Taylor shift of every segment's polynomial by -R, in place, highest power first (Horner's scheme)
        shifted = [a[:, i].expand(*self.shape, -1) for i in range(table.degree + 1)]
        for i in range(table.degree):
            for j in range(table.degree - 1, i - 1, -1):
                shifted[j] = shifted[j] + shifted[j + 1] * minus_r
        r_hi = shift_right(r, low, self.bits)
        return [_rotate(values, r_hi).round().to(torch.int64) for values in shifted]


def _pick(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return table.gather(-1, index[..., None])[..., 0]


async def look_up(
    session: Session, x: torch.Tensor, table: str, bits: int, value_bits: int, out_bits: int
) -> torch.Tensor:
    """Shares modulo 2^out_bits of f(x) at scale 2^(POWER_BITS + value_bits).

    x: shares modulo 2^bits; 2^bits is the table's whole domain. Rounds: 1. Online: ceil(bits/8) bytes an element and
    direction. Correction: segments * (degree + 1) * ceil(out_bits/8) bytes an element. Opened: x + r, r used once.
    """
    low = bits - TABLES[table].index_bits
    r, *entries = session.take(PolynomialTable(tuple(x.shape), table, bits, value_bits, out_bits))
    c = await session.open(x + r, bits)
    c_hi, fraction = shift_right(c, low, bits), (c & ((1 << low) - 1)).double() / 2.0**low
    result = _pick(entries[0], c_hi) << POWER_BITS
    for power, entry in enumerate(entries[1:], 1):
        result = result + _pick(entry, c_hi) * (fraction**power * 2.0**POWER_BITS).round().to(torch.int64)
    return result


EXP_BITS = 21
EXP_INDEX_BITS = 4
EXP_WIDTH = 2.0
EXP_START = -26.0
EXP_POWER_BITS = 13
EXP_VALUE_BITS = 24
EXP_OUT_BITS = 40


@dataclass(frozen=True)
class ExponentialTable(Correlation):
    """r modulo 2^21 and the table over c_hi of exp(2 u - 2 R), at scale 2^24, modulo 2^40."""

    shape: Shape

    def fields(self) -> Sequence[Random | Corrected]:
        return [Random(self.shape, EXP_BITS), Corrected((*self.shape, 1 << EXP_INDEX_BITS), EXP_OUT_BITS)]

    def deal(self, randoms: Sequence[torch.Tensor], kept: object, dealer: Dealer) -> list[torch.Tensor]:
        (r,) = randoms
        low = EXP_BITS - EXP_INDEX_BITS
        u = np.arange(1 << EXP_INDEX_BITS) * EXP_WIDTH
        u = (u - EXP_START) % (EXP_WIDTH * (1 << EXP_INDEX_BITS)) + EXP_START
        at_segment = torch.from_numpy(np.exp(u) * 2.0**EXP_VALUE_BITS)
        rest = torch.exp((r & ((1 << low) - 1)).double() * (-EXP_WIDTH / 2.0**low))
        entries = _rotate((rest[..., None] * at_segment), shift_right(r, low, EXP_BITS))
        return [entries.round().to(torch.int64)]


async def exponential(session: Session, x: torch.Tensor) -> torch.Tensor:
    """Shares modulo 2^40 of exp(x) at scale 2^37, for x (scale 2^16, modulo 2^21) in [-24, 0.6].

    Rounds: 1. Online: 3 bytes an element and direction. Correction: 80 bytes. Relative error 2^-13 + 2^-22 / exp(x).
    Opened: x + r, r used once.
    """
    low = EXP_BITS - EXP_INDEX_BITS
    r, entries = session.take(ExponentialTable(tuple(x.shape)))
    c = await session.open(x + r, EXP_BITS)
    power = torch.exp((c & ((1 << low) - 1)).double() * (EXP_WIDTH / 2.0**low))
    return _pick(entries, shift_right(c, low, EXP_BITS)) * (power * 2.0**EXP_POWER_BITS).round().to(torch.int64)
