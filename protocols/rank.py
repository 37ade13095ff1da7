"""Ranks, top-k, maximum and arg max, with ties broken by position (the earlier one wins).

Within a block every score is opened once under its own mask, and every pair is compared through the difference of its
two masks: no score is opened twice. The rank is then a local sum, and opened under a mask it rotates a shared one-hot:
the rows of a shared permutation matrix. The largest score is the one of rank 0; as the dealer knows the masks, it comes
with the one-hot, without a product. The cost is quadratic in the block, so a long row becomes a tree of blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import torch

from mpcache.protocols.comparison import ComparisonMask, from_flip, negative_part, sign
from mpcache.protocols.correlation import Corrected, Dealer, Dealt, Fields, Placewise, Random, Shape, Tensors
from mpcache.protocols.lookup import LessThan
from mpcache.protocols.ring import RING_BITS, packed_bytes, reduce_bits
from mpcache.protocols.session import Session, together

BLOCKS = (2, 4, 8, 16)
"""Sizes that a tree's blocks may have; the last level takes what is left, up to the largest."""


@dataclass(frozen=True)
class OneHotMask(Placewise):
    """A uniform position modulo `size` (a power of two) and shares of its one-hot vector."""

    size: int
    bits: int

    def fields(self) -> Fields:
        position = Random(self.shape, self.size.bit_length() - 1)
        return {"position": position, "one_hot": Corrected((*self.shape, self.size), self.bits)}

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        return {"one_hot": _one_hot_of(randoms.position, self.size)}


def _one_hot_of(position: torch.Tensor, size: int) -> torch.Tensor:
    return (torch.arange(size) == position[..., None]).to(torch.int64)


def _padded(size: int) -> int:
    return max(2, 1 << (size - 1).bit_length())


async def one_hot(session: Session, index: torch.Tensor, size: int, bits: int = RING_BITS) -> torch.Tensor:
    """Shares modulo 2^bits of the one-hot vectors (..., size) of shared indices in [0, size); others give any place, or
    none.

    index: shares modulo the padded size (the next power of two) at least. Rounds: 1. Online: 1 byte an index and
    direction up to size 256. Correction: padded size * ceil(bits/8) bytes.
    Opened: the index under a mask that is uniform modulo the padded size.
    """
    padded = _padded(size)
    shares = session.take(OneHotMask(tuple(index.shape), padded, bits))
    opened = await session.open(index - shares.position, padded.bit_length() - 1)
    # one-hot of index at k = one-hot of position at k - (index - position)
    at = (torch.arange(size, device=session.device) - opened[..., None]) % padded
    return shares.one_hot.gather(-1, at)


# ---------------------------------------------------------------- ranks from one opening of the scores


