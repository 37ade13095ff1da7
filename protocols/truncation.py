"""Truncation: divide a shared value by 2^shift, never wrong by more than one unit in the last place.

CrypTen divides each share locally, which is off by 2^(64-shift) with probability |z| / 2^63. Here the dealer shares
r >> shift and the top bit of a mask r, and the parties open c = z + 2^(bits-2) + r modulo 2^bits. As |z| < 2^(bits-2),
the top bit of z + 2^(bits-2) is 0, so the sum wrapped exactly if r's top bit is 1 and c's is 0: linear in shared
values (probabilistic truncation with a corrected wrap; Escudero et al., CRYPTO 2020, section 4).

As the result is linear in what the dealer knows, so is its product with a bit b = f + (1 - 2 f) d, f public: with d
times the dealer's values shared as well, a truncated value is multiplied by bits without a further message.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpcache.protocols.correlation import Corrected, Dealer, Dealt, Fields, Placewise, Random, Shape, Tensors
from mpcache.protocols.ring import FRACTION_BITS, PRODUCT_BITS, RING_BITS, shift_right
from mpcache.protocols.session import Session


@dataclass(frozen=True)
class Truncation:
    """The part of a correlation that truncates: from a mask r modulo 2^bits, shares of r >> shift and of r's top bit
    times 2^(bits - shift), modulo 2^out_bits."""

    shape: Shape
    bits: int
    shift: int
    out_bits: int = RING_BITS

    def mask(self) -> Random:
        return Random(self.shape, self.bits)

    @property
    def top_bits(self) -> int:
        """Ring of the top bit, as top * 2^(bits - shift) counts modulo 2^out_bits; 0 or less: it does not count."""
        return self.out_bits - self.bits + self.shift

    def fields(self) -> Fields:
        high = {"high": Corrected(self.shape, self.out_bits)}
        return {**high, "top": Corrected(self.shape, self.top_bits)} if self.top_bits > 0 else high

    def deal(self, r: torch.Tensor) -> dict[str, torch.Tensor]:
        high = {"high": shift_right(r, self.shift, self.bits)}
        return {**high, "top": (r >> (self.bits - 1)) & 1} if self.top_bits > 0 else high

    @property
    def offset(self) -> int:
        return 1 << (self.bits - 2)

    def result(self, session: Session, c: torch.Tensor, shares: Tensors) -> torch.Tensor:
        """Shares of the truncated value from the opened c = z + offset + r. Local."""
        return session.constant(self.known(c)) + self._shared(c, shares)

    def product(self, c: torch.Tensor, d: torch.Tensor, shares_times_d: Tensors) -> torch.Tensor:
        """Shares of d times the truncated value; d: shares of it. Local."""
        return self.known(c) * d + self._shared(c, shares_times_d)

    def known(self, c: torch.Tensor) -> torch.Tensor:
        """What is public of the truncated value."""
        return shift_right(c, self.shift, self.bits) - (self.offset >> self.shift)

    def unwrapped(self, c: torch.Tensor) -> torch.Tensor:
        """Public: 1 where the sum wrapped if the mask's top bit is 1."""
        return 1 - ((c >> (self.bits - 1)) & 1)

    def _shared(self, c: torch.Tensor, shares: Tensors) -> torch.Tensor:
        if self.top_bits <= 0:
            return -shares.high
        return ((shares.top * self.unwrapped(c)) << (self.bits - self.shift)) - shares.high


@dataclass(frozen=True)
class TruncationMask(Placewise):
    """A mask and what `Truncation` needs."""

    bits: int
    shift: int
    out_bits: int = RING_BITS

    def truncation(self) -> Truncation:
        return Truncation(self.shape, self.bits, self.shift, self.out_bits)

    def fields(self) -> Fields:
        return {"r": self.truncation().mask(), "truncated": self.truncation().fields()}

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        return {"truncated": self.truncation().deal(randoms.r)}


async def truncate(
    session: Session,
    z: torch.Tensor,
    shift: int = FRACTION_BITS,
    bits: int = PRODUCT_BITS,
    out_bits: int = RING_BITS,
) -> torch.Tensor:
    """Shares modulo 2^out_bits of floor(z / 2^shift) or one more.

    z: any shape, shares of a value modulo 2^bits with |z| < 2^(bits-2). `shift` may be 0: then it only lifts a value
    from Z_2^bits into Z_2^out_bits. Rounds: 1. Online: ceil(bits/8) bytes an element and direction. Correction:
    ceil(out_bits/8) + ceil((out_bits - bits + shift)/8) bytes. Error: at most 1 unit of the result.
    Opened: z + 2^(bits-2) + r with r uniform modulo 2^bits and used once, so uniform whatever z is.
    """
    correlation = TruncationMask(tuple(z.shape), bits, shift, out_bits)
    truncation = correlation.truncation()
    shares = session.take(correlation)
    c = await session.open(z + shares.r + session.constant(truncation.offset), bits)
    return truncation.result(session, c, shares.part("truncated"))


def drop_low_bits(share: torch.Tensor, shift: int, bits: int = RING_BITS) -> torch.Tensor:
    """Local: shares of z >> shift modulo 2^(bits - shift), one unit off at most.

    For gates that need no more than bits - shift bits: no protocol, no message.
    """
    return shift_right(share, shift, bits)
