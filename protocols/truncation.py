"""Truncation: divide a shared value by 2^shift, never wrong by more than one unit in the last place.

CrypTen divides each share locally, which is off by 2^(64-shift) with probability |z| / 2^63. Here the dealer shares
r >> shift and the top bit of a mask r, and the parties open c = z + 2^(bits-2) + r modulo 2^bits. As |z| < 2^(bits-2),
the top bit of z + 2^(bits-2) is 0, so the sum wrapped exactly if r's top bit is 1 and c's is 0: linear in shared
values (probabilistic truncation with a corrected wrap; Escudero et al., CRYPTO 2020, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from protocols.correlation import Corrected, Correlation, Dealer, Random, Shape
from protocols.ring import FRACTION_BITS, PRODUCT_BITS, RING_BITS, shift_right
from protocols.session import Session


@dataclass(frozen=True)
class TruncationMask(Correlation):
    """r modulo 2^bits, with shares of r >> shift and of r's top bit times 2^(bits - shift)."""

    shape: Shape
    bits: int
    shift: int

    def fields(self) -> Sequence[Random | Corrected]:
        top_bits = RING_BITS - self.bits + self.shift  # only top * 2^(bits-shift) modulo 2^64 is needed
        fields: list[Random | Corrected] = [Random(self.shape, self.bits), Corrected(self.shape)]
        return [*fields, Corrected(self.shape, top_bits)] if top_bits else fields

    def deal(self, randoms: Sequence[torch.Tensor], kept: object, dealer: Dealer) -> list[torch.Tensor]:
        (r,) = randoms
        values = [shift_right(r, self.shift, self.bits), (r >> (self.bits - 1)) & 1]
        return values[: len(self.fields()) - 1]


async def truncate(
    session: Session, z: torch.Tensor, shift: int = FRACTION_BITS, bits: int = PRODUCT_BITS
) -> torch.Tensor:
    """Shares in Z_2^64 of floor(z / 2^shift) or one more.

    z: any shape, shares of a value modulo 2^bits with |z| < 2^(bits-2). `shift` may be 0: then it only lifts a value
    from Z_2^bits into Z_2^64. Rounds: 1. Online: ceil(bits/8) bytes an element and direction. Correction: 8 +
    ceil((64 - bits + shift) / 8) bytes. Error: at most 1 unit of the result.
    Opened: z + 2^(bits-2) + r with r uniform modulo 2^bits and used once, so uniform whatever z is.
    """
    r, high, *top = session.take(TruncationMask(tuple(z.shape), bits, shift))
    offset = 1 << (bits - 2)
    c = await session.open(z + r + session.constant(offset), bits)
    y = session.constant(shift_right(c, shift, bits) - (offset >> shift)) - high
    if top:
        unwrapped = 1 - ((c >> (bits - 1)) & 1)
        y = y + ((top[0] * unwrapped) << (bits - shift))
    return y


def drop_low_bits(share: torch.Tensor, shift: int, bits: int = RING_BITS) -> torch.Tensor:
    """Local: shares of z >> shift modulo 2^(bits - shift), one unit off at most.

    For gates that need no more than bits - shift bits: no protocol, no message.
    """
    return shift_right(share, shift, bits)
