"""Ranks and top-k, with ties broken by position (the earlier one wins); maximum.py has the largest alone.

Within a block every score is opened once under its own mask, and every pair is compared through the difference of its
two masks: no score is opened twice. The rank is then a local sum, and opened under a mask it rotates a shared one-hot:
the rows of a shared permutation matrix. The cost is quadratic in the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from mpcache.protocols.comparison import from_flip, less_than, sign
from mpcache.protocols.correlation import Corrected, Dealer, Dealt, Fields, Placewise, Random, Shape, Tensors
from mpcache.protocols.lookup import LessThan
from mpcache.protocols.ring import RING_BITS
from mpcache.protocols.session import Session, together
from mpcache.protocols.stripes import Stripes


@dataclass(frozen=True)
class OneHotMask(Placewise):
    """A uniform position modulo `size` (a power of two) and shares of its one-hot vector."""

    size: int
    bits: int

    def fields(self) -> Fields:
        position = Random(self.shape, self.size.bit_length() - 1)
        return {"position": position, "one_hot": Corrected((*self.shape, self.size), self.bits)}

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        return {"one_hot": one_hot_of(randoms.position, self.size)}


def one_hot_of(position: torch.Tensor, size: int) -> torch.Tensor:
    return (torch.arange(size) == position[..., None]).to(torch.int64)


def padded_size(size: int) -> int:
    return max(2, 1 << (size - 1).bit_length())


async def one_hot(session: Session, index: torch.Tensor, size: int, bits: int = RING_BITS) -> torch.Tensor:
    """Shares modulo 2^bits of the one-hot vectors (..., size) of shared indices in [0, size); others give any place, or
    none.

    index: shares modulo the padded size (the next power of two) at least. Rounds: 1. Online: 1 byte an index and
    direction up to size 256. Correction: padded size * ceil(bits/8) bytes.
    Opened: the index under a mask that is uniform modulo the padded size.
    """
    padded = padded_size(size)
    shares = session.take(OneHotMask(tuple(index.shape), padded, bits))
    opened = await session.open(index - shares.position, padded.bit_length() - 1)
    # one-hot of index at k = one-hot of position at k - (index - position)
    at = (torch.arange(size, device=session.device) - opened[..., None]) % padded
    return shares.one_hot.gather(-1, at)


# ---------------------------------------------------------------- ranks from one opening of the scores


@dataclass(frozen=True)
class RankMask(Placewise):
    """A mask for each score (modulo 2^bits), digit tables for each pair's difference of masks, random bits in both
    forms for each pair (in the ring modulo 2^rank_bits). shape: (..., n)."""

    bits: int
    rank_bits: int

    def tables(self) -> LessThan:
        return LessThan(pairs_shape(self.shape), self.bits - 1)

    def fields(self) -> Fields:
        pairs = (*pairs_shape(self.shape), 1)
        return {
            "r": Random(self.shape, self.bits),
            "d_xor": Random(pairs, 1, xor=True),
            "digits": self.tables().fields(),
            "top": Corrected(pairs, 1, xor=True),
            "d": Corrected(pairs, self.rank_bits),
        }

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        rho = differences(randoms.r)
        top = (rho >> (self.bits - 1)) & 1
        return {
            "digits": self.tables().deal(rho, randoms.part("digits")),
            "top": top[..., None],
            "d": randoms.d_xor,
        }


def pairs_shape(shape: Shape) -> Shape:
    """All pairs of the last dimension."""
    return (*shape[:-1], shape[-1] * (shape[-1] - 1) // 2)


def pair_indices(n: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """All pairs i < j of n; while planning, shapes alone."""
    if device.type == "meta":
        index = torch.empty(n * (n - 1) // 2, dtype=torch.int64, device=device)
        return index, index
    return _pairs_of(n)


@lru_cache(maxsize=4)  # few: they take 8 n^2 bytes
def _pairs_of(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = torch.triu_indices(n, n, 1)
    return first, second


def differences(x: torch.Tensor) -> torch.Tensor:
    """x_i - x_j of all pairs i < j in the last dimension."""
    first, second = pair_indices(x.shape[-1], x.device)
    return x[..., first] - x[..., second]


async def ranks_of(session: Session, tables: LessThan, shares: Tensors, z: torch.Tensor) -> torch.Tensor:
    """Ranks modulo 2^rank_bits from scores opened under their masks. Rounds: 2."""
    flip = await sign(session, tables, shares, differences(z)[..., None])
    return ranks_from(session, from_flip(session, flip, shares.d)[..., 0], z)


def ranks_from(session: Session, loses: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Ranks from shares of the bits: of each pair, the first loses as it is smaller. Local."""
    wins = session.constant(torch.ones_like(loses)) - loses
    first, second = pair_indices(z.shape[-1], z.device)
    return torch.zeros_like(z).index_add(-1, first, loses).index_add(-1, second, wins)


