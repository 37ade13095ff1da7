"""Piecewise polynomials of a masked value, by one-time tables: no product, no message beyond the opening.

The parties know c = x + r modulo 2^bits. With c's and r's upper `index_bits` bits c_hi and r_hi, and the lower ones
c_lo and r_lo, u = c_hi - r_hi is x's segment or the next one, and x - u 2^low = c_lo - r_lo exactly, so
    f(x) = sum_i a_i[u] (C - R)^i = sum_j C^j (sum_{i >= j} binom(i, j) (-R)^(i - j) a_i[u])
with C, R = c_lo, r_lo / 2^low. The dealer knows all but c: it shares, for every c_hi, the inner sums; the parties look
up and combine with powers of the public C. (One-time truth tables, Ishai et al., TCC 2013, with the remainder as in
Pika, Wagh, PETS 2022.)

Coefficients and inner sums are the dealer's alone: its machine may round them as it likes. The powers multiply shares
at both parties, and must be the same there (public.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from mpcache.protocols.correlation import Corrected, Shape


def _gelu_tail(y: np.ndarray) -> np.ndarray:
    tail: np.ndarray = y * np.vectorize(lambda v: 0.5 * math.erfc(v / math.sqrt(2)))(y)
    return tail


def _gelu_tanh_tail(y: np.ndarray) -> np.ndarray:
    tail: np.ndarray = 0.5 * y * (1 - np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    return tail


FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu": lambda x: x - _gelu_tail(x),
    "gelu_tanh": lambda x: x - _gelu_tanh_tail(x),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu_tail": _gelu_tail,
    "gelu_tanh_tail": _gelu_tanh_tail,
    "silu_tail": lambda y: y / (1 + np.exp(y)),
    "reciprocal": lambda x: 1 / x,
    "rsqrt": lambda x: 1 / np.sqrt(x),
}


@dataclass(frozen=True)
class Pieces:
    """A function, times `factor`, on [start, end], within a domain of 2^index_bits segments of `width` from `first` on.

    start - first >= 0 and the domain's end - end >= width, as a segment is found up to one above. Values are shares
    modulo 2^out_bits at scale 2^(value_bits + power_bits).
    """

    function: str
    first: float
    width: float
    index_bits: int
    degree: int
    start: float
    end: float
    value_bits: int
    power_bits: int
    out_bits: int
    factor: float = 1.0

    @property
    def segments(self) -> int:
        return 1 << self.index_bits

    @property
    def scale_bits(self) -> int:
        """Fractional bits of the values."""
        return self.value_bits + self.power_bits

    def fields(self, shape: Shape) -> list[Corrected]:
        return [Corrected((*shape, self.segments), self.out_bits)] * (self.degree + 1)

    def coefficients(self) -> torch.Tensor:
        """(segments, degree + 1): each segment's polynomial in (x - its start) / width, which lies in (-1, 1)."""
        return _coefficients(self) * 2.0**self.value_bits


@lru_cache(maxsize=1 << 10)
def _coefficients(pieces: Pieces) -> torch.Tensor:
    """Fitted at the Chebyshev nodes of the part of (-1, 1) that is used; a segment that is never used gets zero."""
    out = np.zeros((pieces.segments, pieces.degree + 1))
    nodes = np.cos((2 * np.arange(pieces.degree + 1) + 1) * np.pi / (2 * pieces.degree + 2))
    for u in range(pieces.segments):
        base = pieces.first + u * pieces.width
        low, high = max(base - pieces.width, pieces.start), min(base + pieces.width, pieces.end)
        if low < high:
            low, high = min(low, high - pieces.width), max(high, low + pieces.width)  # no narrow, ill-conditioned fit
            at = (low + high) / 2 + nodes * (high - low) / 2
            relative = (at - base) / pieces.width
            out[u] = np.linalg.solve(np.vander(relative, increasing=True), FUNCTIONS[pieces.function](at))
    return torch.from_numpy(out * pieces.factor)


def deal_tables(coefficients: torch.Tensor, r: torch.Tensor, bits: int | torch.Tensor) -> list[torch.Tensor]:
    """The tables (*r.shape, segments) of each power of C.

    coefficients: (..., segments, degree + 1), broadcast to r. r: the mask, of which the low `bits` bits count: 2^bits
    is the whole domain (a number, or one for each place in r's last dimension).
    """
    segments, degree = coefficients.shape[-2], coefficients.shape[-1] - 1
    low = bits - (segments.bit_length() - 1)
    minus_r = -((r & ((1 << low) - 1)).double() / (1 << low))[..., None]
    # Taylor shift of every segment's polynomial by -R, highest power first (Horner's scheme)
    shifted = [coefficients[..., i].expand(*r.shape, -1) for i in range(degree + 1)]
    for i in range(degree):
        for j in range(degree - 1, i - 1, -1):
            shifted[j] = shifted[j] + shifted[j + 1] * minus_r
    r_hi = (r >> low) & (segments - 1)
    index = (torch.arange(segments) - r_hi[..., None]) % segments  # from u to c_hi = u + r_hi
    return [values.gather(-1, index).round().to(torch.int64) for values in shifted]


def evaluate(
    tables: Sequence[torch.Tensor], c: torch.Tensor, bits: int | torch.Tensor, power_bits: int
) -> torch.Tensor:
    """Shares of f(x) from the opened c, of which the low `bits` bits count. Local."""
    segments = tables[0].shape[-1]
    low = bits - (segments.bit_length() - 1)
    c_hi = ((c >> low) & (segments - 1))[..., None]
    result = tables[0].gather(-1, c_hi)[..., 0] << power_bits
    for table, power in zip(tables[1:], powers(c, low, power_bits, len(tables) - 1), strict=True):
        result = result + table.gather(-1, c_hi)[..., 0] * power
    return result


def powers(c: torch.Tensor, low: int | torch.Tensor, power_bits: int, degree: int) -> Iterator[torch.Tensor]:
    """C^j at scale 2^power_bits for j = 1 .. degree, C = (c modulo 2^low) / 2^low.

    Doubles, but each step is one operation of IEEE 754, which has one right result: whole numbers below 2^53 are
    converted and divided by a power of two exactly; products and rounding to the nearest are the standard's. (A power
    of two is a shift of integers: torch's pow is a kernel that may be off.)
    """
    fraction = (c & ((1 << low) - 1)).double() / (1 << low)
    power = torch.full_like(fraction, 2.0**power_bits)
    for _ in range(degree):
        power = power * fraction
        yield power.round().to(torch.int64)


def sample_powers() -> Iterator[torch.Tensor]:
    """Powers at places all over each domain that the protocols have, for the handshake to compare."""
    places = torch.arange(256) * -7046029254386353131  # 2^64 over the golden ratio
    low = torch.arange(1, 45)
    return powers(places[:, None], low, 12, 6)
