"""The k largest of a long row, by bisecting the k-th largest value: nothing is revealed, not even the threshold.

`ranks` compares all pairs, which is quadratic; here each bit pair of the threshold costs one comparison an element.
Position bits below the score make all keys distinct, so that exactly k pass and of equal scores the earlier ones do.
"""

from __future__ import annotations

import torch

from mpcache.protocols.comparison import is_negative, less_than
from mpcache.protocols.session import Session

STEP_BITS = 2
"""Bits of the threshold found at a time: three candidates share one opening of the keys."""
_MARGIN = 4
"""Added to every score, so that one that is a few units below zero by rounding still counts from zero."""


async def keep_largest(session: Session, scores: torch.Tensor, k: int, bits: int) -> torch.Tensor:
    """Shares in Z_2^64 of keep bits (rows, n): 1 for the k largest of each row, ties by position; exactly k a row.

    scores: (rows, n) shares of integers in [-4, 2^bits - 4), valid modulo 2^(bits + 2 + log2 n) at least. Steps:
    (bits + log2 n) / 2, each of two comparisons (7 rounds at 36 bits), and one comparison at the end. Scores out of
    that range may give more or fewer ones, but nothing that is not a bit.
    Opened: keys and counts under fresh masks in each comparison, see `less_than`.
    """
    n = scores.shape[-1]
    if not 0 < k <= n:
        raise ValueError(f"cannot keep {k} of {n}")
    if k == n:
        return session.constant(torch.ones_like(scores))
    position_bits, count_bits = (n - 1).bit_length(), n.bit_length() + 1
    width = bits + position_bits
    earlier_first = torch.arange(n - 1, -1, -1, device=session.device)
    keys = ((scores + session.constant(_MARGIN)) << position_bits) + session.constant(earlier_first)
    threshold = torch.zeros_like(keys[..., :1])
    while width > 0:
        step = min(STEP_BITS, width) if width % STEP_BITS == 0 else width % STEP_BITS
        width -= step
        candidates = [i << width for i in range(1, 1 << step)]
        below = await less_than(session, keys - threshold, bits + position_bits + 2, candidates)  # (rows, n, c)
        reached = session.constant(torch.full_like(threshold, n)) - below.sum(-2)  # (rows, c): keys at or above
        too_few = await less_than(session, reached, count_bits + 1, [k])
        enough = session.constant(torch.ones_like(reached)) - too_few[..., 0]
        threshold = threshold + (enough.sum(-1, keepdim=True) << width)
    below_it = await is_negative(session, keys - threshold, bits + position_bits + 2)
    return session.constant(torch.ones_like(below_it)) - below_it


def score_bits(largest: float, fraction_bits: int) -> int:
    """`bits` for scores from 0 to `largest` at scale 2^fraction_bits, a factor of two in hand."""
    return max(1, int(largest * 2**fraction_bits)).bit_length() + 1
