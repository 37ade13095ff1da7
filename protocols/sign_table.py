"""A comparison whose last table has ring elements: [x < t] times values that the dealer knows, one round less.

Digits are looked up as in lookup.py, and opened as one masked index. The combining table's entries are not bits but
shares of bit * v, modulo v's own ring, for each value v that the dealer knows: the one, a mask. So nothing is left to
be opened for the bit to become arithmetic, or to be multiplied by what is opened under such a mask. That takes 2^index
elements where `comparison.sign` takes bits: meant for few comparisons, or where rounds are dear.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import torch

from mpcache.protocols.correlation import Corrected, Dealt, Fields, Random, Tensors
from mpcache.protocols.lookup import FLAT, LessThan, _combination, _even_widths, _index_bits
from mpcache.protocols.ring import packed_bytes, reduce_bits
from mpcache.protocols.session import Opening, Session


@cache
def _less_table(size: int) -> torch.Tensor:
    """(masks, indices): 'less' of the digits that the index xor the mask stands for."""
    packed, _ = _combination(size, with_equal=False)
    words = packed.reshape(len(packed), -1)
    return ((words[..., None] >> torch.arange(64)) & 1).flatten(1)[:, : len(packed)]


@cache
def cheapest_digits(low_bits: int, value_bytes: int) -> int:
    """How many digits cost fewest bytes, with so many bytes an entry of the last table."""

    def cost(digits: int) -> int:
        widths = _even_widths(low_bits, digits)
        tables = sum(max(1, (1 << w) // 8) for w in (*widths, *widths[:-1]))
        return tables + value_bytes * (1 << _index_bits(digits, False))

    return min(range(1, min(FLAT, low_bits) + 1), key=cost)


@dataclass(frozen=True)
class SignTable(LessThan):
    """The part of a correlation that tells [x < 0] * v for x opened under rho, modulo 2^(low_bits + 1).

    values: the rings of the values v; of each there is one for each of the `many` thresholds.
    """

    values: tuple[int, ...] = ()

    @cached_property
    def _widths(self) -> tuple[int, ...]:
        entry = self.many * sum(packed_bytes(1, bits) for bits in self.values)
        return tuple(_even_widths(self.low_bits, cheapest_digits(self.low_bits, entry)))

    @cached_property
    def _levels(self) -> list[list[int]]:
        return [[len(self._widths)]]

    def fields(self) -> Fields:
        bits, digits = _index_bits(len(self._widths), False), super().fields()
        return {
            "index_mask": Random((*self.shape, self.many), bits, xor=True),
            "less": digits["less"],
            "equal": digits["equal"],
            "values": [Corrected((*self.shape, self.many, 1 << bits), width) for width in self.values],
        }

    def deal_values(self, rho: torch.Tensor, randoms: Tensors, values: list[torch.Tensor]) -> Dealt:
        """rho: low_bits + 1 bits of it count. values: (*shape, many), in the order of their rings."""
        top = (rho >> self.low_bits) & 1
        bit = _less_table(len(self._widths))[randoms.index_mask] ^ top[..., None, None]
        digits = super().deal(rho, Tensors({"combinations": [{"index_mask": randoms.index_mask}]}))
        return {
            "less": digits["less"],
            "equal": digits["equal"],
            "values": [bit * value[..., None] for value in values],
        }

    def open_index(self, session: Session, shares: Tensors, at: torch.Tensor) -> Opening:
        """Opened: the looked-up bits under random bits. at: x + rho less each threshold, public, (*shape, many)."""
        items = self._looked_up(shares, reduce_bits(at, self.low_bits))
        return self._open_index(session, shares.index_mask, items)

    def times(
        self, shares: Tensors, index: torch.Tensor, at: torch.Tensor, number: int, own: torch.Tensor
    ) -> torch.Tensor:
        """Shares of [x < threshold] * v for the value of that number, (*shape, many); own: shares of v. Local."""
        found = shares.each("values")[number].gather(-1, index[..., None])[..., 0]
        top = (at >> self.low_bits) & 1
        return top * own + (1 - 2 * top) * found
