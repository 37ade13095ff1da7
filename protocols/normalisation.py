"""RMSNorm without its gain, which the model folds into the next weight."""

from __future__ import annotations

import math

import torch

from mpcache.protocols.beaver import mask, multiply_masked, square_sum
from mpcache.protocols.reciprocal import RSQRT_BITS, rsqrt_untruncated
from mpcache.protocols.ring import FRACTION_BITS, RING_BITS
from mpcache.protocols.session import Session
from mpcache.protocols.truncation import drop_low_bits, truncate

HIGH = 46
"""The sum of squares, with 16 fractional bits, stays below 2^46."""


async def rms_norm(session: Session, x: torch.Tensor, epsilon: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + epsilon) over the last dimension (Zhang & Sennrich, NeurIPS 2019).

    x: (..., n) at scale 2^16, sum of squares below 2^30, n up to 2^15. Rounds: 6. Correction: about 16 KB a row and 13
    bytes an element. Error: a unit of the result, and of its size 4e-5, 1.2e-5 over the sum of squares with n epsilon,
    and 4e-8 times the root mean square. x is opened once under one mask, which serves both its square and its product
    with the scale.
    """
    masked_x = await mask(session, x, RING_BITS)
    inverse = await inverse_root(session, square_sum(session, masked_x), x.shape[-1], epsilon)
    scale = await mask(session, inverse, RING_BITS)
    y = multiply_masked(session, masked_x, scale, forget=(masked_x, scale))
    return await truncate(session, y, RSQRT_BITS, RING_BITS)


async def inverse_root(session: Session, squares: torch.Tensor, n: int, epsilon: float) -> torch.Tensor:
    """sqrt(n) / sqrt(squares + n epsilon) at scale 2^RSQRT_BITS, from a sum of n squares at scale 2^32. Rounds: 3."""
    # 16 fractional bits are plenty for what follows, so the low ones are dropped locally: what is left is the sum's
    # floor or one unit below, and so one is added
    total = drop_low_bits(squares, FRACTION_BITS)
    least = round(n * epsilon * 2.0**FRACTION_BITS)
    total = total + session.constant(least + 1)
    low = max(2, least.bit_length() - 1) & ~1  # even, as HIGH is
    return await rsqrt_untruncated(session, total, low, HIGH, factor=math.sqrt(n))
