"""Softmax in two halves: exponentials with their sum, and the division, which attention does after weighing the values.

exp(x - m) needs m near the maximum. m is the maximum of the scores with 3 fractional bits: a true score within 1/8, so
the largest exponent lies in [-1/8, 1/4] and the sum in [0.88, 1.3 n]: no later step can overflow or vanish, whatever
the scores are. Differences below -16 become exactly 0 (exp(-16) is 1e-7, under 2^-16).
"""

from __future__ import annotations

import torch

from protocols.comparison import is_negative, maximum
from protocols.lookup import EXP_OUT_BITS, EXP_POWER_BITS, EXP_VALUE_BITS, exponential
from protocols.product import multiply
from protocols.reciprocal import reciprocal
from protocols.ring import FRACTION_BITS, RING_BITS
from protocols.session import Session, together
from protocols.truncation import drop_low_bits, truncate

COARSE_BITS = 3
COARSE_WIDTH = 19
"""Scores are compared with 3 fractional bits on 19 bits: differences up to 2^15 in size."""
LOWEST = -16
MASKED = -(1 << 13)
"""What a publicly masked score counts as in the maximum."""
INVERSE_BITS = 30
_DROPPED = FRACTION_BITS - COARSE_BITS


def _coarse(x: torch.Tensor) -> torch.Tensor:
    return drop_low_bits(x, _DROPPED)


async def exponentials(
    session: Session, x: torch.Tensor, visible: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(e, sum of e over the last dimension, kept as size 1): e = exp(x - m), shares in Z_2^64 at scale 2^16.

    x: (..., n) scores at scale 2^16, |x| <= 2^13. visible: public bool, broadcast to x; False gives exactly 0.
    Rounds: 3 ceil(log2 n) + 5. Correction: about 230 bytes a score. Absolute error of e / sum below 3e-4.
    """
    if visible is not None:
        x = torch.where(visible, x, session.constant(torch.full_like(x, MASKED << FRACTION_BITS)))
    m = await maximum(session, _coarse(x), COARSE_WIDTH)
    d = x - (m << _DROPPED)
    vanishing = _coarse(d - session.constant(LOWEST << FRACTION_BITS))
    gone, e = await together(is_negative(session, vanishing, COARSE_WIDTH), exponential(session, d))
    kept = session.constant(torch.ones_like(gone)) - gone
    if visible is not None:
        kept = kept * visible
    e = await multiply(session, e, kept, EXP_OUT_BITS)
    e = await truncate(session, e, EXP_VALUE_BITS + EXP_POWER_BITS - FRACTION_BITS, EXP_OUT_BITS)
    if visible is not None:
        e = e * visible
    return e, e.sum(-1, keepdim=True)


async def inverse_of_sum(session: Session, total: torch.Tensor, n: int) -> torch.Tensor:
    """1 / total at scale 2^30 for a sum of n exponentials, which lies in [0.5, 2 n)."""
    high = FRACTION_BITS + 2 + max(n - 1, 1).bit_length()
    return await reciprocal(session, total, FRACTION_BITS - 1, high, out_bits=INVERSE_BITS)


async def divide(session: Session, x: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """x * inverse (scale 2^30), truncated to scale 2^16. |x * inverse| < 2^15. Rounds: 2."""
    z = await multiply(session, x, inverse, RING_BITS)
    return await truncate(session, z, INVERSE_BITS, RING_BITS)


async def softmax(session: Session, x: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
    """Shares of softmax over the last dimension, scale 2^16. Absolute error below 1e-3, up to 2^14 scores."""
    e, total = await exponentials(session, x, visible)
    return await divide(session, e, await inverse_of_sum(session, total, x.shape[-1]))
