"""Public numbers that shares are multiplied by: the same at both parties to the last bit, whatever their processors.

One unit of difference is no small error: times a share, which may be any element of the ring, it is any value. And
exp, cos or pow of one library differ in their last bit between processors. So what is public is made of three things:

  integers, and fractions rounded once
  IEEE 754's own operations, one at a time: +, -, *, /, sqrt and rounding of doubles have one right result each
  elementary functions, correctly rounded: `correctly_rounded` and `rounded_power` have one right result as well

and reaches shares by `Session.public`, so that a plan can note it and the handshake compare it. A table of real numbers
is a tensor of float64 that are whole multiples of 2^-30 (`table`): exact, and encoded without another doubt.

Not concerned: what one party alone computes (weights, biases, learned positions: the owner; tables, their exponentials
and noise: the dealer), and what `Session.constant` shares, which party 0 alone has.
"""

from __future__ import annotations

import hashlib
import math
import threading
import weakref
from fractions import Fraction

import mpmath
import numpy as np
import torch

from mpcache.protocols.ring import FRACTION_BITS

Factor = int | float | Fraction | torch.Tensor
"""A public number; or a tensor: a table of real numbers, or integers."""

TABLE_BITS = 30
MARGIN = 2.0**-16
"""How near to the middle between two whole numbers a double leaves a doubt. Near 2^30, doubles lie 2^-23 apart: a
library that is wrong by 4 of their last places is still 32 times nearer than this."""

_precise = mpmath.MPContext()
_precise.prec = 160
_MPMATH = threading.Lock()
"""mpmath keeps pi and the like in memos that all contexts share, and that are not made for threads."""


def correctly_rounded(function: str, x: np.ndarray, bits: int, margin: float = MARGIN) -> np.ndarray:
    """function(x) * 2^bits to the nearest whole number, int64; 'cos', 'sin' or 'exp' of float64, up to 2^30 in size.

    Where doubles leave a doubt, more digits decide (Ziv, ACM TOMS 17(3), 1991): for three elements in 100,000. None
    lies on the middle: all are transcendental, but for cos(0) = exp(0) = 1 and sin(0) = 0. Cost: 40 ns an element.
    """
    scaled = getattr(np, function)(x) * 2.0**bits
    nearest = np.rint(scaled)
    doubtful = np.abs(scaled - nearest) >= 0.5 - margin
    out: np.ndarray = nearest.astype(np.int64)
    with _MPMATH:
        out[doubtful] = [_nearest(getattr(_precise, function)(float(v)) * 2**bits) for v in x[doubtful]]
    return out


def rounded_power(base: float, exponents: np.ndarray) -> np.ndarray:
    """base^exponent, correctly rounded to float32. Cost: 40 us an element."""
    with _MPMATH:
        parts = [_precise.frexp(_precise.mpf(base) ** float(e)) for e in exponents]
        return np.array([math.ldexp(_nearest(m * 2**24), e - 24) for m, e in parts], dtype=np.float32)


def _nearest(x: mpmath.mpf) -> int:
    return int(_precise.nint(x))


def table(units: torch.Tensor) -> torch.Tensor:
    """Whole multiples of 2^-30 as real numbers, float64."""
    return units.double() * 2.0**-TABLE_BITS


def reciprocals(counts: torch.Tensor) -> torch.Tensor:
    """A table of 1 / counts, for integers above zero, to the nearest."""
    return table(((2 << TABLE_BITS) + counts).div(2 * counts, rounding_mode="floor"))


def fixed_point(x: Factor, fraction_bits: int = FRACTION_BITS) -> torch.Tensor:
    """Ring elements of scale 2^fraction_bits, to the nearest, half to even.

    Raises TypeError for a tensor of real numbers that is no table: another machine's may differ in the last bit.
    """
    if not isinstance(x, torch.Tensor):
        return torch.tensor(round(Fraction(x) * 2**fraction_bits))
    if not x.is_floating_point():
        return x << fraction_bits if fraction_bits else x
    units = x * 2.0**TABLE_BITS
    if x.dtype != torch.float64 or not torch.equal(units, units.round()):
        raise TypeError(
            "a public tensor of real numbers that are no multiples of 2^-30 may differ between machines: "
            "make it with protocols/public.py, or of integers"
        )
    return (units * 2.0 ** (fraction_bits - TABLE_BITS)).round().to(torch.int64)


class Constants:
    """A fingerprint of public values in the order in which they come. A tensor that comes again is not read again."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._seen: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()

    def add(self, x: Factor, fraction_bits: int = FRACTION_BITS) -> None:
        if id(x) in self._seen:
            return
        if isinstance(x, torch.Tensor):
            self._seen[id(x)] = x
        values = fixed_point(x, fraction_bits)
        self._hash.update(f"{fraction_bits} {tuple(values.shape)}\n".encode())
        self._hash.update(values.contiguous().numpy().astype("<i8").tobytes())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
