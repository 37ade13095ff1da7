"""Maximum and arg max of a row, by a tree of blocks: of equals, the first.

A block's scores are opened once, each under a mask, and every pair is compared through the difference of its masks, as
in rank.py. As the dealer knows the masks, the winner comes with its one-hot, without a product. How pairs' bits become
the winner's one-hot is a trade of bytes for rounds (`METHODS`); a tree takes, level by level, what costs least on the
network at hand (`Session.round_bytes`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, lru_cache

import torch

from mpcache.protocols.comparison import ComparisonMask, negative_part, sign
from mpcache.protocols.correlation import (
    Corrected,
    Correlation,
    Dealer,
    Dealt,
    Fields,
    Placewise,
    Random,
    Tensors,
)
from mpcache.protocols.lookup import LessThan
from mpcache.protocols.rank import (
    differences,
    one_hot_of,
    padded_size,
    pair_indices,
    pairs_shape,
    ranks_from,
    ranks_of,
)
from mpcache.protocols.ring import packed_bytes, reduce_bits
from mpcache.protocols.session import Session, together
from mpcache.protocols.sign_table import SignTable

BLOCKS = (2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48)
"""Sizes that a tree's blocks may have; the last level takes what is left, up to the largest."""
RANKS = "ranks"
"""Pairs' bits are opened under random bits, and the ranks, which are sums, under a mask that rotates a one-hot."""
RANK_TABLES = "ranks from tables"
"""Pairs' bits come as arithmetic shares from a table, so that a round is left out."""
WINS = "wins"
"""Pairs' bits are opened under random bits, and a table tells for each score whether it wins all of its pairs."""
PAIR = "pair"
"""Of two: their difference is compared."""
PAIR_TABLE = "pair from a table"
"""Of two: the difference's negative part from a table."""
ROUNDS = {RANKS: 4, RANK_TABLES: 3, WINS: 3, PAIR: 3, PAIR_TABLE: 2}
_MOST_WINS = 6
"""Tables of `WINS` double with each score of a block."""
_COUNT_BITS = 8
"""Ring of ranks: one byte."""


@dataclass(frozen=True)
class Payload:
    """What goes along with the scores: shares modulo 2^bits, or known to both (`public`)."""

    values: torch.Tensor
    bits: int
    public: bool = False


# ---------------------------------------------------------------- of two


@dataclass(frozen=True)
class PairMask(Placewise):
    """A mask r of a difference, and one of a payload's; tables of the difference's sign, times 1, r and that mask."""

    bits: int
    payload_bits: int = 0
    shared: bool = False

    def table(self) -> SignTable:
        out_bits = max(self.bits, self.payload_bits)
        more = (self.payload_bits,) if self.shared else ()
        return SignTable(self.shape, self.bits - 1, values=(out_bits, self.bits, *more))

    def fields(self) -> Fields:
        more = {"payload_mask": Random(self.shape, self.payload_bits)} if self.shared else {}
        return {"r": Random(self.shape, self.bits), **more, "table": self.table().fields()}

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        values = [torch.ones_like(randoms.r), randoms.r, *([randoms.payload_mask] if self.shared else [])]
        of_one = [value[..., None] for value in values]
        return {"table": self.table().deal_values(randoms.r, randoms.part("table"), of_one)}


