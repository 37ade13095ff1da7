"""Softmax in two halves: exponentials with their sum, and the division, which attention does after weighing the values.

exp(x - m) needs m near the maximum. m is the maximum of the scores with 1 fractional bit, within 1/2 of the true one,
so the largest exponent lies in [-1/2, 1/2] and the sum in [0.6, 1.65 n]: no later step can overflow or vanish, whatever
the scores are. Differences far below become exactly 0: how far depends on the public number of scores, as what many of
them weigh together must stay below the error bound.

One opening of d = x - m serves three ends. Its low 20 or 21 bits (a domain of 16 or 32) index a table of exp(u - R),
which times the public exp(C) is exp(d). Its upper bits tell by digit tables whether d is in the domain at all: a bit.
And the product of that bit with the truncated exp(d) needs no message of its own, see truncation.py.

Many small exponentials add up, so none may be off to one side: truncation rounds up as often as a value's fraction
says, and the dealer rounds the table's entries likewise, by randomness of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from mpcache.protocols.beaver import multiply
from mpcache.protocols.comparison import sign
from mpcache.protocols.correlation import Corrected, Correlation, Dealer, Dealt, Fields, Random, Shape, Tensors
from mpcache.protocols.lookup import LessThan
from mpcache.protocols.maximum import maximum
from mpcache.protocols.public import correctly_rounded
from mpcache.protocols.randomness import Stream
from mpcache.protocols.reciprocal import RECIPROCAL_BITS, reciprocal_untruncated
from mpcache.protocols.ring import FRACTION_BITS, RING_BITS, shift_right
from mpcache.protocols.session import Session, together
from mpcache.protocols.truncation import Truncation, drop_low_bits, truncate

COARSE_BITS = 1
COARSE_WIDTH = 16
"""For the maximum, scores are compared with 1 fractional bit on 16 bits: differences up to 2^14 in size."""
MASKED = -(1 << 13)
"""What a publicly masked score counts as in the maximum."""
DIFFERENCE_BITS = COARSE_WIDTH + FRACTION_BITS - COARSE_BITS
"""Ring of d, as the maximum is known modulo 2^COARSE_WIDTH: 2^14 in size at scale 2^16."""
NARROW = 384
"""Up to so many scores the table has 8 segments, above 16: exp(-13.1) times 384 is 8e-4."""
WIDTH_BITS = FRACTION_BITS + 1
"""Segments of 2."""
EXP_BITS = 32
EXP_VALUE_BITS = 18
EXP_POWER_BITS = 11
_COARSE_DROPPED = FRACTION_BITS - COARSE_BITS
_LOWEST_DROPPED = FRACTION_BITS - 2
"""d is compared to the lowest with 2 fractional bits."""


@dataclass(frozen=True)
class Domain:
    """Of d, [first, first + 2^(index_bits + 1)) in segments of 2; `lowest`: d below it counts as minus infinity.

    The last segment is not used, as a segment is found up to one above: so the highest d is 0.6.
    """

    index_bits: int

    @property
    def segments(self) -> int:
        return 1 << self.index_bits

    @property
    def first(self) -> float:
        return 2.6 - 2 * self.segments

    @property
    def lowest(self) -> float:
        """The comparison may still keep d down to 1/4 below."""
        return max(self.first + 0.3, -18.0)


def domain(scores: int) -> Domain:
    """For rows of so many scores: those below the lowest weigh 1e-3 of the largest at most, all together."""
    return Domain(3 if scores <= NARROW else 4)


@dataclass(frozen=True)
class ExponentialMask(Correlation):
    """For exponentials in rows of `scores`: r modulo 2^31; the table over c_hi of exp(2 u - 2 R) at scale 2^18, modulo
    2^32; a truncation modulo 2^out_bits, also times a random bit d; digit tables of r's upper bits; d in both forms."""

    shape: Shape
    out_bits: int
    scores: int

    def tables(self) -> LessThan:
        return LessThan(self.shape, DIFFERENCE_BITS - _LOWEST_DROPPED - 1)

    def truncation(self) -> Truncation:
        return Truncation(self.shape, EXP_BITS, EXP_VALUE_BITS + EXP_POWER_BITS - FRACTION_BITS, self.out_bits)

    def fields(self) -> Fields:
        many = (*self.shape, 1)
        return {
            "r": Random(self.shape, DIFFERENCE_BITS),
            "rho": self.truncation().mask(),
            "d_xor": Random(many, 1, xor=True),
            "table": Corrected((*self.shape, domain(self.scores).segments), EXP_BITS),
            "truncated": self.truncation().fields(),
            "d_truncated": self.truncation().fields(),
            "digits": self.tables().fields(),
            "top": Corrected(many, 1, xor=True),
            "d": Corrected(many, self.out_bits),
        }

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        r, d = randoms.r, randoms.d_xor
        coarse = shift_right(r, _LOWEST_DROPPED, DIFFERENCE_BITS)
        top = (coarse >> self.tables().low_bits) & 1
        truncated = self.truncation().deal(randoms.rho)
        return {
            "table": _exponential_table(r, domain(self.scores), dealer.own_stream()),
            "truncated": truncated,
            "d_truncated": {name: d[..., 0] * value for name, value in truncated.items()},
            "digits": self.tables().deal(coarse, randoms.part("digits")),
            "top": top[..., None],
            "d": d,
        }


