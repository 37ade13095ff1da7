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
from mpcache.protocols.causal import Causal
from mpcache.protocols.comparison import sign
from mpcache.protocols.correlation import DEALER, Corrected, Dealer, Dealt, Fields, Placewise, Random, Shape, Tensors
from mpcache.protocols.lookup import LessThan
from mpcache.protocols.maximum import maximum
from mpcache.protocols.public import correctly_rounded
from mpcache.protocols.reciprocal import RECIPROCAL_BITS, reciprocal_untruncated
from mpcache.protocols.ring import FRACTION_BITS, RING_BITS, reduce_bits, shift_right
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
GROUP = 64
"""Queries of a long block that are one group: each has the scores that its last query sees."""
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
class ExponentialMask(Placewise):
    """For exponentials in `within`'s domain: r modulo 2^31; the table over c_hi of exp(2 u - 2 R) at scale 2^18, modulo
    2^32; a truncation modulo 2^out_bits, also times a random bit d; digit tables of r's upper bits; d in both forms."""

    out_bits: int
    within: Domain

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
            "rounding": Random(self.shape, 16, holder=DEALER),
            "table": Corrected((*self.shape, self.within.segments), EXP_BITS),
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
            "table": _exponential_table(r, self.within, randoms.rounding),
            "truncated": truncated,
            "d_truncated": {name: d[..., 0] * value for name, value in truncated.items()},
            "digits": self.tables().deal(coarse, randoms.part("digits")),
            "top": top[..., None],
            "d": d,
        }


def _exponential_table(r: torch.Tensor, within: Domain, rounding: torch.Tensor) -> torch.Tensor:
    """By the dealer alone: nobody else has to find the same."""
    at_segment = torch.from_numpy(np.exp(within.first + 2.0 * np.arange(within.segments)) * 2.0**EXP_VALUE_BITS)
    rest = torch.exp((r & ((1 << WIDTH_BITS) - 1)).double() * (-(2.0**-FRACTION_BITS)))
    r_hi = shift_right(r, WIDTH_BITS, WIDTH_BITS + within.index_bits)
    at = torch.arange(within.segments)
    rotated = at_segment[(at - at[:, None]) % within.segments]  # row r_hi: what each c_hi indexes
    table = rotated[r_hi].mul_(rest[..., None]).add_((rounding.double() * 2.0**-16)[..., None])
    return table.floor_().to(torch.int64)


@cache
def exponential_powers() -> torch.Tensor:
    """exp(C) at scale 2^11 for every C in [0, 2) at scale 2^16, int16. Both parties multiply shares by it."""
    at = np.arange(1 << WIDTH_BITS) * 2.0**-FRACTION_BITS
    return torch.from_numpy(correctly_rounded("exp", at, EXP_POWER_BITS)).to(torch.int16)


