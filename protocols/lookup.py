"""[at < rho] for a public `at` and a rho that only the dealer knows, by lookup in one-time tables of digits.

The low bits are cut into up to four digits. For each digit of rho the dealer gives two truth tables, "digit less" and
"digit equal", xor-shared in words of up to 64 bits (party 0's share is its own pseudorandom word). The parties look up
the public digits of `at`, open the looked-up bits under random bits, and that index looks up one more table, which
combines them (one-time truth tables, Ishai et al., TCC 2013). Where four digits would be too wide, groups of three are
combined first. The same tables serve several `at`; only the combination is per `at`, under masks of its own.

A party never sees a table: it has one of two shares, each uniform without the other, and reads it where everybody may
know. What it reads is a share again. So no number of places that are looked up in one table tells anything; what may
be used once alone is an index mask, as its opened index says which entry of the combining table counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch

from mpcache.protocols.correlation import Corrected, Random, Shape
from mpcache.protocols.session import Session, together

WORD_BITS = 6
"""log2 of the bits of a word: the widest digit whose table is one word."""
FLAT = 4
"""Digits, (less, equal) of each, that one combining table takes: 7 bits, sent as one byte."""
GROUP = 3
"""Digits of a group that is combined with others: 6 bits, and its 'equal' is needed too."""


def _table_bytes(index_bits: int) -> int:
    return max(1, (1 << index_bits) // 8)


def _even_widths(low_bits: int, digits: int) -> list[int]:
    """The most significant first; wider ones last, as the last one needs no 'equal'."""
    narrow, wider = divmod(low_bits, digits)
    return [narrow] * (digits - wider) + [narrow + 1] * wider


@cache
def digit_widths(low_bits: int, flat: bool) -> tuple[int, ...]:
    """The cheapest widths: up to four digits where these fit words, or if `flat`, whatever it costs."""

    def cost(widths: list[int]) -> int:
        combination = 0 if len(widths) == 1 else _table_bytes(2 * len(widths) - 1)
        return sum(map(_table_bytes, widths)) + sum(map(_table_bytes, widths[:-1])) + combination

    choices = [_even_widths(low_bits, digits) for digits in range(1, min(FLAT, low_bits) + 1)]
    fitting = [widths for widths in choices if flat or widths[-1] <= WORD_BITS]
    cheapest: list[int] = min(fitting, key=cost, default=_even_widths(low_bits, -(-low_bits // WORD_BITS)))
    return tuple(cheapest)


def _groups(count: int) -> list[list[int]]:
    """Sizes of the groups at each level of combination until one group is left."""
    levels: list[list[int]] = []
    while count > 1:
        if count <= FLAT:
            return [*levels, [count]]
        full, rest = divmod(count, GROUP)
        levels.append(([rest] if rest else []) + [GROUP] * full)
        count = len(levels[-1])
    return levels


def _words(shape: Shape, index_bits: int) -> Corrected:
    """A table of 2^index_bits bits: one word, or several along a last dimension."""
    if index_bits <= WORD_BITS:
        return Corrected(shape, max(1 << index_bits, 8), xor=True)
    return Corrected((*shape, 1 << (index_bits - WORD_BITS)), 64, xor=True)


def _lookup(words: torch.Tensor, index: torch.Tensor, index_bits: int) -> torch.Tensor:
    """The bit at `index` of each table; tables have a dimension for the `at` where they are one word."""
    if index_bits > WORD_BITS:
        words = words.gather(-1, (index >> WORD_BITS).reshape(*words.shape[:-1], -1)).reshape(index.shape)
        index = index & 63
    return (words >> index) & 1


def _ones_below(digit: torch.Tensor, width: int) -> torch.Tensor:
    """Tables with a one at every index below the digit."""
    if width <= WORD_BITS:
        return (torch.ones_like(digit) << digit) - 1
    count = (digit[..., None] - 64 * torch.arange(1 << (width - WORD_BITS))).clamp(0, 64)
    return torch.where(count == 64, -1, (torch.ones_like(count) << count.clamp(max=63)) - 1)


def _one_at(digit: torch.Tensor, width: int) -> torch.Tensor:
    """Tables with a one at the digit."""
    if width <= WORD_BITS:
        return torch.ones_like(digit) << digit
    at = torch.arange(1 << (width - WORD_BITS)) == (digit >> WORD_BITS)[..., None]
    return at * (torch.ones_like(digit) << (digit & 63))[..., None]


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
    return _packed(less[masked]), _packed(equal[masked])


def _packed(bits: torch.Tensor) -> torch.Tensor:
    """Rows of bits as words, (rows,) or (rows, words)."""
    if bits.shape[1] <= 64:
        return (bits << torch.arange(bits.shape[1])).sum(1)
    return (bits.unflatten(1, (-1, 64)) << torch.arange(64)).sum(2)


@dataclass(frozen=True)
class LessThan:
    """The part of a correlation that tells [at < rho].

    shape: of rho. low_bits: of rho and at, 1 or more. many: how many `at` for each rho (their last dimension).
    flat: one combination whatever its tables cost, so one round. A correlation has its own random fields first, then
    these `fields`, and passes what is left of its randoms to `deal`.
    """

    shape: Shape
    low_bits: int
    many: int = 1
    flat: bool = False

    @cached_property
    def _widths(self) -> tuple[int, ...]:
        return digit_widths(self.low_bits, self.flat)

    @cached_property
    def _levels(self) -> list[list[int]]:
        return _groups(len(self._widths))

    @property
    def rounds(self) -> int:
        """Rounds of `evaluate`."""
        return len(self._levels)

    def _combinations(self) -> list[tuple[int, bool]]:
        """(size, with_equal) of every combining table, level by level, most significant first."""
        return [(size, i < len(level) - 1) for level in self._levels for i, size in enumerate(level)]

    def fields(self) -> list[Random | Corrected]:
        many = (*self.shape, self.many)
        out: list[Random | Corrected] = [_words(self.shape, w) for w in (*self._widths, *self._widths[:-1])]
        for size, with_equal in self._combinations():
            index_bits = 2 * size if with_equal else 2 * size - 1
            out += [Random(many, index_bits, xor=True), _words(many, index_bits)]
            out += [_words(many, index_bits)] if with_equal else []
        return out

    def deal(self, rho: torch.Tensor, index_masks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """rho: its low_bits count."""
        less, equal, low = [], [], self.low_bits
        for width in self._widths:
            low -= width
            digit = (rho >> low) & ((1 << width) - 1)
            less.append(_ones_below(digit, width))
            equal.append(_one_at(digit, width))
        values = less + equal[:-1]
        for (size, with_equal), index_mask in zip(self._combinations(), index_masks, strict=True):
            less_words, equal_words = _combination(size, with_equal)
            values.append(less_words[index_mask])
            values += [equal_words[index_mask]] if with_equal else []
        return values

    async def evaluate(self, session: Session, material: Iterator[torch.Tensor], at: torch.Tensor) -> torch.Tensor:
        """Xor shares of [at < rho]; at: (*shape, many), public, its low_bits count. Bits above the lowest are 0.

        Opened: the looked-up bits under random bits.
        """
        tables = [next(material) for _ in range(2 * len(self._widths) - 1)]
        widths = self._widths + self._widths[:-1]
        tables = [t if w > WORD_BITS else t[..., None] for t, w in zip(tables, widths, strict=True)]
        less, equal = tables[: len(self._widths)], tables[len(self._widths) :]
        items: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        low = self.low_bits
        for i, width in enumerate(self._widths):
            low -= width
            digit = (at >> low) & ((1 << width) - 1)
            is_equal = _lookup(equal[i], digit, width) if i < len(equal) else None
            items.append((_lookup(less[i], digit, width), is_equal))
        for level in self._levels:
            items = await self._combine(session, material, level, items)
        return items[0][0]

    async def _combine(
        self,
        session: Session,
        material: Iterator[torch.Tensor],
        level: list[int],
        items: list[tuple[torch.Tensor, torch.Tensor | None]],
    ) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        pending, tables, start = [], [], 0
        for size in level:
            group, start = items[start : start + size], start + size
            index = next(material)
            for i, (l, e) in enumerate(group):
                index = index ^ (l << (2 * i)) ^ (e << (2 * i + 1) if e is not None else 0)
            bits = 2 * size if group[-1][1] is not None else 2 * size - 1
            tables.append(([next(material) for _ in range(bits - 2 * size + 2)], bits))
            pending.append(session.open(index, bits, xor=True))
        opened = await together(*pending)
        return [
            (_lookup(words[0], index, bits), _lookup(words[1], index, bits) if len(words) == 2 else None)
            for (words, bits), index in zip(tables, opened, strict=True)
        ]
