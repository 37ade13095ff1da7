"""RMSNorm and LayerNorm without their gains, which the model folds into the next weight."""

from __future__ import annotations

import math
from fractions import Fraction

import torch

from mpcache.protocols.beaver import Masked, mask, multiply_masked, square_sum
from mpcache.protocols.reciprocal import RSQRT_BITS, rsqrt_untruncated
from mpcache.protocols.ring import FRACTION_BITS, RING_BITS
from mpcache.protocols.session import Session
from mpcache.protocols.truncation import drop_low_bits, truncate

HIGH = 46
"""The sum of squares, with 16 fractional bits, stays below 2^46."""


async def _scale_to_unit(session: Session, x: Masked, epsilon: float) -> torch.Tensor:
    n = x.shape[-1]
    # sum of squares at scale 2^32; 16 fractional bits are plenty for what follows, so the low ones are dropped locally:
    # what is left is its floor or one unit below, and so one is added
    total = drop_low_bits(square_sum(session, x), FRACTION_BITS)
    least = round(n * epsilon * 2.0**FRACTION_BITS)
    total = total + session.constant(least + 1)
    low = max(2, least.bit_length() - 1) & ~1  # even, as HIGH is
    inverse = await rsqrt_untruncated(session, total, low, HIGH, factor=math.sqrt(n))
    scale = await mask(session, inverse, RING_BITS)
    y = multiply_masked(session, x, scale, forget=(x, scale))
    return await truncate(session, y, RSQRT_BITS, RING_BITS)


async def rms_norm(session: Session, x: torch.Tensor, epsilon: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + epsilon) over the last dimension (Zhang & Sennrich, NeurIPS 2019).

    x: (..., n) at scale 2^16, sum of squares below 2^30, n up to 2^15. Rounds: 6. Correction: about 16 KB a row and 13
    bytes an element. Error: a unit of the result, and of its size 4e-5, 1.2e-5 over the sum of squares with n epsilon,
    and 4e-8 times the root mean square. x is opened once under one mask, which serves both its square and its product
    with the scale.
    """
    return await _scale_to_unit(session, await mask(session, x, RING_BITS), epsilon)


async def layer_norm(session: Session, x: torch.Tensor, epsilon: float) -> torch.Tensor:
    """(x - mean) / sqrt(variance + epsilon) over the last dimension (Ba et al., 2016). Rounds: 7. Error: that of
    `rms_norm`, and a unit over the deviation, as the mean is off by one."""
    n = x.shape[-1]
    reciprocal_bits = 32  # so that a mean far above the deviation costs no precision
    mean = x.sum(-1, keepdim=True) * session.public(Fraction(1, n), reciprocal_bits)
    mean = await truncate(session, mean, reciprocal_bits, RING_BITS)
    return await _scale_to_unit(session, await mask(session, x - mean, RING_BITS), epsilon)
