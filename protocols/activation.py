"""SiLU and GELU, as f(x) = max(x, 0) - h(|x|), where h(y) = y sigma(-y) or y Phi(-y) vanishes beyond some L.

x is opened once under a mask. Digit tables of its upper bits tell whether x is below -L, 0 and L; the dealer knows the
random bits that these are opened under, so their products with x, and with them max(x, 0) and y = min(|x|, L), need no
message. y indexes a table of polynomials for h (polynomial.py), half as long as one for f would be and in a narrower
ring. The sign is found up to 1/8: either way f(x) = x - h(x) = -h(-x), if h is not cut at zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpcache.protocols.comparison import sign
from mpcache.protocols.correlation import Corrected, Dealer, Dealt, Fields, Placewise, Random, Tensors
from mpcache.protocols.lookup import LessThan
from mpcache.protocols.polynomial import Pieces, deal_tables, evaluate
from mpcache.protocols.ring import FRACTION_BITS, PRODUCT_BITS, shift_right
from mpcache.protocols.session import Session
from mpcache.protocols.truncation import Truncation, drop_low_bits

COMPARED_FRACTION = 3
COMPARED_BITS = 16
"""x is compared with 3 fractional bits on 16 bits, to thresholds of up to 10 in size."""
LARGEST = 2.0 ** (COMPARED_BITS - 1 - COMPARED_FRACTION) - 2**4
"""|x| stays below it."""
_DROPPED = FRACTION_BITS - COMPARED_FRACTION
_ARGUMENT_BITS = 16
_OUTER_BITS = 24
"""Ring of y, and of what is selected by the comparisons with -L and L: enough for the table's argument."""
_BELOW = 2.0**-COMPARED_FRACTION
"""y may lie so much below zero."""


@dataclass(frozen=True)
class Gate:
    """h by a table: its argument is y * multiplier / 2^dropped on 16 bits, so that its domain is what L needs and a
    segment more, as a segment is found up to one above."""

    limit: float
    multiplier: int
    dropped: int
    index_bits: int
    degree: int
    value_bits: int
    power_bits: int
    ring_bits: int

    def pieces(self, kind: str) -> Pieces:
        width = 2.0 ** (_ARGUMENT_BITS + self.dropped - FRACTION_BITS - self.index_bits) / self.multiplier
        middle = (f"{kind}_tail", -_BELOW, width, self.index_bits, self.degree, -_BELOW, self.limit + _BELOW)
        return Pieces(*middle, self.value_bits, self.power_bits, self.ring_bits)


_GELU = Gate(limit=3.75, multiplier=3, dropped=4, index_bits=2, degree=6, value_bits=13, power_bits=11, ring_bits=24)
GATES = {
    "gelu": _GELU,
    "gelu_tanh": _GELU,
    "silu": Gate(
        limit=9.875, multiplier=11, dropped=7, index_bits=3, degree=5, value_bits=16, power_bits=13, ring_bits=32
    ),
}


@dataclass(frozen=True)
class ActivationMask(Placewise):
    """A mask r of x, which may be truncated with its opening; one of the table's argument, and one of a truncation; the
    table; the truncation; digit tables of x's mask's upper bits, for the thresholds 0, -L and L; for each a random bit
    d in both forms, and d times x's mask.

    bits, shift: of what is opened: x, or x 2^shift, modulo 2^bits.
    """

    kind: str
    out_bits: int
    bits: int
    shift: int

    @property
    def gate(self) -> Gate:
        return GATES[self.kind]

    @property
    def pieces(self) -> Pieces:
        return self.gate.pieces(self.kind)

    def tables(self) -> LessThan:
        return LessThan(self.shape, COMPARED_BITS - 1, 3)

    def truncation(self) -> Truncation:
        return Truncation(self.shape, self.gate.ring_bits, self.pieces.scale_bits - FRACTION_BITS, self.out_bits)

    def argument(self, thresholds: int = 0, out_bits: int = 0) -> Truncation:
        """Of x, or of as many of it as there are thresholds."""
        shape = (*self.shape, thresholds) if thresholds else self.shape
        return Truncation(shape, self.bits, self.shift, out_bits or self.out_bits)

    def by_threshold(self) -> tuple[Truncation, Truncation]:
        """x's truncation for the thresholds 0, and -L and L, of which fewer bits are needed."""
        return self.argument(1), self.argument(2, _OUTER_BITS)

    def fields(self) -> Fields:
        many = (*self.shape, 3)
        zero, outer = Corrected((*self.shape, 1), self.out_bits), Corrected((*self.shape, 2), _OUTER_BITS)
        return {
            "r": self.argument().mask(),
            "argument_mask": Random(self.shape, _ARGUMENT_BITS),
            "rho": self.truncation().mask(),
            "d_xor": Random(many, 1, xor=True),
            "table": self.pieces.fields(self.shape),
            "truncated": self.truncation().fields(),
            "digits": self.tables().fields(),
            "top": Corrected(many, 1, xor=True),
            "d": [zero, outer],
            "d_x": [argument.fields() for argument in self.by_threshold()],
            **({"x": self.argument().fields()} if self.shift else {}),
        }

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        r, d = randoms.r, randoms.d_xor
        coarse = shift_right(r, self.shift + _DROPPED, self.bits) & ((1 << COMPARED_BITS) - 1)
        top = (coarse >> (COMPARED_BITS - 1)) & 1
        d_of = (d[..., :1], d[..., 1:])
        dealt: Dealt = {
            "table": deal_tables(self.pieces.coefficients(), randoms.argument_mask, _ARGUMENT_BITS),
            "truncated": self.truncation().deal(randoms.rho),
            "digits": self.tables().deal(coarse, randoms.part("digits")),
            "top": top[..., None].expand(d.shape),
            "d": list(d_of),
            "d_x": [
                {name: d_one * value for name, value in argument.deal(r[..., None]).items()}
                for d_one, argument in zip(d_of, self.by_threshold(), strict=True)
            ],
        }
        return {**dealt, "x": self.argument().deal(r)} if self.shift else dealt


