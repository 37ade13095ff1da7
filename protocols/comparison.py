"""Comparison on k effective bits by one-time digit tables.

The parties open z = x + r modulo 2^k, r uniform. With x = z - r, the sign bit of x is
    top(z) xor top(r) xor [z_low < r_low],
the last bit by digit tables (lookup.py). It is xor-shared; opened under a random bit d that the dealer shares in the
ring as well, it becomes arithmetic: bit = f + (1 - 2 f) d, f public.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mpcache.protocols.correlation import Corrected, Dealer, Dealt, Fields, Placewise, Random, Tensors
from mpcache.protocols.lookup import LessThan
from mpcache.protocols.ring import RING_BITS, reduce_bits
from mpcache.protocols.session import Session, together


@dataclass(frozen=True)
class ComparisonMask(Placewise):
    """r modulo 2^bits, the digit tables of its low bits, and for each threshold a random bit d in both forms.

    With `select`, also shares of r d (modulo 2^bits), for `negative_part`; with `payload_bits`, a mask of a payload and
    its product with d. Bits come modulo 2^out_bits.
    """

    bits: int
    thresholds: int = 1
    select: bool = False
    flat: bool = False
    out_bits: int = RING_BITS
    payload_bits: int = 0

    def tables(self) -> LessThan:
        return LessThan(self.shape, self.bits - 1, self.thresholds, self.flat)

    def fields(self) -> Fields:
        many, payload_bits = (*self.shape, self.thresholds), self.payload_bits
        return {
            "r": Random(self.shape, self.bits),
            "d_xor": Random(many, 1, xor=True),
            **({"payload_mask": Random(self.shape, payload_bits)} if payload_bits else {}),
            "digits": self.tables().fields(),
            "top": Corrected(many, 1, xor=True),
            "d": Corrected(many, self.out_bits),
            **({"d_r": Corrected(many, self.bits)} if self.select else {}),
            **({"d_payload_mask": Corrected(many, payload_bits)} if payload_bits else {}),
        }

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        r, d = randoms.r, randoms.d_xor
        top = (r >> (self.bits - 1)) & 1
        return {
            "digits": self.tables().deal(r, randoms.part("digits")),
            "top": top[..., None].expand(d.shape),
            "d": d,
            **({"d_r": r[..., None] * d} if self.select else {}),
            **({"d_payload_mask": randoms.payload_mask[..., None] * d} if self.payload_bits else {}),
        }


def from_flip(session: Session, flip: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Arithmetic shares of bit = flip xor d. Local."""
    return session.constant(flip) + (1 - 2 * flip) * d


async def sign(session: Session, tables: LessThan, shares: Tensors, at: torch.Tensor) -> torch.Tensor:
    """flip with [at - r negative] = flip xor d; at: (..., thresholds), opened minus thresholds.

    shares: the digit tables of r (`digits`), r's top bit (`top`) and the random bit d (`d_xor`), both shared by xor.
    """
    low = tables.low_bits
    less = await tables.evaluate(session, shares.part("digits"), reduce_bits(at, low))
    negative = less ^ shares.top ^ session.constant((at >> low) & 1)
    return await session.open((negative ^ shares.d_xor) & 1, 1, xor=True)


async def less_than(
    session: Session,
    x: torch.Tensor,
    bits: int,
    thresholds: Sequence[int] = (0,),
    flat: bool = False,
    out_bits: int = RING_BITS,
) -> torch.Tensor:
    """Shares modulo 2^out_bits of the bits [x < t] for public thresholds t: shape (*x.shape, len(thresholds)).

    x: shares modulo 2^bits with |x - t| < 2^(bits-1). Rounds: 3 up to 25 bits or if `flat`, else 4.
    Online: ceil(bits/8) + 1 byte and 1 bit an element and direction. Correction at 19 bits: 44 bytes and a bit. Exact.
    Opened: x + r, and table indices and the result's bit, each under fresh uniform bits.
    """
    correlation = ComparisonMask(tuple(x.shape), bits, len(thresholds), flat=flat, out_bits=out_bits)
    shares = session.take(correlation)
    z = (await session.open(x + shares.r, bits))[..., None]
    at = z if tuple(thresholds) == (0,) else z - torch.tensor(thresholds, device=session.device)
    return from_flip(session, await sign(session, correlation.tables(), shares, at), shares.d)


async def is_negative(session: Session, x: torch.Tensor, bits: int) -> torch.Tensor:
    """Shares in Z_2^64 of [x < 0], in x's shape; see `less_than`."""
    return (await less_than(session, x, bits))[..., 0]


async def negative_part(
    session: Session,
    x: torch.Tensor,
    bits: int,
    payload: torch.Tensor | None = None,
    payload_bits: int = 0,
    out_bits: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """([x < 0], min(x, 0) modulo 2^bits, payload [x < 0] modulo 2^payload_bits).

    The products with the bit cost no round, as the dealer shares d times the masks. The bit comes modulo the
    largest of 2^bits, 2^payload_bits and 2^out_bits. Costs as `less_than`, and ceil(bits/8) bytes of correction more;
    for a payload ceil(payload_bits/8) bytes each way and of correction.
    Opened: x and the payload under masks of their own.
    """
    out_bits = max(bits, payload_bits, out_bits)
    correlation = ComparisonMask(
        tuple(x.shape), bits, select=True, out_bits=out_bits, payload_bits=0 if payload is None else payload_bits
    )
    shares = session.take(correlation)
    openings = [session.open(x + shares.r, bits)]
    if payload is not None:
        openings.append(session.open(payload + shares.payload_mask, payload_bits))
    opened = await together(*openings)
    flips = await sign(session, correlation.tables(), shares, opened[0][..., None])
    flip, bit = flips[..., 0], from_flip(session, flips, shares.d)[..., 0]

    def times_bit(z: torch.Tensor, mask: torch.Tensor, d_mask: torch.Tensor) -> torch.Tensor:
        # bit value = bit opened - bit mask, and bit mask = flip mask + (1 - 2 flip) (d mask)
        return z * bit - flip * mask - (1 - 2 * flip) * d_mask[..., 0]

    negative = times_bit(opened[0], shares.r, shares.d_r)
    if payload is None:
        return bit, negative, None
    return bit, negative, times_bit(opened[1], shares.payload_mask, shares.d_payload_mask)
