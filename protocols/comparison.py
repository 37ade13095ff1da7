"""Comparison on k effective bits by one-time digit tables.

The parties open z = x + r modulo 2^k, r uniform. With x = z - r, the sign bit of x is
    top(z) xor top(r) xor [z_low < r_low].
The last bit comes from digits of 6 bits: the dealer gives, for each digit of r, two one-time truth tables of 64 bits,
"digit less" and "digit equal", xor-shared in one word each (party 0's share is its own pseudorandom word). The parties
look up z's public digits, and combine up to three digits at a time: the looked-up bits are opened under random bits
and index one more 64-bit table. So every step is the same: six known bits choose a bit of a shared word (one-time truth
tables, Ishai et al., TCC 2013). 18 low bits take one combination, 54 take two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from protocols.correlation import Corrected, Correlation, Dealer, Random, Shape
from protocols.ring import reduce_bits, shift_right
from protocols.session import Session, together

DIGIT_BITS = 6
GROUP = 3
"""Digits, or groups of digits, that one table combines: (less, equal) of three is 6 bits."""


def _words(shape: Shape, index_bits: int) -> Corrected:
    return Corrected(shape, max(1 << index_bits, 8), xor=True)


def _digit_widths(low_bits: int) -> list[int]:
    """Widths of the digits of the low bits, the most significant first (it is the narrow one)."""
    full, rest = divmod(low_bits, DIGIT_BITS)
    return ([rest] if rest else []) + [DIGIT_BITS] * full


def _groups(count: int) -> list[list[int]]:
    """Sizes of the groups at each level of combination until one group is left."""
    levels: list[list[int]] = []
    while count > 1:
        full, rest = divmod(count, GROUP)
        levels.append(([rest] if rest else []) + [GROUP] * full)
        count = len(levels[-1])
    return levels


@cache
def _combination(size: int, with_equal: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """For each input mask m: the words whose bit u is 'less' and 'equal' of the digits u xor m.

    Input bit 2 i is 'less' and bit 2 i + 1 'equal' of digit i, the most significant first; the last digit's 'equal' is
    there only if `with_equal`.
    """
    bits = 2 * size if with_equal else 2 * size - 1
    inputs = torch.arange(1 << bits)
    less, equal = torch.zeros_like(inputs), torch.ones_like(inputs)
    for i in range(size):
        less |= equal & ((inputs >> (2 * i)) & 1)
        equal &= (inputs >> (2 * i + 1)) & 1 if 2 * i + 1 < bits else torch.zeros_like(inputs)
    masked = inputs[:, None] ^ inputs[None, :]  # rows: mask, columns: opened index
    return (less[masked] << inputs).sum(1), (equal[masked] << inputs).sum(1)


@dataclass(frozen=True)
class ComparisonMask(Correlation):
    """r modulo 2^bits, the digit tables of its low bits, and for each threshold the combining tables and a daBit.

    With `select`, also shares of r times the daBit (modulo 2^bits), for `select_negative`.
    """

    shape: Shape
    bits: int
    thresholds: int = 1
    select: bool = False

    def _combinations(self) -> list[tuple[int, bool]]:
        """(size, with_equal) of every combining table, level by level, most significant first."""
        return [
            (size, i < len(level) - 1)
            for level in _groups(len(_digit_widths(self.bits - 1)))
            for i, size in enumerate(level)
        ]

    def fields(self) -> Sequence[Random | Corrected]:
        many = (*self.shape, self.thresholds)
        widths = _digit_widths(self.bits - 1)
        out: list[Random | Corrected] = [Random(self.shape, self.bits), Random(many, 1, xor=True)]
        out += [_words(self.shape, w) for w in widths] + [_words(self.shape, w) for w in widths[:-1]]
        for size, with_equal in self._combinations():
            index_bits = 2 * size if with_equal else 2 * size - 1
            out += [Random(many, index_bits, xor=True), _words(many, index_bits)]
            out += [_words(many, index_bits)] if with_equal else []
        out += [Corrected(many, 1, xor=True), Corrected(many)]
        return [*out, Corrected(many, self.bits)] if self.select else out

    def deal(self, randoms: Sequence[torch.Tensor], kept: object, dealer: Dealer) -> list[torch.Tensor]:
        r, dabit, *index_masks = randoms
        less, equal, low = [], [], self.bits - 1
        for width in _digit_widths(self.bits - 1):
            low -= width
            digit = (r >> low) & ((1 << width) - 1)
            less.append((torch.ones_like(digit) << digit) - 1)
            equal.append(torch.ones_like(digit) << digit)
        values = less + equal[:-1]
        for (size, with_equal), index_mask in zip(self._combinations(), index_masks, strict=True):
            less_words, equal_words = _combination(size, with_equal)
            values.append(less_words[index_mask])
            values += [equal_words[index_mask]] if with_equal else []
        top = (r >> (self.bits - 1)) & 1
        values += [top[..., None].expand(dabit.shape), dabit]
        return [*values, r[..., None] * dabit] if self.select else values


def _look_up(words: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return (words >> index) & 1


async def _sign_bits(
    session: Session, x: torch.Tensor, bits: int, thresholds: Sequence[int], select: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(arithmetic shares of [x < threshold], opened z, r's share, shares of r times that bit)."""
    correlation = ComparisonMask(tuple(x.shape), bits, len(thresholds), select)
    material = iter(session.take(correlation))
    r, dabit = next(material), next(material)
    widths = _digit_widths(bits - 1)
    less = [next(material)[..., None] for _ in widths]
    equal = [next(material)[..., None] for _ in widths[:-1]]

    z = await session.open(x + r, bits)
    offsets = torch.tensor(list(thresholds), device=session.device)
    at = reduce_bits(z[..., None] - offsets, bits)
    items: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    low = bits - 1
    for i, width in enumerate(widths):
        low -= width
        digit = (at >> low) & ((1 << width) - 1)
        items.append((_look_up(less[i], digit), _look_up(equal[i], digit) if i < len(equal) else None))

    for level in _groups(len(items)):
        pending, tables, start = [], [], 0
        for size in level:
            group, start = items[start : start + size], start + size
            index = next(material)
            for i, (l, e) in enumerate(group):
                index = index ^ (l << (2 * i)) ^ (e << (2 * i + 1) if e is not None else 0)
            with_equal = group[-1][1] is not None
            tables.append([next(material) for _ in range(2 if with_equal else 1)])
            pending.append(session.open(index, 2 * size if with_equal else 2 * size - 1, xor=True))
        items = []
        for table, index in zip(tables, await together(*pending), strict=True):
            items.append((_look_up(table[0], index), _look_up(table[1], index) if len(table) == 2 else None))

    top, dabit_arithmetic = next(material), next(material)
    sign = items[0][0] ^ top ^ session.constant(shift_right(at, bits - 1, bits))
    flipped = await session.open((sign ^ dabit) & 1, 1, xor=True)
    bit = session.constant(flipped) + (1 - 2 * flipped) * dabit_arithmetic
    selected = None
    if select:
        r_dabit = next(material)
        selected = flipped * r[..., None] + (1 - 2 * flipped) * r_dabit
    return bit, z, r, selected