async def activation(
    session: Session,
    x: torch.Tensor,
    kind: str,
    out_bits: int = PRODUCT_BITS,
    bits: int = PRODUCT_BITS,
    shift: int = 0,
) -> torch.Tensor:
    """Shares modulo 2^out_bits of SiLU ('silu') or GELU ('gelu', 'gelu_tanh') of x / 2^shift, scale 2^16.

    x: shares modulo 2^bits at scale 2^(16 + shift), |x / 2^shift| < LARGEST. Rounds: 5. Online: 14 bytes (GELU) or 15
    (SiLU) and 3 bits an element and direction. Correction: the table, 84 bytes or 192, and about 70; 10 more with a
    shift. Absolute error below 1e-3 everywhere.
    Opened: x, the table's argument and its value, each under a mask of its own, and what comparisons open.
    """
    correlation = ActivationMask(tuple(x.shape), kind, out_bits, bits, shift)
    gate, pieces, truncation = correlation.gate, correlation.pieces, correlation.truncation()
    argument = correlation.argument()
    shares = session.take(correlation)

    c = await session.open(x + shares.r + session.constant(argument.offset), bits)
    if shift:
        x = argument.result(session, c, shares.part("x"))
    limit = round(gate.limit * 2**COMPARED_FRACTION)
    at = (argument.known(c) >> _DROPPED)[..., None] - torch.tensor([0, -limit, limit], device=session.device)
    flips = await sign(session, correlation.tables(), shares, at)
    # x [x < t] for each threshold t, where [x < t] = flip xor d: modulo 2^out_bits for 0, 2^_OUTER_BITS for -L and L
    each = zip(correlation.by_threshold(), shares.each("d"), shares.parts("d_x"), strict=True)
    d_x = torch.cat([of.product(c[..., None], d_one, parts) for of, d_one, parts in each], -1)
    parts, d = flips * x[..., None] + (1 - 2 * flips) * d_x, torch.cat(shares.each("d"), -1)
    bits_below = session.constant(flips) + (1 - 2 * flips) * d
    negative, far_below, not_far_above = parts.unbind(-1)
    positive = x - negative
    # |x| = positive - negative; beyond the limit it is replaced by it
    outside = bits_below[..., 1] + session.constant(torch.ones_like(c)) - bits_below[..., 2]
    y = not_far_above - 2 * negative + far_below + outside * round(gate.limit * 2**FRACTION_BITS)

    unit = 1 << gate.dropped  # added, as dropping bits rounds down
    offset = session.constant(round(_BELOW * 2**FRACTION_BITS) * gate.multiplier + unit)
    masked = drop_low_bits(y * gate.multiplier + offset, gate.dropped, _OUTER_BITS) + shares.argument_mask
    found = evaluate(
        shares.each("table"), await session.open(masked, _ARGUMENT_BITS), _ARGUMENT_BITS, pieces.power_bits
    )
    value = await session.open(found + shares.rho + session.constant(truncation.offset), gate.ring_bits)
    return positive - truncation.result(session, value, shares.part("truncated"))