async def _pair(
    session: Session, values: torch.Tensor, payload: Payload | None, bits: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(larger, its payload) of the last dimension, which has two. Rounds: 3."""
    difference = values[..., 0] - values[..., 1]
    if payload is None:
        _, loss, _ = await negative_part(session, difference, bits)
        return values[..., 0] - loss, None
    first, change = _first_and_change(payload)
    if payload.public:
        loses, loss, _ = await negative_part(session, difference, bits, out_bits=payload.bits)
        return values[..., 0] - loss, session.constant(first) + loses * change
    _, loss, gain = await negative_part(session, difference, bits, change, payload.bits)
    assert gain is not None
    return values[..., 0] - loss, first + gain


async def _pair_from_table(
    session: Session, values: torch.Tensor, payload: Payload | None, bits: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The same in 2 rounds. Opened: the difference, the payloads' and the table's index, under masks of their own."""
    shared = payload is not None and not payload.public
    difference = values[..., 0] - values[..., 1]
    correlation = PairMask(tuple(difference.shape), bits, payload.bits if payload else 0, shared)
    shares, table = session.take(correlation), correlation.table()
    openings = [session.open(difference + shares.r, bits)]
    if payload is not None and shared:
        first, change = _first_and_change(payload)
        openings.append(session.open(change + shares.payload_mask, payload.bits))
    z, *opened = await together(*openings)
    parts, at = shares.part("table"), z[..., None]
    index = await table.open_index(session, parts, at)

    def of_loser(number: int, own: torch.Tensor) -> torch.Tensor:
        return table.times(parts, index, at, number, own[..., None])[..., 0]

    loses = of_loser(0, session.constant(torch.ones_like(z)))
    larger = values[..., 0] - (z * loses - of_loser(1, shares.r))
    if payload is None:
        return larger, None
    first, change = _first_and_change(payload)
    if payload.public:
        return larger, session.constant(first) + loses * change
    return larger, first + opened[0] * loses - of_loser(2, shares.payload_mask)


def _first_and_change(payload: Payload) -> tuple[torch.Tensor, torch.Tensor]:
    return payload.values[..., 0], payload.values[..., 1] - payload.values[..., 0]


# ---------------------------------------------------------------- of a block


@dataclass(frozen=True)
class BlockMask(Placewise):
    """A mask for each score (modulo 2^bits) and for each shared payload; for each pair what tells which is smaller; and
    one-hots, alone and times the masks, that the method turns or reads.

    shape: (..., n). payload_bits: of what goes along with each score, 0 for none; `shared`: it is masked.
    """

    bits: int
    method: str
    payload_bits: int = 0
    shared: bool = False

    @property
    def rank_bits(self) -> int:
        return padded_size(self.shape[-1]).bit_length() - 1

    def less_than(self) -> LessThan:
        return LessThan(pairs_shape(self.shape), self.bits - 1)

    def sign_table(self) -> SignTable:
        return SignTable(pairs_shape(self.shape), self.bits - 1, values=(_COUNT_BITS,))

    def _masks(self) -> dict[str, int]:
        """Names and rings of what the one-hot is multiplied by, besides 1."""
        return {"r": self.bits, **({"payload_mask": self.payload_bits} if self.shared else {})}

    def fields(self) -> Fields:
        pairs, n = (*pairs_shape(self.shape), 1), self.shape[-1]
        randoms: dict[str, Random] = {name: Random(self.shape, bits) for name, bits in self._masks().items()}
        if self.method != WINS:
            randoms["position"] = Random(self.shape, self.rank_bits)
        compared: Fields = {"table": self.sign_table().fields()}
        if self.method != RANK_TABLES:
            randoms["d_xor"] = Random(pairs, 1, xor=True)
            compared = {"digits": self.less_than().fields(), "top": Corrected(pairs, 1, xor=True)}
        if self.method == RANKS:
            compared = {**compared, "d": Corrected(pairs, _COUNT_BITS)}
        places = (*self.shape, 1 << (n - 1 if self.method == WINS else self.rank_bits))
        rings = {"one_hot": max(self.bits, self.payload_bits)}
        rings.update({f"one_hot_{name}": bits for name, bits in self._masks().items()})
        return {**randoms, **compared, **{name: Corrected(places, bits) for name, bits in rings.items()}}

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        rho = differences(randoms.r)
        if self.method == RANK_TABLES:
            values = [torch.ones_like(rho)[..., None]]
            compared: Dealt = {"table": self.sign_table().deal_values(rho, randoms.part("table"), values)}
        else:
            top = (rho >> (self.bits - 1)) & 1
            compared = {"digits": self.less_than().deal(rho, randoms.part("digits")), "top": top[..., None]}
            if self.method == RANKS:
                compared = {**compared, "d": randoms.d_xor}
        one_hot = self._winning(randoms.d_xor[..., 0]) if self.method == WINS else self._rotated(randoms.position)
        times = {f"one_hot_{name}": one_hot * getattr(randoms, name)[..., None] for name in self._masks()}
        return {**compared, "one_hot": one_hot, **times}

    def _rotated(self, position: torch.Tensor) -> torch.Tensor:
        return one_hot_of(position, 1 << self.rank_bits)

    def _winning(self, d: torch.Tensor) -> torch.Tensor:
        """(..., n, 2^(n-1)): a one where the opened bits of a score's pairs say that it wins all of them."""
        pair, second = pairs_of_each(self.shape[-1], d.device)
        wins_at = d[..., pair] ^ second  # of a pair the first wins if its bit is 0, the second if it is 1
        return one_hot_of(_number(wins_at), 1 << (self.shape[-1] - 1))


def pairs_of_each(n: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of n scores its n - 1 pairs' numbers, and whether it is the second of them; (n, n - 1) each."""
    first, second = pair_indices(n, device)
    if device.type == "meta":
        shape = torch.empty((n, n - 1), dtype=torch.int64, device=device)
        return shape, shape
    own = torch.stack([((first == i) | (second == i)).nonzero()[:, 0] for i in range(n)])
    return own, (second[own] == torch.arange(n)[:, None]).long()


def _number(bits: torch.Tensor) -> torch.Tensor:
    """The numbers that bits in the last dimension are, the lowest first."""
    return (bits << torch.arange(bits.shape[-1], device=bits.device)).sum(-1)


async def _block(
    session: Session, values: torch.Tensor, payload: Payload | None, bits: int, method: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(largest, its payload) of the last dimension. Rounds: see `ROUNDS`.

    Opened: scores and payloads under their masks; what comparisons open; ranks under masks uniform modulo the padded
    block.
    """
    shared = payload is not None and not payload.public
    correlation = BlockMask(tuple(values.shape), bits, method, payload.bits if payload else 0, shared)
    shares = session.take(correlation)
    openings = [session.open(values + shares.r, bits)]
    if payload is not None and shared:
        openings.append(session.open(payload.values + shares.payload_mask, payload.bits))
    opened = await together(*openings)
    at = (await _places(session, correlation, shares, opened[0]))[..., None]
    is_largest = shares.one_hot.gather(-1, at)[..., 0]

    def of_largest(z: torch.Tensor, one_hot_mask: torch.Tensor) -> torch.Tensor:
        return (is_largest * z - one_hot_mask.gather(-1, at)[..., 0]).sum(-1)

    largest = of_largest(opened[0], shares.one_hot_r)
    if payload is None:
        return largest, None
    if payload.public:
        return largest, (is_largest * payload.values).sum(-1)
    return largest, of_largest(opened[1], shares.one_hot_payload_mask)


async def _places(session: Session, correlation: BlockMask, shares: Tensors, z: torch.Tensor) -> torch.Tensor:
    """Where each score's one-hot is read, (..., n), from scores opened under their masks."""
    if correlation.method == WINS:
        flip = await sign(session, correlation.less_than(), shares, differences(z)[..., None])
        pair, _ = pairs_of_each(z.shape[-1], z.device)
        return _number(flip[..., 0][..., pair])
    if correlation.method == RANKS:
        rank = await ranks_of(session, correlation.less_than(), shares, z)
    else:
        rank = await _ranks_from_tables(session, correlation.sign_table(), shares.part("table"), z)
    return reduce_bits(-(await session.open(rank - shares.position, correlation.rank_bits)), correlation.rank_bits)


async def _ranks_from_tables(session: Session, table: SignTable, shares: Tensors, z: torch.Tensor) -> torch.Tensor:
    at = differences(z)[..., None]
    index = await table.open_index(session, shares, at)
    loses = table.times(shares, index, at, 0, session.constant(torch.ones_like(at)))
    return ranks_from(session, loses[..., 0], z)


# ---------------------------------------------------------------- the tree


@dataclass(frozen=True, order=True)
class Level:
    """Blocks of so many scores, and how each one's largest is found."""

    block: int
    method: str


def _levels_of(n: int) -> list[Level]:
    """What the next level of a tree over n scores may be."""
    blocks = {block for block in (*BLOCKS, n) if 2 < block <= min(n, max(BLOCKS))}
    larger = [Level(b, method) for b in blocks for method in (RANKS, RANK_TABLES)]
    wins = [Level(b, WINS) for b in blocks if b <= _MOST_WINS]
    return [Level(2, PAIR), Level(2, PAIR_TABLE), *larger, *wins]


@lru_cache(maxsize=1 << 14)
def levels(n: int, rows: int, bits: int, payload_bits: int, round_bytes: int) -> tuple[float, tuple[Level, ...]]:
    """(cost, levels) of the tree over n scores that costs least: bytes, and `round_bytes` for each round."""
    if n == 1:
        return 0.0, ()
    found = []
    for level in _levels_of(n):
        rest, later = levels(n // level.block + n % level.block, rows, bits, payload_bits, round_bytes)
        here = rows * (n // level.block) * _level_bytes(level, bits, payload_bits) + round_bytes * ROUNDS[level.method]
        found.append((here + rest, (level, *later)))
    return min(found)


@cache
def _level_bytes(level: Level, bits: int, payload_bits: int) -> float:
    """Online bytes, both directions, and correction bytes of one block."""
    opened = packed_bytes(1, bits) + (packed_bytes(1, payload_bits) if payload_bits else 0)
    many, block, shared = 64, level.block, payload_bits > 0  # many, so that single bits count as what they are
    correlation: Correlation
    if level.method == PAIR:
        out_bits = max(bits, payload_bits)
        correlation = ComparisonMask((many,), bits, select=True, out_bits=out_bits, payload_bits=payload_bits)
        online = opened + 1.125
    elif level.method == PAIR_TABLE:
        correlation, online = PairMask((many,), bits, payload_bits, shared), opened + 1.0
    else:
        correlation = BlockMask((many, block), bits, level.method, payload_bits, shared)
        a_pair = 1.0 if level.method == RANK_TABLES else 1.125
        online = block * (opened + (level.method != WINS)) + block * (block - 1) / 2 * a_pair
    return correlation.correction_bytes() / many + 2 * online


async def largest_of(
    session: Session, level: Level, blocks: torch.Tensor, payload: Payload | None, bits: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(largest, its payload) of blocks, which the last dimension is."""
    if level.method == PAIR:
        return await _pair(session, blocks, payload, bits)
    if level.method == PAIR_TABLE:
        return await _pair_from_table(session, blocks, payload, bits)
    return await _block(session, blocks, payload, bits, level.method)


async def _largest(session: Session, blocks: torch.Tensor, level: Level, bits: int) -> torch.Tensor:
    return (await largest_of(session, level, blocks, None, bits))[0]


async def _tree(
    session: Session, values: torch.Tensor, payload: Payload | None, bits: int, beside: int = 1
) -> tuple[torch.Tensor, Payload | None]:
    """(largest, its payload) of the last dimension; of equals the first. beside: see `maximum`."""
    rows = values[..., 0].numel() * beside
    _, tree = levels(values.shape[-1], rows, bits, payload.bits if payload else 0, session.round_bytes)
    for level in tree:
        whole = values.shape[-1] - values.shape[-1] % level.block
        blocks, rest = None, None
        if payload is not None:
            blocks = replace(payload, values=payload.values[..., :whole].unflatten(-1, (-1, level.block)))
            rest = payload.values[..., whole:]
            rest = session.constant(rest) if payload.public else rest
        of_blocks = values[..., :whole].unflatten(-1, (-1, level.block))
        if blocks is None:
            largest, theirs = await session.placewise(_largest, of_blocks, level, bits), None
        else:
            largest, theirs = await largest_of(session, level, of_blocks, blocks, bits)
        values = torch.cat([largest, values[..., whole:]], -1)
        if payload is not None and theirs is not None and rest is not None:
            payload = Payload(torch.cat([theirs, rest], -1), payload.bits)
    return values, payload


async def maximum(session: Session, x: torch.Tensor, bits: int, beside: int = 1) -> torch.Tensor:
    """Shares modulo 2^bits of the maximum over the last dimension (of size 1 in the result).

    x: shares modulo 2^bits, differences below 2^(bits-1). A tree (`levels`), 2 to 4 rounds a level. Exact.
    beside: how many of about this size share the rounds, so that a round is worth less for each.
    """
    return (await _tree(session, x, None, bits, beside))[0]


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
    _, position = await _tree(session, scores, Payload(positions, position_bits(n), public=True), bits)
    assert position is not None
    return position.values[..., 0]