async def less_than(session: Session, x: torch.Tensor, bits: int, thresholds: Sequence[int] = (0,)) -> torch.Tensor:
    """Shares in Z_2^64 of the bits [x < t] for public thresholds t: shape (*x.shape, len(thresholds)).

    x: shares modulo 2^bits with |x - t| < 2^(bits-1). Rounds: 3 up to 19 bits, 4 up to 55. Online: ceil(bits/8) + 2
    bytes an element and direction for one threshold at 19 bits. Correction there: 54 bytes. Exact.
    Opened: x + r, and table indices and the result's bit, each under fresh uniform bits.
    """
    bit, *_ = await _sign_bits(session, x, bits, thresholds, select=False)
    return bit


async def is_negative(session: Session, x: torch.Tensor, bits: int) -> torch.Tensor:
    """Shares in Z_2^64 of [x < 0], in x's shape; see `less_than`."""
    return (await less_than(session, x, bits))[..., 0]


async def negative_part(session: Session, x: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """([x < 0], min(x, 0) modulo 2^bits): the product with the bit costs no round, as r times the bit is dealt.

    Costs as `less_than`, and ceil(bits/8) bytes of correction more.
    """
    bit, z, _, r_bit = await _sign_bits(session, x, bits, (0,), select=True)
    assert r_bit is not None
    return bit[..., 0], z * bit[..., 0] - r_bit[..., 0]


async def maximum(session: Session, x: torch.Tensor, bits: int) -> torch.Tensor:
    """Shares modulo 2^bits of the maximum over the last dimension (of size 1 in the result), by a binary tree.

    Differences must be below 2^(bits-1). Rounds: 3 a level up to 19 bits. Exact.
    """
    while (n := x.shape[-1]) > 1:
        left, right = x[..., 0 : n - n % 2 : 2], x[..., 1::2]
        _, loss = await negative_part(session, left - right, bits)
        rest = x[..., n - n % 2 :]
        x = torch.cat([left - loss, rest], -1)  # left - min(left - right, 0) = max(left, right)
    return x
