"""Ranks, top-k and arg max, with ties broken by position (the earlier one wins).

Within a block every score is opened once under its own mask, and every pair is compared through the difference of its
two masks: no score is opened twice. The rank is then a local sum, and opened under a mask it rotates a shared one-hot:
the rows of a shared permutation matrix. The cost is quadratic in the block, so a long row becomes a tree of blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from protocols.comparison import is_negative, negative_part
from protocols.correlation import Corrected, Correlation, Dealer, Random, Shape
from protocols.product import multiply
from protocols.ring import RING_BITS
from protocols.session import Session, together


@dataclass(frozen=True)
class OneHotMask(Correlation):
    """A uniform position modulo `size` (a power of two) and the xor-free shares of its one-hot vector."""

    shape: Shape
    size: int
    bits: int

    def fields(self) -> Sequence[Random | Corrected]:
        return [Random(self.shape, self.size.bit_length() - 1), Corrected((*self.shape, self.size), self.bits)]

    def deal(self, randoms: Sequence[torch.Tensor], kept: object, dealer: Dealer) -> list[torch.Tensor]:
        (position,) = randoms
        return [(torch.arange(self.size) == position[..., None]).to(torch.int64)]


async def one_hot(session: Session, index: torch.Tensor, size: int, bits: int = RING_BITS) -> torch.Tensor:
    """Shares modulo 2^bits of the one-hot vectors (..., size) of shared indices in [0, size).

    Rounds: 1. Online: 1 byte an index and direction up to size 256. Correction: padded size * ceil(bits/8) bytes.
    Opened: the index under a mask that is uniform modulo the padded size.
    """
    padded = max(2, 1 << (size - 1).bit_length())
    position, table = session.take(OneHotMask(tuple(index.shape), padded, bits))
    opened = await session.open(index - position, padded.bit_length() - 1)
    # one-hot of index at k = one-hot of position at k - (index - position)
    at = (torch.arange(size, device=session.device) - opened[..., None]) % padded
    return table.gather(-1, at)


async def ranks(session: Session, scores: torch.Tensor, bits: int) -> torch.Tensor:
    """Shares of each score's rank in its row (last dimension): 0 for the largest, ties by position.

    scores: shares modulo 2^bits, differences below 2^(bits-1). Rounds: 3 up to 19 bits. n (n-1) / 2 comparisons a row.
    """
    n = scores.shape[-1]
    first, second = torch.triu_indices(n, n, 1).to(session.device)
    loses = await is_negative(session, scores[..., first] - scores[..., second], bits)  # first < second: first loses
    wins = session.constant(torch.ones_like(loses)) - loses
    rank = torch.zeros_like(scores)
    return rank.index_add(-1, first, loses).index_add(-1, second, wins)


async def top_k(session: Session, scores: torch.Tensor, k: int, bits: int) -> torch.Tensor:
    """Shares of the selection (..., k, n): row j is the one-hot of the j-th largest score, ties by position.

    Rounds: those of `ranks` and 1. Nothing is revealed: ranks are opened under masks only.
    """
    rows = await one_hot(session, await ranks(session, scores, bits), scores.shape[-1])
    return rows.transpose(-1, -2)[..., :k, :]


async def argmax(session: Session, scores: torch.Tensor, bits: int, block: int = 8) -> torch.Tensor:
    """Shares of the position of the largest score in each row (last dimension), the first of equals.

    scores: shares modulo 2^bits, differences below 2^(bits-1). A tree of blocks: `block` 2 takes the fewest bytes,
    4 rounds a level up to 19 bits; a larger one fewer rounds, 5 for each log2(block) levels. Exact.
    """
    n = scores.shape[-1]
    values, positions = scores, session.constant(torch.arange(n, device=session.device)).expand(scores.shape)
    while (n := values.shape[-1]) > 1:
        size = min(block, n)
        whole = n - n % size
        parts = [_block_argmax(session, values[..., :whole], positions[..., :whole], size, bits)]
        if n % size:
            parts.append(_block_argmax(session, values[..., whole:], positions[..., whole:], n % size, bits))
        winners = await together(*parts)
        values = torch.cat([w[0] for w in winners], -1)
        positions = torch.cat([w[1] for w in winners], -1)
    return positions[..., 0]


async def _block_argmax(
    session: Session, values: torch.Tensor, positions: torch.Tensor, size: int, bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best value and its position in each run of `size` neighbours."""
    if size == 1:
        return values, positions
    values, positions = values.unflatten(-1, (-1, size)), positions.unflatten(-1, (-1, size))
    if size == 2:
        loses, loss = await negative_part(session, values[..., 0] - values[..., 1], bits)
        step = await multiply(session, loses, positions[..., 1] - positions[..., 0], RING_BITS)
        return values[..., 0] - loss, positions[..., 0] + step
    best = await top_k(session, values, 1, bits)
    pair = torch.stack([values, positions], -1)
    chosen = await multiply(session, best, pair, RING_BITS, "matmul")
    return chosen[..., 0, 0], chosen[..., 0, 1]