async def exponentials(
    session: Session,
    x: torch.Tensor,
    visible: torch.Tensor | Causal | None = None,
    out_bits: int = RING_BITS,
    beside: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(e, sum of e over the last dimension, kept as size 1): e = exp(x - m), shares modulo 2^out_bits at scale 2^16.

    x: (..., n) scores at scale 2^16, |x| <= 2^13. visible: public bool, of x's last two dimensions; False gives
    exactly 0, and costs the maximum alone; of a long block, what a whole group of queries does not see costs nothing.
    beside: how many of about this size share the rounds. Rounds: the maximum's, and 3. Correction: 91 bytes a score at
    56 bits, 32 more in rows of more than 384, and the maximum's. Error of e: 2^-11 relative, and a unit. Absolute error
    of e / sum: 5e-4, what is below the domain (at most 1e-3, if all of it lies just there), and the rounding of n small
    terms, which has no bias: sqrt(n) / 2 units, 3.5e-4 at 2,048.
    Opened: d and the exponential, each once under masks of their own, and what a comparison opens.
    """
    if isinstance(visible, Causal) and visible.tokens > GROUP:
        e = await _in_groups(session, x, visible, out_bits)
        return e, e.sum(-1, keepdim=True)
    if visible is not None:
        mask, places = session.seen(visible)
        x = torch.where(mask, x, session.constant(torch.full_like(x, MASKED << FRACTION_BITS)))
    # dropped share by share, a score comes out as its floor or one unit below: so one is added to their maximum
    m = await maximum(session, drop_low_bits(x, _COARSE_DROPPED), COARSE_WIDTH, beside) + session.constant(1)
    d = x - (m << _COARSE_DROPPED)
    if visible is None:
        e = await _exponentials(session, d, x.shape[-1], out_bits, beside)
    else:  # only those that are seen
        d_seen = d.flatten(-2).index_select(-1, places)
        seen = await _exponentials(session, d_seen, x.shape[-1], out_bits, beside)
        e = torch.zeros_like(d.flatten(-2)).index_copy(-1, places, seen).reshape(d.shape)
    return e, e.sum(-1, keepdim=True)


async def _in_groups(session: Session, x: torch.Tensor, visible: Causal, out_bits: int) -> torch.Tensor:
    """`exponentials` of a long block, in groups of queries, each as a block of its own: all in the same rounds, and at
    the bytes of short blocks."""
    ends = [*range(GROUP, visible.tokens, GROUP), visible.tokens]
    rows, total = x.unflatten(-2, (visible.repeat, visible.tokens)), x.shape[-1]

    async def group(start: int, end: int) -> torch.Tensor:
        seen = Causal(end - start, visible.past + start, visible.repeat)
        scores = rows[..., start:end, : visible.past + end].flatten(-3, -2)
        e, _ = await exponentials(session, scores, seen, out_bits, len(ends))
        e = e.unflatten(-2, (visible.repeat, end - start))
        return torch.cat([e, e.new_zeros((*e.shape[:-1], total - e.shape[-1]))], -1)

    groups = [group(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    return torch.cat(await together(*groups), -2).flatten(-3, -2)


async def _exponentials(session: Session, d: torch.Tensor, scores: int, out_bits: int, beside: int = 1) -> torch.Tensor:
    """exp(d), and 0 for d below the lowest. beside: as above. Rounds: 3, or 2 where that costs less."""
    shape, within = tuple(d.shape), domain(scores)
    if scores <= MOST_AT_ONCE and beside * _at_once_more(shape, out_bits, within) < session.round_bytes:
        return await session.placewise(_exponentials_at_once, d[..., None], out_bits)
    return await session.placewise(_exponentials_of, d[..., None], within, out_bits)


async def _exponentials_of(session: Session, column: torch.Tensor, within: Domain, out_bits: int) -> torch.Tensor:
    d = column[..., 0]
    correlation = ExponentialMask(tuple(d.shape), out_bits, within)
    truncation, tables = correlation.truncation(), correlation.tables()
    shares = session.take(correlation)

    c, e = await _looked_up(session, d, shares, within)
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


async def _looked_up(
    session: Session, d: torch.Tensor, shares: Tensors, within: Domain
) -> tuple[torch.Tensor, torch.Tensor]:
    """(d opened under its mask, shares of exp(d) at scale 2^29 modulo 2^32). Rounds: 1."""
    c = await session.open(d + shares.r - session.constant(round(within.first * 2**FRACTION_BITS)), DIFFERENCE_BITS)
    power = session.public(exponential_powers(), 0).take(c & ((1 << WIDTH_BITS) - 1)).to(torch.int64)
    index = shift_right(c, WIDTH_BITS, WIDTH_BITS + within.index_bits)[..., None]
    return c, shares.table.gather(-1, index)[..., 0] * power


# ---------------------------------------------------------------- a round less


MOST_AT_ONCE = 1 << 13
"""Scores of a row: what is dropped by chance weighs 3.6e-8 a score at most, on average."""
_AT_ONCE = Domain(4)
_HALF_BITS = WIDTH_BITS + _AT_ONCE.index_bits - 1
"""Of half the domain, 16."""
_HALVES_BITS = DIFFERENCE_BITS - _HALF_BITS
_DIGIT_BITS = (_HALVES_BITS - 1) // 2


@dataclass(frozen=True)
class AtOnceMask(Placewise):
    """For exponentials in two rounds: r modulo 2^31 and the table, as in `ExponentialMask`; digits' tables that tell
    whether d is in the upper half of the domain; tables of that bit, alone and times a truncation.

    With c = D + r, and c_H and r_H what is left of them without a half's bits, D is in the upper half where c_H - r_H
    is 1 or 2.
    Of two neighbours the upper bits are the same, of themselves or with 1 added. The dealer knows which; it fills the
    digit tables of that alignment, and leaves the other's zero. Then two bits, one a digit, tell: they are opened under
    random bits, and index a table of four. In the lower half 1 is found as often as d is near the upper, or 0: a
    value there counts, or not, by chance. Below the domain it is neither.
    """

    out_bits: int

    def truncation(self, places: int = 0) -> Truncation:
        shape = (*self.shape, places) if places else self.shape
        return Truncation(shape, EXP_BITS, EXP_VALUE_BITS + EXP_POWER_BITS - FRACTION_BITS, self.out_bits)

    def fields(self) -> Fields:
        return {
            "r": Random(self.shape, DIFFERENCE_BITS),
            "rho": self.truncation().mask(),
            "index_mask": Random(self.shape, 2, xor=True),
            "rounding": Random(self.shape, 16, holder=DEALER),
            "table": Corrected((*self.shape, _AT_ONCE.segments), EXP_BITS),
            "near": [Corrected(self.shape, 1 << _DIGIT_BITS, xor=True)] * 4,
            "kept": Corrected((*self.shape, 4), self.out_bits),
            "kept_truncated": self.truncation(4).fields(),
        }

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        r, mask = randoms.r, randoms.index_mask
        kept = (mask[..., None] ^ torch.arange(4)) == 3
        truncated = self.truncation().deal(randoms.rho)
        return {
            "table": _exponential_table(r, _AT_ONCE, randoms.rounding),
            "near": _near(shift_right(r, _HALF_BITS, DIFFERENCE_BITS)),
            "kept": kept.long(),
            "kept_truncated": {name: kept * value[..., None] for name, value in truncated.items()},
        }


def _alignments(halves: torch.Tensor) -> list[torch.Tensor]:
    """The digits, high and low, of a number of halves without its last bit, and of the number above it."""
    digits = []
    for number in (halves, halves + 1):
        pairs = shift_right(number, 1, _HALVES_BITS)
        digits += [pairs >> _DIGIT_BITS, pairs & ((1 << _DIGIT_BITS) - 1)]
    return digits


def _near(r: torch.Tensor) -> list[torch.Tensor]:
    """Words with a one at the digits of r + 1 and r + 2, in the alignment in which these are the same."""
    first_digits = _alignments(r + 1)
    aligned = 1 - (reduce_bits(r + 1, _HALVES_BITS) & 1)  # r + 1 is even: the same without the last bit
    used = [aligned, aligned, 1 - aligned, 1 - aligned]
    return [use << digit for use, digit in zip(used, first_digits, strict=True)]


async def _exponentials_at_once(session: Session, column: torch.Tensor, out_bits: int) -> torch.Tensor:
    """exp(d), and 0 below the domain; what is below its upper half, at -13.4, is 0 by chance. Rounds: 2.

    Opened: d, the exponential and two bits, each once under masks of their own.
    """
    d = column[..., 0]
    correlation = AtOnceMask(tuple(d.shape), out_bits)
    truncation, shares = correlation.truncation(), session.take(correlation)
    c, e = await _looked_up(session, d, shares, _AT_ONCE)
    digits = _alignments(shift_right(c, _HALF_BITS, DIFFERENCE_BITS))
    high, low, high_above, low_above = (
        (words >> digit) & 1 for words, digit in zip(shares.each("near"), digits, strict=True)
    )
    index, opened = await together(
        session.open((high ^ high_above) ^ ((low ^ low_above) << 1) ^ shares.index_mask, 2, xor=True),
        session.open(e + shares.rho + session.constant(truncation.offset), EXP_BITS),
    )

    def found(table: torch.Tensor) -> torch.Tensor:
        return table.gather(-1, index[..., None])[..., 0]

    parts = shares.part("kept_truncated")
    names = correlation.truncation(4).fields()
    return truncation.product(opened, found(shares.kept), Tensors({n: found(getattr(parts, n)) for n in names}))


def _at_once_more(shape: Shape, out_bits: int, within: Domain) -> int:
    """Correction bytes."""
    return AtOnceMask(shape, out_bits).correction_bytes() - ExponentialMask(shape, out_bits, within).correction_bytes()


async def inverse_of_sum(session: Session, total: torch.Tensor, n: int) -> torch.Tensor:
    """1 / total at scale 2^RECIPROCAL_BITS for a sum of n exponentials, which lies in [0.5, 2 n). Rounds: 3."""
    high = FRACTION_BITS + 2 + max(n - 1, 1).bit_length()
    return await reciprocal_untruncated(session, total, FRACTION_BITS - 1, high)


async def divide(session: Session, x: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """x * inverse (scale 2^RECIPROCAL_BITS), truncated to scale 2^16. |x * inverse| < 2^10. Rounds: 2."""
    z = await multiply(session, x, inverse, RING_BITS)
    return await truncate(session, z, RECIPROCAL_BITS, RING_BITS)


async def softmax(session: Session, x: torch.Tensor, visible: torch.Tensor | Causal | None = None) -> torch.Tensor:
    """Shares of softmax over the last dimension, scale 2^16. Absolute error below 1e-3 up to 2,048 scores of any usual
    spread; rounding noise of many equally small scores adds up to 3.5e-4 (one standard deviation) there, twice that at
    8,192."""
    e, total = await exponentials(session, x, visible)
    return await divide(session, e, await inverse_of_sum(session, total, x.shape[-1]))