def _exponential_table(r: torch.Tensor, within: Domain, own: Stream) -> torch.Tensor:
    """By the dealer alone: nobody else has to find the same."""
    at_segment = torch.from_numpy(np.exp(within.first + 2.0 * np.arange(within.segments)) * 2.0**EXP_VALUE_BITS)
    rest = torch.exp((r & ((1 << WIDTH_BITS) - 1)).double() * (-(2.0**-FRACTION_BITS)))
    r_hi = shift_right(r, WIDTH_BITS, WIDTH_BITS + within.index_bits)
    u = (torch.arange(within.segments) - r_hi[..., None]) % within.segments
    rounding = (own.elements(tuple(r.shape), 16) & 0xFFFF).double() * 2.0**-16
    return (at_segment[u] * rest[..., None] + rounding[..., None]).floor().to(torch.int64)


@cache
def exponential_powers() -> torch.Tensor:
    """exp(C) at scale 2^11 for every C in [0, 2) at scale 2^16, int16. Both parties multiply shares by it."""
    at = np.arange(1 << WIDTH_BITS) * 2.0**-FRACTION_BITS
    return torch.from_numpy(correctly_rounded("exp", at, EXP_POWER_BITS)).to(torch.int16)


async def exponentials(
    session: Session, x: torch.Tensor, visible: torch.Tensor | None = None, out_bits: int = RING_BITS
) -> tuple[torch.Tensor, torch.Tensor]:
    """(e, sum of e over the last dimension, kept as size 1): e = exp(x - m), shares modulo 2^out_bits at scale 2^16.

    x: (..., n) scores at scale 2^16, |x| <= 2^13. visible: public bool, of x's last two dimensions; False gives
    exactly 0, and costs the maximum alone. Rounds: the maximum's, and 3. Correction: 91 bytes a score at 56 bits,
    32 more in rows of more than 384, and the maximum's. Error of e: 2^-11 relative, and a unit. Absolute error of
    e / sum: 5e-4, what is below the domain (at most 1e-3, if all of it lies just there), and the rounding of n small
    terms, which has no bias: sqrt(n) / 2 units, 3.5e-4 at 2,048.
    Opened: d and the exponential, each once under masks of their own, and what a comparison opens.
    """
    if visible is not None:
        mask = visible.to(session.device)
        x = torch.where(mask, x, session.constant(torch.full_like(x, MASKED << FRACTION_BITS)))
    # dropped share by share, a score comes out as its floor or one unit below: so one is added to their maximum
    m = await maximum(session, drop_low_bits(x, _COARSE_DROPPED), COARSE_WIDTH) + session.constant(1)
    d = x - (m << _COARSE_DROPPED)
    if visible is None:
        e = await _exponentials(session, d, x.shape[-1], out_bits)
    else:  # only those that are seen
        places = visible.flatten().nonzero()[:, 0].to(session.device)
        seen = await _exponentials(session, d.flatten(-2).index_select(-1, places), x.shape[-1], out_bits)
        e = torch.zeros_like(d.flatten(-2)).index_copy(-1, places, seen).reshape(d.shape)
    return e, e.sum(-1, keepdim=True)


async def _exponentials(session: Session, d: torch.Tensor, scores: int, out_bits: int) -> torch.Tensor:
    """exp(d), and 0 for d below the lowest. Rounds: 3."""
    correlation, within = ExponentialMask(tuple(d.shape), out_bits, scores), domain(scores)
    truncation, tables = correlation.truncation(), correlation.tables()
    shares = session.take(correlation)

    c = await session.open(d + shares.r - session.constant(round(within.first * 2**FRACTION_BITS)), DIFFERENCE_BITS)
    power = session.public(exponential_powers(), 0).take(c & ((1 << WIDTH_BITS) - 1)).to(torch.int64)
    index = shift_right(c, WIDTH_BITS, WIDTH_BITS + within.index_bits)[..., None]
    e = shares.table.gather(-1, index)[..., 0] * power
    lowest = round((within.lowest - within.first) * 2**FRACTION_BITS)
    from_lowest = shift_right(c - lowest, _LOWEST_DROPPED, DIFFERENCE_BITS)
    flip, opened = await together(
        sign(session, tables, shares, from_lowest[..., None]),
        session.open(e + shares.rho + session.constant(truncation.offset), EXP_BITS),
    )
    kept: torch.Tensor = 1 - flip[..., 0]  # not below: kept xor d
    value = truncation.result(session, opened, shares.part("truncated"))
    d_value = truncation.product(opened, shares.d[..., 0], shares.part("d_truncated"))
    return kept * value + (1 - 2 * kept) * d_value


async def inverse_of_sum(session: Session, total: torch.Tensor, n: int) -> torch.Tensor:
    """1 / total at scale 2^RECIPROCAL_BITS for a sum of n exponentials, which lies in [0.5, 2 n). Rounds: 3."""
    high = FRACTION_BITS + 2 + max(n - 1, 1).bit_length()
    return await reciprocal_untruncated(session, total, FRACTION_BITS - 1, high)


async def divide(session: Session, x: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """x * inverse (scale 2^RECIPROCAL_BITS), truncated to scale 2^16. |x * inverse| < 2^10. Rounds: 2."""
    z = await multiply(session, x, inverse, RING_BITS)
    return await truncate(session, z, RECIPROCAL_BITS, RING_BITS)


async def softmax(session: Session, x: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
    """Shares of softmax over the last dimension, scale 2^16. Absolute error below 1e-3 up to 2,048 scores of any usual
    spread; rounding noise of many equally small scores adds up to 3.5e-4 (one standard deviation) there, twice that at
    8,192."""
    e, total = await exponentials(session, x, visible)
    return await divide(session, e, await inverse_of_sum(session, total, x.shape[-1]))
