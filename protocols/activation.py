"""SiLU and GELU: a table of polynomials in the middle, the identity above it and zero below.

One opening of x serves three ends: its low bits index the table (polynomial.py), digit tables of its upper bits tell
whether x is below or above the middle, and the identity is its product with the latter bit. The dealer knows the random
bits that these are opened under, so neither product needs a message of its own, see truncation.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from protocols.comparison import sign
from protocols.correlation import Corrected, Correlation, Dealer, Random, Shape
from protocols.digits import LessThan
from protocols.polynomial import Pieces
from protocols.ring import FRACTION_BITS, PRODUCT_BITS
from protocols.session import Session, together
from protocols.truncation import Truncation, drop_low_bits

COMPARED_FRACTION = 4
COMPARED_BITS = 18
"""x is compared with 4 fractional bits on 18 bits: |x| < 2^12."""
_DROPPED = FRACTION_BITS - COMPARED_FRACTION
_VALUE_RING = 32


@dataclass(frozen=True)
class Middle:
    """Where the table holds: x counts as in the middle from `low` to `high`, up to 1/16 below either.

    The table's argument is x * multiplier / 2^dropped at scale 2^16, on `bits` bits: so is its domain stretched to what
    the middle needs and a segment more, as a segment is found up to one above.
    """

    low: float
    high: float
    multiplier: int
    dropped: int
    bits: int
    pieces: Pieces


def _gelu(kind: str) -> Middle:
    """8 segments of 16/15. Beyond the middle x or 0 is within 6e-4; within it the table is within 1e-4."""
    pieces = Pieces(kind, -3.7, 16 / 15, 3, 6, -3.6875, 3.6875, 15, 12, _VALUE_RING)
    return Middle(-3.625, 3.6875, 15, 7, 16, pieces)


MIDDLES = {
    "gelu": _gelu("gelu"),
    "gelu_tanh": _gelu("gelu_tanh"),
    # 16 segments of 4/3; within 6e-4 beyond and within 4e-4 in the middle
    "silu": Middle(-9.875, 9.9375, 12, 0, 24, Pieces("silu", -9.95, 4 / 3, 4, 5, -9.9375, 9.9375, 14, 12, _VALUE_RING)),
}


@dataclass(frozen=True)
class ActivationMask(Correlation):
    """A mask r of x modulo 2^out_bits, and one of the table's argument; the table; a truncation, also times two random
    bits; digit tables of r's upper bits, for two thresholds; both random bits in both forms; the second one times r."""

    shape: Shape
    kind: str
    out_bits: int

    @property
    def middle(self) -> Middle:
        return MIDDLES[self.kind]

    def tables(self) -> LessThan:
        return LessThan(self.shape, COMPARED_BITS - 1, 2)

    def truncation(self) -> Truncation:
        return Truncation(self.shape, _VALUE_RING, self.middle.pieces.scale_bits - FRACTION_BITS, self.out_bits)

    def fields(self) -> Sequence[Random | Corrected]:
        both = (*self.shape, 2)
        own = [Random(self.shape, self.out_bits), Random(self.shape, self.middle.bits), self.truncation().mask()]
        bits = [Corrected(both, 1, xor=True), Corrected(both, self.out_bits), Corrected(self.shape, self.out_bits)]
        return [
            *own, Random(both, 1, xor=True), *self.middle.pieces.fields(self.shape),
            *self.truncation().fields() * 3, *self.tables().fields(), *bits,
        ]  # fmt: skip

    def deal(self, randoms: Sequence[torch.Tensor], kept: object, dealer: Dealer) -> list[torch.Tensor]:
        r, argument, rho, d, *index_masks = randoms
        coarse = (r >> _DROPPED) & ((1 << COMPARED_BITS) - 1)
        top = (coarse >> (COMPARED_BITS - 1)) & 1
        truncated = self.truncation().deal(rho)
        return [
            *self.middle.pieces.deal(argument, self.middle.bits),
            *truncated,
            *(d[..., 0] * value for value in truncated),
            *(d[..., 1] * value for value in truncated),
            *self.tables().deal(coarse, index_masks),
            top[..., None].expand(d.shape),
            d,
            d[..., 1] * r,
        ]


async def activation(session: Session, x: torch.Tensor, kind: str, out_bits: int = PRODUCT_BITS) -> torch.Tensor:
    """Shares modulo 2^out_bits of SiLU ('silu') or GELU ('gelu', 'gelu_tanh'), scale 2^16; x at scale 2^16, |x| < 2^12.

    Rounds: 3. Online: 14 bytes and 2 bits an element and direction for GELU (a byte more for SiLU). Correction: the
    table, 224 bytes (GELU) or 384 (SiLU), and 88. Absolute error below 1e-3 everywhere.
    Opened: x, the table's argument and its value, each under a mask of its own, and what comparisons open.
    """
    correlation = ActivationMask(tuple(x.shape), kind, out_bits)
    middle, truncation = correlation.middle, correlation.truncation()
    r, argument_mask, rho, d_bits, *rest = session.take(correlation)
    material = iter(rest)
    first = session.constant(round(middle.pieces.first * middle.multiplier * 2 ** (FRACTION_BITS - middle.dropped)))
    argument = drop_low_bits(x * middle.multiplier, middle.dropped) - first
    c, opened_argument = await together(
        session.open(x + r, out_bits), session.open(argument + argument_mask, middle.bits)
    )
    value = middle.pieces.evaluate(opened_argument, middle.bits, material)
    count = len(truncation.fields())
    plain, times_low, times_high = ([next(material) for _ in range(count)] for _ in range(3))

    thresholds = [round(edge * 2**COMPARED_FRACTION) for edge in (middle.low, middle.high)]
    at = (c >> _DROPPED)[..., None] - torch.tensor(thresholds, device=session.device)
    (flips, d), opened = await together(
        sign(session, correlation.tables(), material, at, d_bits),
        session.open(value + rho + session.constant(truncation.offset), _VALUE_RING),
    )
    (from_low, from_high), (d_low, d_high) = (1 - flips).unbind(-1), d.unbind(-1)  # reached: from xor d
    inside = (from_low - from_high) * truncation.result(session, opened, plain)
    inside = inside + (1 - 2 * from_low) * truncation.product(opened, d_low, times_low)
    inside = inside - (1 - 2 * from_high) * truncation.product(opened, d_high, times_high)
    above = from_high * x + (1 - 2 * from_high) * (c * d_high - next(material))
    return inside + above
