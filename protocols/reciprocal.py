"""Reciprocal and reciprocal square root over a wide range: a table of polynomials for each factor of four, or sixteen.

X is opened once under a mask. For each range [L, 4 L), L = 4^j 2^low, its low bits index that range's table of
polynomials (polynomial.py), as if X were there; digit tables tell for each L whether X reaches it: a bit t_j. The
result is v_0 + sum_j t_j (v_j - v_{j-1}); as the dealer knows the random bit that t_j is opened under, the products
need no round of their own. So all of it takes three rounds, whatever the range. Where a round is dear, t_j and its
product with what v_j - v_{j-1} is opened under come from a table at once (sign_table.py), and two rounds do. Tables are
large (640 bytes a range), and meant for what there is one of in each row: a sum, a mean square.

Outside [2^low, 2^high) the result saturates: below, it is that of some value up to 2^(low + 2); X stays below 2^high.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from mpcache.protocols.comparison import sign
from mpcache.protocols.correlation import Corrected, Dealer, Dealt, Fields, Placewise, Random, Tensors
from mpcache.protocols.lookup import LessThan
from mpcache.protocols.polynomial import Pieces, deal_tables, evaluate
from mpcache.protocols.ring import FRACTION_BITS, RING_BITS
from mpcache.protocols.session import Session, together
from mpcache.protocols.sign_table import SignTable
from mpcache.protocols.truncation import truncate

RECIPROCAL_BITS = 36
RSQRT_BITS = 38
"""Fractional bits of the untruncated results."""
_SCALES = {"reciprocal": RECIPROCAL_BITS, "rsqrt": RSQRT_BITS}
_POWER_BITS = 12
_DEGREE = 4


@dataclass(frozen=True)
class RangedTable(Placewise):
    """r modulo 2^(high + 1); each range's table; for each range after the first a mask a, and what tells whether X is
    in it or beyond: digit tables of r, a random bit d in both forms and d a; or with `direct` tables of that bit and
    its product with a.

    X is an integer at scale 2^in_bits; the function's value comes times `factor`. step: log2 of a range's factor.
    """

    function: str
    low: int
    high: int
    in_bits: int
    factor: float
    step: int = 2
    direct: bool = False

    @property
    def bits(self) -> int:
        return self.high + 1

    @property
    def end_bits(self) -> range:
        """log2 of each range's end."""
        return range(self.low + self.step, self.high + self.step, self.step)

    @property
    def index_bits(self) -> int:
        """Of a range's segments: a quarter of its begin each."""
        return self.step + 2

    def thresholds(self) -> list[int]:
        """Where each range but the first begins."""
        return [1 << (end - self.step) for end in self.end_bits[1:]]

    def tables(self) -> LessThan:
        return LessThan(self.shape, self.bits - 1, len(self.end_bits) - 1, flat=True)

    def sign_table(self) -> SignTable:
        return SignTable(self.shape, self.bits - 1, len(self.end_bits) - 1, values=(RING_BITS, RING_BITS))

    def pieces(self, end_bits: int) -> Pieces:
        """The range and what is below it in segments, of which the first begins at the width of one."""
        end, value_bits = 2.0 ** (end_bits - self.in_bits), _SCALES[self.function] - _POWER_BITS
        first = width = end / (1 << self.index_bits)
        middle = (self.function, first, width, self.index_bits, _DEGREE, end / (1 << self.step), end)
        return Pieces(*middle, value_bits, _POWER_BITS, RING_BITS, self.factor)

    def coefficients(self, end_bits: int) -> torch.Tensor:
        """Of the range's segments; those below it have its first value."""
        out = self.pieces(end_bits).coefficients().clone()
        begin = (1 << (self.index_bits - self.step)) - 1
        out[:begin, 0], out[:begin, 1:] = out[begin, 0], 0
        return out

    def fields(self) -> Fields:
        ranges, many = (*self.shape, len(self.end_bits)), (*self.shape, len(self.end_bits) - 1)
        fields: Fields = {
            "r": Random(self.shape, self.bits),
            "a": Random(many),
            **({} if self.direct else {"d_xor": Random(many, 1, xor=True)}),
            "table": self.pieces(self.high).fields(ranges),
        }
        if self.direct:
            return {**fields, "reached": self.sign_table().fields()}
        return {
            **fields,
            "d_a": Corrected(many),
            "digits": self.tables().fields(),
            "top": Corrected(many, 1, xor=True),
            "d": Corrected(many),
        }

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        r = randoms.r
        coefficients = torch.stack([self.coefficients(end) for end in self.end_bits])
        ranges = r[..., None].expand(*self.shape, len(self.end_bits))
        table = {"table": deal_tables(coefficients, ranges, torch.tensor(self.end_bits))}
        if self.direct:
            values = [torch.ones_like(randoms.a), randoms.a]
            return {**table, "reached": self.sign_table().deal_values(r, randoms.part("reached"), values)}
        d, top = randoms.d_xor, (r >> (self.bits - 1)) & 1
        return {
            **table,
            "d_a": d * randoms.a,
            "digits": self.tables().deal(r, randoms.part("digits")),
            "top": top[..., None].expand(d.shape),
            "d": d,
        }