async def ranks(session: Session, scores: torch.Tensor, bits: int, rank_bits: int = RING_BITS) -> torch.Tensor:
    """Shares modulo 2^rank_bits of each score's rank in its row (last dimension): 0 for the largest, ties by position.

    scores: shares modulo 2^bits, differences below 2^(bits-1). Rounds: 3. Online: ceil(bits/8) bytes a score and
    direction, and 1 byte and 1 bit a pair. Correction: 44 bytes a pair at 19 bits, and ceil(rank_bits/8).
    Opened: each score once, under a mask of its own; table indices and bits under random bits.
    """
    if scores.shape[-1] == 1:
        return torch.zeros_like(scores)
    correlation = RankMask(tuple(scores.shape), bits, rank_bits)
    shares = session.take(correlation)
    z = await session.open(scores + shares.r, bits)
    return await ranks_of(session, correlation.tables(), shares, z)


async def top_k(session: Session, scores: torch.Tensor, k: int, bits: int, out_bits: int = RING_BITS) -> torch.Tensor:
    """Shares modulo 2^out_bits of the selection (..., k, n): row j is the one-hot of the j-th largest score, ties by
    position.

    Out of bounds ranks may repeat: a row may then be empty, or hold several ones. Rounds: those of `ranks` and 1.
    Nothing is revealed: ranks are opened under masks only.
    """
    n = scores.shape[-1]
    rank = await ranks(session, scores, bits, padded_size(n).bit_length() - 1)
    rows = await one_hot(session, rank, n, out_bits)
    return rows.transpose(-1, -2)[..., :k, :]


async def striped_top_k(
    session: Session, scores: torch.Tensor, stripes: Stripes, bits: int, out_bits: int = RING_BITS
) -> list[torch.Tensor | None]:
    """The selections in stripes of scores (..., n): for each group of stripes `top_k`'s rows, shares modulo 2^out_bits,
    (..., stripes, picks, size). None where all of a stripe are picked.

    Rounds: those of `top_k`, whatever n is, and 3 where of two one is picked. Comparisons: n (size - 1) / 2.
    Nothing is revealed, see `top_k`; what is picked in each stripe is a public number.
    """
    parts = zip(stripes.groups, stripes.split(scores[..., None]), strict=True)
    chosen = iter(
        await together(*[_chosen(session, p[..., 0], g.picks, bits, out_bits) for g, p in parts if not g.whole])
    )
    return [None if group.whole else next(chosen) for group in stripes.groups]


async def _chosen(session: Session, scores: torch.Tensor, k: int, bits: int, out_bits: int) -> torch.Tensor:
    if (scores.shape[-1], k) != (2, 1):
        return await top_k(session, scores, k, bits, out_bits)
    difference = scores[..., :1] - scores[..., 1:]
    second = (await less_than(session, difference, bits, out_bits=out_bits))[..., 0]
    return torch.cat([session.constant(torch.ones_like(second)) - second, second], -1)[..., None, :]
