"""Rotary positions (Su et al., 2021): cosines and sines of a position times a frequency, the same on every machine.

Angles are those of Hugging Face's float32: 1 / theta^(2i/d), times the position, one IEEE operation at a time, with the
power correctly rounded. Of these angles, cosines and sines are correctly rounded to multiples of 2^-30. Only positions
that are asked for are computed, in chunks that the process keeps.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from mpcache.protocols.public import TABLE_BITS, correctly_rounded, rounded_power, table

Tables = tuple[torch.Tensor, torch.Tensor]
"""cos and sin, (positions, d) each."""
CHUNK = 256
KEPT_CHUNKS = 32
"""Recent ones: a peer's descriptions fill no more than 128 MiB, with the largest heads."""


def rotary_tables(theta: float, head_size: int, start: int, end: int) -> Tables:
    """cos and sin (end - start, d) of the positions from `start` on, each half the same, as transformers rotates
    halves. Cost: 5 us a position of 128, once a process, and 3 ms for a theta and head size."""
    cos, sin = table(rotary_units(theta, head_size, start, end))
    return torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)


def rotary_units(theta: float, head_size: int, start: int, end: int) -> torch.Tensor:
    """The first halves, (2, end - start, d / 2), in units of 2^-30."""
    chunks = [_chunk(theta, head_size, i) for i in range(start // CHUNK, (end - 1) // CHUNK + 1)]
    first = start // CHUNK * CHUNK
    return torch.cat(chunks, 1)[:, start - first : end - first]


@lru_cache(maxsize=KEPT_CHUNKS)
def _chunk(theta: float, head_size: int, number: int) -> torch.Tensor:
    positions = np.arange(number * CHUNK, (number + 1) * CHUNK).astype(np.float32)
    angles = (positions[:, None] * _frequencies(theta, head_size)).astype(np.float64)
    return torch.from_numpy(np.stack([correctly_rounded(name, angles, TABLE_BITS) for name in ("cos", "sin")])).int()


@lru_cache(maxsize=16)
def _frequencies(theta: float, head_size: int) -> np.ndarray:
    exponents = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
    return np.float32(1) / rounded_power(float(np.float32(theta)), exponents)
