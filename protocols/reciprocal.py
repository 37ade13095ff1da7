"""Reciprocal and reciprocal square root over a wide range: normalise by powers of two, then a small table.

A thermometer [X >= 2^j] comes from one opening of X (all thresholds share it). A linear combination of it is the power
of two s that moves X into [2^(high-1), 2^high); another is the square root of s. The table gives 1/y or 1/sqrt(y) of
the normalised y. (Normalisation as in Catrina & Saxena, FC 2010, with the bits from one comparison.)

Outside [2^low, 2^high) the result saturates: below, s is capped, so the result is within a factor of 4 of that at
2^low; X must stay below 2^high.
"""

from __future__ import annotations

import itertools
import math

import torch

from protocols.comparison import less_than
from protocols.lookup import POWER_BITS, look_up
from protocols.product import multiply
from protocols.ring import FRACTION_BITS, RING_BITS
from protocols.session import Session
from protocols.truncation import truncate

_TABLE_VALUE_BITS = 18
_TABLE_OUT_BITS = 40
_TABLE_BITS = 16
_ROOT_BITS = 14


async def _normalised_inverse(
    session: Session, x: torch.Tensor, table: str, low: int, high: int, scales: list[int]
) -> torch.Tensor:
    """Shares of scale[e] * f(y) * 2^16, where 2^e <= X < 2^(e+1) and y = X / 2^(e+1)."""
    exponents = range(low + 1, high)
    below = await less_than(session, x, high + 2, [1 << j for j in exponents])

    def chosen(values: list[int]) -> torch.Tensor:
        """values[e - low] as a linear combination of the thermometer."""
        steps = torch.tensor([a - b for a, b in itertools.pairwise(values)], device=session.device)
        return session.constant(torch.full_like(x, values[-1])) + (below * steps).sum(-1)

    powers = chosen([1 << (high - 1 - e) for e in range(low, high)])
    y = await multiply(session, x, powers, high)
    value = await look_up(session, y, table, high, _TABLE_VALUE_BITS, _TABLE_OUT_BITS)
    value = await truncate(session, value, POWER_BITS + _TABLE_VALUE_BITS - _TABLE_BITS, _TABLE_OUT_BITS)
    return await multiply(session, value, chosen(scales), RING_BITS)


async def _rescale(session: Session, z: torch.Tensor, shift: int) -> torch.Tensor:
    return await truncate(session, z, shift, RING_BITS) if shift > 0 else z << -shift


async def reciprocal(
    session: Session,
    x: torch.Tensor,
    low: int = 2,
    high: int = 46,
    in_bits: int = FRACTION_BITS,
    out_bits: int = FRACTION_BITS,
) -> torch.Tensor:
    """Shares of 1/x at scale 2^out_bits, for the integer X = x 2^in_bits in [2^low, 2^high).

    Defaults: 6e-5 <= x < 2^30. Rounds: 9 (7 + those of a comparison of high + 2 bits, less 2). Relative error below
    1e-4, or 2 units of the result if larger. Opened: masked values only, see `less_than`, `multiply`, `look_up`.
    """
    scales = [1 << (high - 1 - e) for e in range(low, high)]
    z = await _normalised_inverse(session, x, "reciprocal", low, high, scales)
    return await _rescale(session, z, _TABLE_BITS + high - in_bits - out_bits)


async def rsqrt(
    session: Session,
    x: torch.Tensor,
    low: int = 2,
    high: int = 46,
    in_bits: int = FRACTION_BITS,
    out_bits: int = FRACTION_BITS,
    factor: float = 1.0,
) -> torch.Tensor:
    """Shares of factor / sqrt(x) at scale 2^out_bits; range, rounds and error as in `reciprocal`. `high` is even."""
    half = _ROOT_BITS + 0.5 * (in_bits % 2)
    scales = [round(factor * math.sqrt(2.0 ** (high - 1 - e)) * 2.0**half) for e in range(low, high)]
    z = await _normalised_inverse(session, x, "rsqrt", low, high, scales)
    return await _rescale(session, z, _ROOT_BITS + _TABLE_BITS + high // 2 - in_bits // 2 - out_bits)
