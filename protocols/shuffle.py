"""Shuffling rows under a permutation that nobody knows, and compacting the kept ones in their order.

Each party in turn permutes the rows by a permutation of its own: the other one sends its share under a mask, the
permuter applies its permutation to the sum, and the dealer supplies shares of the permuted mask (Chase, Ghosh,
Poburinnaya, ASIACRYPT 2020, with a dealer in the place of their share translation). After both passes neither party
knows the order of the rows, so their destinations may be revealed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpcache.protocols.beaver import multiply
from mpcache.protocols.correlation import Corrected, Correlation, Dealer, Dealt, Fields, Random, Shape, Tensors
from mpcache.protocols.ring import RING_BITS
from mpcache.protocols.session import Session


@dataclass(frozen=True)
class PermutedMask(Correlation):
    """A permutation for each block of rows that `permuter` knows, a mask that the other knows, shares of the mask's
    rows permuted.

    shape: (blocks, rows, columns). The permutation sorts random words; equal ones (2^-64 a pair) keep their order.
    """

    shape: Shape
    permuter: int

    def fields(self) -> Fields:
        return {
            "words": Random(self.shape[:2], holder=self.permuter),
            "mask": Random(self.shape, holder=1 - self.permuter),
            "permuted": Corrected(self.shape),
        }

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        return {"permuted": _take_rows(randoms.mask, _permutation(randoms.words))}


def _permutation(words: torch.Tensor) -> torch.Tensor:
    return torch.argsort(words, dim=1, stable=True)


def _take_rows(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Row order[b, i] of each block b of x (blocks, rows, columns)."""
    return x.gather(1, order[..., None].expand(*order.shape, x.shape[-1]))


async def shuffle(session: Session, x: torch.Tensor) -> torch.Tensor:
    """Shares in Z_2^64 of the rows of x (blocks, rows, columns), each block in a random order that nobody knows.

    Rounds: 2, one-way each. Online: 8 bytes an element, once in each direction. Correction: 16 bytes an element.
    The permuter sees the other's share under that party's own mask, used once: uniform.
    """
    for permuter in (0, 1):
        shares = session.take(PermutedMask(tuple(x.shape), permuter))
        if session.party == permuter:
            theirs = await session.transfer(None, x.shape, RING_BITS, receiver=permuter)
            x = _take_rows(x + theirs, _permutation(shares.words)) + shares.permuted
        else:
            await session.transfer(x - shares.mask, x.shape, RING_BITS, receiver=permuter)
            x = shares.permuted
    return x


async def compact(session: Session, x: torch.Tensor, keep: torch.Tensor, k: int) -> torch.Tensor:
    """Shares of the kept rows (blocks, k, columns) of x (blocks, n, columns), in their order.

    keep: (blocks, n) shares of bits in Z_2^64, exactly k a block. If k' are kept instead, the first k of the kept rows
    and then the dropped ones come out. Rounds: 4.

    Revealed: every row's destination, after shuffling. With k' = the sum of the bits, which is shared, kept rows go to
    0..k'-1 and dropped ones to k'..n-1, each in their order: a permutation of 0..n-1 whichever bits are 1 and however
    many. In an order that nobody knows it is a uniformly random one, independent of the bits. (With the public k for
    k', the largest destination would tell k' where weights were chosen so that a score leaves its range; had dropped
    rows no destinations, the numbers of rows kept before each would show.) All it needs is that `keep` consists of
    bits, and `from_flip` makes nothing else, whatever was compared. Destinations are exact modulo 2^index_bits > n, and
    no more is sent of their shares, of which the owner's are fresh from its seed after the shuffle.
    """
    n = x.shape[1]
    index_bits = n.bit_length() + 1
    kept_before = keep.cumsum(1) - keep
    position = session.constant(torch.arange(n, device=session.device).expand(keep.shape))
    if_dropped = position - kept_before + keep.sum(1, keepdim=True)
    destination = if_dropped + await multiply(session, keep, kept_before - if_dropped, index_bits)
    rows = await shuffle(session, torch.cat([x, destination[..., None]], -1))
    destinations = await session.reveal(rows[..., -1], index_bits)
    return _take_rows(rows[..., :-1], torch.argsort(destinations, dim=1)[:, :k])