@dataclass(frozen=True)
class RankMask(Placewise):
    """A mask for each score (modulo 2^bits), digit tables for each pair's difference of masks, random bits in both
    forms for each pair (in the ring modulo 2^rank_bits).

    With `maximum_bits`, also what `_block_maximum` needs: a one-hot of a uniform position, in the ring modulo
    2^maximum_bits, and its products with the masks.

    shape: (..., n). payload_bits: of a shared payload that goes along with each score, 0 for none.
    """

    bits: int
    rank_bits: int
    maximum_bits: int = 0
    payload_bits: int = 0

    @property
    def pairs(self) -> Shape:
        return (*self.shape[:-1], self.shape[-1] * (self.shape[-1] - 1) // 2)

    def tables(self) -> LessThan:
        return LessThan(self.pairs, self.bits - 1)

    def fields(self) -> Fields:
        pairs, table, payload_bits = (*self.pairs, 1), (*self.shape, 1 << self.rank_bits), self.payload_bits
        of_maximum = {"one_hot": Corrected(table, self.maximum_bits), "one_hot_r": Corrected(table, self.bits)}
        return {
            "r": Random(self.shape, self.bits),
            "d_xor": Random(pairs, 1, xor=True),
            **({"position": Random(self.shape, self.rank_bits)} if self.maximum_bits else {}),
            **({"payload_mask": Random(self.shape, payload_bits)} if payload_bits else {}),
            "digits": self.tables().fields(),
            "top": Corrected(pairs, 1, xor=True),
            "d": Corrected(pairs, self.rank_bits),
            **(of_maximum if self.maximum_bits else {}),
            **({"one_hot_payload_mask": Corrected(table, payload_bits)} if payload_bits else {}),
        }

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        rho = _differences(randoms.r)
        top = (rho >> (self.bits - 1)) & 1
        of_pairs: Dealt = {
            "digits": self.tables().deal(rho, randoms.part("digits")),
            "top": top[..., None],
            "d": randoms.d_xor,
        }
        if not self.maximum_bits:
            return of_pairs
        one_hot = _one_hot_of(randoms.position, 1 << self.rank_bits)
        of_maximum = {"one_hot": one_hot, "one_hot_r": one_hot * randoms.r[..., None]}
        if self.payload_bits:
            of_maximum["one_hot_payload_mask"] = one_hot * randoms.payload_mask[..., None]
        return {**of_pairs, **of_maximum}


def _pair_indices(n: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """All pairs i < j of n; while planning, shapes alone."""
    if device.type == "meta":
        index = torch.empty(n * (n - 1) // 2, dtype=torch.int64, device=device)
        return index, index
    return _pairs_of(n)


@lru_cache(maxsize=4)  # few: they take 8 n^2 bytes
def _pairs_of(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = torch.triu_indices(n, n, 1)
    return first, second


def _differences(x: torch.Tensor) -> torch.Tensor:
    """x_i - x_j of all pairs i < j in the last dimension."""
    first, second = _pair_indices(x.shape[-1], x.device)
    return x[..., first] - x[..., second]


async def _ranks(session: Session, tables: LessThan, shares: Tensors, z: torch.Tensor) -> torch.Tensor:
    """Ranks modulo 2^rank_bits from scores opened under their masks."""
    flip = await sign(session, tables, shares, _differences(z)[..., None])
    loses = from_flip(session, flip, shares.d)[..., 0]
    wins = session.constant(torch.ones_like(loses)) - loses  # of a pair, the first loses if it is smaller
    first, second = _pair_indices(z.shape[-1], z.device)
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
    return await _ranks(session, correlation.tables(), shares, z)


async def top_k(session: Session, scores: torch.Tensor, k: int, bits: int, out_bits: int = RING_BITS) -> torch.Tensor:
    """Shares modulo 2^out_bits of the selection (..., k, n): row j is the one-hot of the j-th largest score, ties by
    position.

    Out of bounds ranks may repeat: a row may then be empty, or hold several ones. Rounds: those of `ranks` and 1.
    Nothing is revealed: ranks are opened under masks only.
    """
    n = scores.shape[-1]
    rank = await ranks(session, scores, bits, _padded(n).bit_length() - 1)
    rows = await one_hot(session, rank, n, out_bits)
    return rows.transpose(-1, -2)[..., :k, :]


# ---------------------------------------------------------------- the largest of a row, by a tree of blocks


@dataclass(frozen=True)
class _Payload:
    """What goes along with the scores: shares modulo 2^bits, or known to both (`public`)."""

    values: torch.Tensor
    bits: int
    public: bool = False


async def _pair_maximum(
    session: Session, values: torch.Tensor, payload: _Payload | None, bits: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(larger, its payload) of the last dimension, which has two. Rounds: 3."""
    difference = values[..., 0] - values[..., 1]
    if payload is None:
        _, loss, _ = await negative_part(session, difference, bits)
        return values[..., 0] - loss, None
    first, change = payload.values[..., 0], payload.values[..., 1] - payload.values[..., 0]
    if payload.public:
        loses, loss, _ = await negative_part(session, difference, bits, out_bits=payload.bits)
        return values[..., 0] - loss, session.constant(first) + loses * change
    _, loss, gain = await negative_part(session, difference, bits, change, payload.bits)
    assert gain is not None
    return values[..., 0] - loss, first + gain


async def _block_maximum(
    session: Session, values: torch.Tensor, payload: _Payload | None, bits: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(largest, its payload) of the last dimension. Rounds: 4.

    Opened: scores and payloads under their masks, and ranks under masks uniform modulo the padded block.
    """
    shared = payload is not None and not payload.public
    correlation = _block_mask(tuple(values.shape), bits, payload.bits if payload else 0, shared)
    shares, rank_bits = session.take(correlation), correlation.rank_bits
    openings = [session.open(values + shares.r, bits)]
    if payload is not None and shared:
        openings.append(session.open(payload.values + shares.payload_mask, payload.bits))
    opened = await together(*openings)
    rank = await _ranks(session, correlation.tables(), shares, opened[0])
    at = reduce_bits(-(await session.open(rank - shares.position, rank_bits)), rank_bits)[..., None]
    is_largest = shares.one_hot.gather(-1, at)[..., 0]

    def of_largest(z: torch.Tensor, one_hot_mask: torch.Tensor) -> torch.Tensor:
        return (is_largest * z - one_hot_mask.gather(-1, at)[..., 0]).sum(-1)

    largest = of_largest(opened[0], shares.one_hot_r)
    if payload is None:
        return largest, None
    if payload.public:
        return largest, (is_largest * payload.values).sum(-1)
    return largest, of_largest(opened[1], shares.one_hot_payload_mask)


def _block_mask(shape: Shape, bits: int, payload_bits: int, shared: bool) -> RankMask:
    rank_bits = _padded(shape[-1]).bit_length() - 1
    return RankMask(shape, bits, rank_bits, max(bits, payload_bits), payload_bits if shared else 0)


@lru_cache(maxsize=1 << 14)
def block_sizes(n: int, rows: int, bits: int, payload_bits: int, round_bytes: int) -> tuple[int, ...]:
    """The blocks of a tree over n scores, level by level, that cost least: bytes, and `round_bytes` for each round."""
    if n == 1:
        return ()
    costs = []
    for block in (*BLOCKS, n):
        if block <= min(n, max(BLOCKS)):
            rest = block_sizes(n // block + n % block, rows, bits, payload_bits, round_bytes)
            costs.append((_tree_cost((block, *rest), n, rows, bits, payload_bits, round_bytes), (block, *rest)))
    return min(costs)[1]


def _tree_cost(blocks: Sequence[int], n: int, rows: int, bits: int, payload_bits: int, round_bytes: int) -> float:
    total = 0.0
    for block in blocks:
        total += rows * (n // block) * _block_bytes(block, bits, payload_bits) + round_bytes * (3 if block == 2 else 4)
        n = n // block + n % block
    return total


@cache
def _block_bytes(block: int, bits: int, payload_bits: int) -> float:
    """Online bytes, both directions, and correction bytes of one block."""
    opened = packed_bytes(1, bits) + (packed_bytes(1, payload_bits) if payload_bits else 0)
    many = 64  # so that single bits count as what they are
    if block == 2:
        out_bits = max(bits, payload_bits)
        pair = ComparisonMask((many,), bits, select=True, out_bits=out_bits, payload_bits=payload_bits)
        return pair.correction_bytes() / many + 2 * (opened + 1.125)
    correlation = _block_mask((many, block), bits, payload_bits, payload_bits > 0)
    online = block * (opened + 1) + block * (block - 1) / 2 * 1.125
    return correlation.correction_bytes() / many + 2 * online


async def _tree(
    session: Session, values: torch.Tensor, payload: _Payload | None, bits: int
) -> tuple[torch.Tensor, _Payload | None]:
    """(largest, its payload) of the last dimension; of equals the first."""
    rows = values[..., 0].numel()
    sizes = block_sizes(values.shape[-1], rows, bits, payload.bits if payload else 0, session.round_bytes)
    for block in sizes:
        whole = values.shape[-1] - values.shape[-1] % block
        maximum_of = _pair_maximum if block == 2 else _block_maximum
        blocks, rest = None, None
        if payload is not None:
            blocks = replace(payload, values=payload.values[..., :whole].unflatten(-1, (-1, block)))
            rest = payload.values[..., whole:]
            rest = session.constant(rest) if payload.public else rest
        largest, theirs = await maximum_of(session, values[..., :whole].unflatten(-1, (-1, block)), blocks, bits)
        values = torch.cat([largest, values[..., whole:]], -1)
        if payload is not None and theirs is not None and rest is not None:
            payload = _Payload(torch.cat([theirs, rest], -1), payload.bits)
    return values, payload


async def maximum(session: Session, x: torch.Tensor, bits: int) -> torch.Tensor:
    """Shares modulo 2^bits of the maximum over the last dimension (of size 1 in the result).

    x: shares modulo 2^bits, differences below 2^(bits-1). A tree of blocks (`block_sizes`), 3 rounds a level of pairs
    and 4 a level of larger blocks. Exact.
    """
    return (await _tree(session, x, None, bits))[0]


def position_bits(n: int) -> int:
    """The ring of an arg max over n scores: whole bytes."""
    return 8 * max(1, -(-(n - 1).bit_length() // 8))


async def argmax(session: Session, scores: torch.Tensor, bits: int) -> torch.Tensor:
    """Shares modulo 2^position_bits(n) of the position of the largest score in each row (last dimension), the first of
    equals.

    scores: shares modulo 2^bits, differences below 2^(bits-1). A tree as in `maximum`; positions go along under masks.
    Whatever the scores are, it is one of 0..n-1: of each pair exactly one wins, so that at most one of a block wins all
    of its pairs; where none does, on the circle that the ring is, the block's position is 0.
    """
    n = scores.shape[-1]
    if n == 1:
        return torch.zeros_like(scores[..., 0])
    positions = torch.arange(n, device=session.device).expand(scores.shape)
    _, position = await _tree(session, scores, _Payload(positions, position_bits(n), public=True), bits)
    assert position is not None
    return position.values[..., 0]
