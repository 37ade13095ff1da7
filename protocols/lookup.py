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

from dataclasses import dataclass
from functools import cache, cached_property

import torch

from mpcache.protocols.correlation import Corrected, Dealt, Fields, Random, Shape, Tensors
from mpcache.protocols.session import Opening, Session, together

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
    bits = _index_bits(size, with_equal)
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
    words = bits.reshape(len(bits), -1, 64)
    return (words << torch.arange(64)).sum(2)


def _index_bits(size: int, with_equal: bool) -> int:
    """Of a combining table: 'less' and 'equal' of each digit, but for the last one's 'equal' if it is not needed."""
    return 2 * size if with_equal else 2 * size - 1


@dataclass(frozen=True)
class _Compared:
    """Xor shares of what is known of a digit, or of a group of them. equal: None if nobody needs it."""

    less: torch.Tensor
    equal: torch.Tensor | None


@dataclass(frozen=True)
class LessThan:
    """The part of a correlation that tells [at < rho].

    shape: of rho. low_bits: of rho and at, 1 or more. many: how many `at` for each rho (their last dimension).
    flat: one combination whatever its tables cost, so one round. `fields` and `deal` are a part of a correlation's.
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

    def fields(self) -> Fields:
        many = (*self.shape, self.many)
        return {
            "less": [_words(self.shape, width) for width in self._widths],
            "equal": [_words(self.shape, width) for width in self._widths[:-1]],
            "combinations": [self._combining_fields(many, *combination) for combination in self._combinations()],
        }

    @staticmethod
    def _combining_fields(many: Shape, size: int, with_equal: bool) -> Fields:
        bits = _index_bits(size, with_equal)
        less: Fields = {"index_mask": Random(many, bits, xor=True), "less": _words(many, bits)}
        return {**less, "equal": _words(many, bits)} if with_equal else less

    def deal(self, rho: torch.Tensor, randoms: Tensors) -> Dealt:
        """rho: its low_bits count."""
        digits = list(zip(self._digits(rho), self._widths, strict=True))
        combinations = zip(self._combinations(), randoms.parts("combinations"), strict=True)
        return {
            "less": [_ones_below(digit, width) for digit, width in digits],
            "equal": [_one_at(digit, width) for digit, width in digits[:-1]],
            "combinations": [self._combining_tables(*c, masks.index_mask) for c, masks in combinations],
        }

    @staticmethod
    def _combining_tables(size: int, with_equal: bool, index_mask: torch.Tensor) -> Dealt:
        less, equal = _combination(size, with_equal)
        return {"less": less[index_mask], "equal": equal[index_mask]} if with_equal else {"less": less[index_mask]}

    def _digits(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The most significant first."""
        out, low = [], self.low_bits
        for width in self._widths:
            low -= width
            out.append((x >> low) & ((1 << width) - 1))
        return out

    async def evaluate(self, session: Session, shares: Tensors, at: torch.Tensor) -> torch.Tensor:
        """Xor shares of [at < rho]; at: (*shape, many), public, its low_bits count. Bits above the lowest are 0.

        Opened: the looked-up bits under random bits.
        """
        items = self._looked_up(shares, at)
        combinations = shares.parts("combinations")
        for level in self._levels:
            items = await self._combine(session, combinations[: len(level)], level, items)
            combinations = combinations[len(level) :]
        return items[0].less

    def _looked_up(self, shares: Tensors, at: torch.Tensor) -> list[_Compared]:
        """What is known of each digit of `at`, the most significant first. Local."""
        less, equal = shares.each("less"), shares.each("equal")
        items = []
        for i, (digit, width) in enumerate(zip(self._digits(at), self._widths, strict=True)):
            is_equal = _lookup(_for_many(equal[i], width), digit, width) if i < len(equal) else None
            items.append(_Compared(_lookup(_for_many(less[i], width), digit, width), is_equal))
        return items

    async def _combine(
        self, session: Session, combinations: list[Tensors], level: list[int], items: list[_Compared]
    ) -> list[_Compared]:
        groups, start = [], 0
        for size in level:
            groups.append(items[start : start + size])
            start += size
        opened = await together(
            *[self._open_index(session, c.index_mask, g) for c, g in zip(combinations, groups, strict=True)]
        )
        return [
            _combined(shares, index, len(group), group[-1].equal is not None)
            for shares, index, group in zip(combinations, opened, groups, strict=True)
        ]

    @staticmethod
    def _open_index(session: Session, mask: torch.Tensor, group: list[_Compared]) -> Opening:
        index = mask
        for i, item in enumerate(group):
            index = index ^ (item.less << (2 * i))
            if item.equal is not None:
                index = index ^ (item.equal << (2 * i + 1))
        return session.open(index, _index_bits(len(group), group[-1].equal is not None), xor=True)


def _combined(shares: Tensors, index: torch.Tensor, size: int, with_equal: bool) -> _Compared:
    bits = _index_bits(size, with_equal)
    return _Compared(_lookup(shares.less, index, bits), _lookup(shares.equal, index, bits) if with_equal else None)


def _for_many(table: torch.Tensor, width: int) -> torch.Tensor:
    """A table of one word, with a dimension for the `at` that are looked up in it."""
    return table if width > WORD_BITS else table[..., None]