def cheapest(table: RangedTable, round_bytes: int) -> RangedTable:
    """The one of its kinds that costs least, where a round is worth so many bytes."""
    kinds = [table, *(replace(table, step=step, direct=True) for step in (2, 4))]
    return min(kinds, key=lambda kind: kind.correction_bytes() + round_bytes * (2 if kind.direct else 3))


async def _inverse(session: Session, x: torch.Tensor, table: RangedTable) -> torch.Tensor:
    """Shares of the function at its scale. Rounds: 3, or 2 where that costs less.

    Opened: X, the differences of the ranges' values, and what a comparison opens, each under fresh masks.
    """
    correlation = cheapest(table, session.round_bytes)
    shares = session.take(correlation)
    end_bits = torch.tensor(correlation.end_bits, device=session.device)
    c = (await session.open(x + shares.r, correlation.bits))[..., None]
    from_first = c - (1 << (end_bits - correlation.index_bits))
    values = evaluate(shares.each("table"), from_first, end_bits, _POWER_BITS)  # (..., ranges)
    steps = values[..., 1:] - values[..., :-1]
    at = c - torch.tensor(correlation.thresholds(), device=session.device)
    selected = _from_tables if correlation.direct else _from_bits
    result: torch.Tensor = values[..., 0] + (await selected(session, correlation, shares, steps, at)).sum(-1)
    return result


async def _from_bits(
    session: Session, correlation: RangedTable, shares: Tensors, steps: torch.Tensor, at: torch.Tensor
) -> torch.Tensor:
    """Shares of the steps to the ranges that X reaches, 0 for the others. Rounds: 2."""
    flip, opened = await together(
        sign(session, correlation.tables(), shares, at), session.open(steps + shares.a, RING_BITS)
    )
    reached: torch.Tensor = 1 - flip  # not below the threshold: reached xor d
    products: torch.Tensor = reached * steps + (1 - 2 * reached) * (opened * shares.d - shares.d_a)
    return products


async def _from_tables(
    session: Session, correlation: RangedTable, shares: Tensors, steps: torch.Tensor, at: torch.Tensor
) -> torch.Tensor:
    """The same in 1 round."""
    table, parts = correlation.sign_table(), shares.part("reached")
    index, opened = await together(table.open_index(session, parts, at), session.open(steps + shares.a, RING_BITS))
    below = table.times(parts, index, at, 0, session.constant(torch.ones_like(at)))
    below_a = table.times(parts, index, at, 1, shares.a)
    reached: torch.Tensor = steps - (opened * below - below_a)
    return reached


async def reciprocal_untruncated(
    session: Session, x: torch.Tensor, low: int, high: int, in_bits: int = FRACTION_BITS
) -> torch.Tensor:
    """Shares of 1/x at scale 2^RECIPROCAL_BITS, for the integer X = x 2^in_bits in [2^low, 2^high), low >= 2.

    Rounds: 3, or 2 where rounds are dear. Correction: about 700 bytes for each factor of four, or three times that.
    Error: 1e-4 of the result and 2^-22.
    """
    return await _inverse(session, x, RangedTable(tuple(x.shape), "reciprocal", low, high, in_bits, 1.0))


async def rsqrt_untruncated(
    session: Session, x: torch.Tensor, low: int, high: int, in_bits: int = FRACTION_BITS, factor: float = 1.0
) -> torch.Tensor:
    """Shares of factor / sqrt(x) at scale 2^RSQRT_BITS; range and cost as in `reciprocal_untruncated`. Error: 4e-5 of
    the result and 2^-24."""
    return await _inverse(session, x, RangedTable(tuple(x.shape), "rsqrt", low, high, in_bits, factor))


async def reciprocal(session: Session, x: torch.Tensor, low: int = 2, high: int = 46) -> torch.Tensor:
    """Shares of 1/x at scale 2^16 for x at scale 2^16 from 6e-5 to 2^30. Rounds: 4. Relative error below 1e-4, or 2
    units of the result if larger."""
    value = await reciprocal_untruncated(session, x, low, high)
    return await truncate(session, value, RECIPROCAL_BITS - FRACTION_BITS, RING_BITS)


async def rsqrt(session: Session, x: torch.Tensor, low: int = 2, high: int = 46) -> torch.Tensor:
    """Shares of 1/sqrt(x) at scale 2^16; as `reciprocal`. Relative error below 5e-5, or 2 units."""
    value = await rsqrt_untruncated(session, x, low, high)
    return await truncate(session, value, RSQRT_BITS - FRACTION_BITS, RING_BITS)
