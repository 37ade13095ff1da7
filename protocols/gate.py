"""SiLU and GELU of a product that is not truncated yet, in three rounds with its truncation.

activation.py has the cheaper way, in five. Here one opening of the product, under r, serves three ends. It truncates:
x = C - R + u w 2^32 (truncation.py), C and R the upper 32 bits of what is opened and of r. So C = x + R modulo 2^32 is
x under a mask, too: its upper bits tell by digit tables whether x is below -L and L, and its lower ones index a table
of polynomials for f on [-L, L] (polynomial.py). The value's truncation is opened beside the tables' index. Then f(x) =
inside f + (1 - below L) x, where the products with bits need no message (truncation.py): inside is the xor of both
comparisons, and a random bit that it is opened under is dealt times the value's truncation, as another's times x's.

Nothing is opened under R or a part of it: C is a function of what is opened under r.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from mpcache.protocols.activation import COMPARED_BITS, COMPARED_FRACTION, ActivationMask
from mpcache.protocols.correlation import (
    Corrected,
    Dealer,
    Dealt,
    Fields,
    Placewise,
    Random,
    Shape,
    Tensors,
)
from mpcache.protocols.lookup import LessThan
from mpcache.protocols.polynomial import Pieces, deal_tables, evaluate
from mpcache.protocols.ring import FRACTION_BITS, PRODUCT_BITS, reduce_bits
from mpcache.protocols.session import Session, together
from mpcache.protocols.truncation import Truncation

_DROPPED = FRACTION_BITS - COMPARED_FRACTION
_BEYOND = 2.0**-COMPARED_FRACTION
"""x is compared with 3 fractional bits: what is found to be inside may lie so much beyond."""
ROUNDS = 3
ROUNDS_APART = 5
"""Of `activation`, with the truncation in it."""


@dataclass(frozen=True)
class Table:
    """f's polynomials: the table's argument is x * multiplier modulo 2^argument_bits, whose middle is x = 0."""

    limit: float
    multiplier: int
    argument_bits: int
    index_bits: int
    degree: int
    value_bits: int
    power_bits: int
    ring_bits: int

    def pieces(self, kind: str) -> Pieces:
        domain = 2.0 ** (self.argument_bits - FRACTION_BITS) / self.multiplier
        end = self.limit + _BEYOND
        middle = (kind, -domain / 2, domain / (1 << self.index_bits), self.index_bits, self.degree, -end, end)
        return Pieces(*middle, self.value_bits, self.power_bits, self.ring_bits)


_GELU = Table(
    limit=3.75,
    multiplier=3,
    argument_bits=21,
    index_bits=3,
    degree=6,
    value_bits=14,
    power_bits=13,
    ring_bits=32,
)
TABLES = {
    "gelu": _GELU,
    "gelu_tanh": _GELU,
    "silu": Table(
        limit=9.875,
        multiplier=11,
        argument_bits=24,
        index_bits=4,
        degree=5,
        value_bits=13,
        power_bits=13,
        ring_bits=32,
    ),
}


@dataclass(frozen=True)
class GateMask(Placewise):
    """What truncates x, from its mask r; the table; what truncates its value; digit tables of r's upper bits, for -L
    and L; and of each random bit d both forms and its product with a truncation.

    bits, shift: the ring of the product, and how much of it is dropped: 32 bits are left.
    """

    kind: str
    out_bits: int
    bits: int
    shift: int

    @property
    def table(self) -> Table:
        return TABLES[self.kind]

    @property
    def pieces(self) -> Pieces:
        return self.table.pieces(self.kind)

    def argument(self) -> Truncation:
        return Truncation(self.shape, self.bits, self.shift, self.out_bits)

    def value(self) -> Truncation:
        return Truncation(self.shape, self.table.ring_bits, self.pieces.scale_bits - FRACTION_BITS, self.out_bits)

    def compared(self) -> LessThan:
        return LessThan(self.shape, COMPARED_BITS - 1, 2, flat=True)

    def fields(self) -> Fields:
        argument, value = self.argument().fields(), self.value().fields()
        return {
            "r": self.argument().mask(),
            "rho": self.value().mask(),
            "d_xor": Random((*self.shape, 2), 1, xor=True),
            "argument": argument,
            "value": value,
            "table": self.pieces.fields(self.shape),
            "digits": self.compared().fields(),
            "top": Corrected(self.shape, 1, xor=True),
            "d": Corrected((*self.shape, 2), self.out_bits),
            "inside_value": value,
            "below_argument": argument,
        }

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        argument, value, d = self.argument().deal(randoms.r), self.value().deal(randoms.rho), randoms.d_xor
        high = reduce_bits(randoms.r, self.bits) >> self.shift
        coarse = (high >> _DROPPED) & ((1 << COMPARED_BITS) - 1)
        masked = high * self.table.multiplier
        return {
            "argument": argument,
            "value": value,
            "table": deal_tables(self.pieces.coefficients(), masked, self.table.argument_bits),
            "digits": self.compared().deal(coarse, randoms.part("digits")),
            "top": (coarse >> (COMPARED_BITS - 1)) & 1,
            "d": d,
            "inside_value": {name: d[..., 0] * x for name, x in value.items()},
            "below_argument": {name: d[..., 1] * x for name, x in argument.items()},
        }


async def gate(
    session: Session, z: torch.Tensor, kind: str, bits: int, shift: int, out_bits: int = PRODUCT_BITS
) -> torch.Tensor:
    """Shares modulo 2^out_bits of SiLU ('silu') or GELU ('gelu', 'gelu_tanh') of z / 2^shift, scale 2^16.

    z: shares modulo 2^bits at scale 2^(16 + shift), bits - shift = 32, |x| < `activation.LARGEST`. Rounds: 3. Online:
    11 bytes and 2 bits an element and direction, 13 from 64 bits. Correction: about 300 bytes (GELU) or 460. Absolute
    error below 1e-3 everywhere.
    Opened: z and the table's value, each under a mask of its own, and what comparisons open.
    """
    correlation = GateMask(tuple(z.shape), kind, out_bits, bits, shift)
    table, argument, value = correlation.table, correlation.argument(), correlation.value()
    shares = session.take(correlation)

    c = await session.open(z + shares.r + session.constant(argument.offset), bits)
    known = argument.known(c)  # x + r's upper bits, modulo 2^32
    at = known * table.multiplier + (1 << (table.argument_bits - 1))
    found = evaluate(shares.each("table"), at, table.argument_bits, correlation.pieces.power_bits)
    limit = round(table.limit * 2**COMPARED_FRACTION)
    from_limits = (known >> _DROPPED)[..., None] - torch.tensor([-limit, limit], device=session.device)
    bits_below, opened = await together(
        _below(session, correlation.compared(), shares, from_limits),
        session.open(found + shares.rho + session.constant(value.offset), table.ring_bits),
    )
    far_below, below = bits_below.unbind(-1)
    masked = torch.stack([far_below ^ below, below], -1) ^ shares.d_xor
    inside, small = (await session.open(masked & 1, 1, xor=True)).unbind(-1)

    def chosen(flip: torch.Tensor, whole: torch.Tensor, times_d: torch.Tensor) -> torch.Tensor:
        return flip * whole + (1 - 2 * flip) * times_d

    d_inside, d_below = shares.d.unbind(-1)
    f = chosen(
        inside,
        value.result(session, opened, shares.part("value")),
        value.product(opened, d_inside, shares.part("inside_value")),
    )
    x = argument.result(session, c, shares.part("argument"))
    x_below = chosen(small, x, argument.product(c, d_below, shares.part("below_argument")))
    return f + x - x_below


async def _below(session: Session, tables: LessThan, shares: Tensors, at: torch.Tensor) -> torch.Tensor:
    """Xor shares of whether x is below each limit. Rounds: 1."""
    low = tables.low_bits
    less = await tables.evaluate(session, shares.part("digits"), reduce_bits(at, low))
    return less ^ shares.top[..., None] ^ session.constant((at >> low) & 1)


def pays(shape: Shape, kind: str, bits: int, shift: int, round_bytes: int) -> bool:
    """Whether `gate` costs less than `activation`, where a round is worth so many bytes."""
    more = GateMask(shape, kind, PRODUCT_BITS, bits, shift).correction_bytes()
    more -= ActivationMask(shape, kind, PRODUCT_BITS, bits, shift).correction_bytes()
    return more - 4 * math.prod(shape) < (ROUNDS_APART - ROUNDS) * round_bytes  # the argument takes 2 bytes each way
