"""Comparison on k effective bits by one-time digit tables.

The parties open z = x + r modulo 2^k, r uniform. With x = z - r, the sign bit of x is
    top(z) xor top(r) xor [z_low < r_low],
the last bit by digit tables (lookup.py). It is xor-shared; opened under a random bit d that the dealer shares in the
ring as well, it becomes arithmetic: bit = f + (1 - 2 f) d, f public.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from mpcache.protocols.correlation import Corrected, Correlation, Dealer, Random, Shape
from mpcache.protocols.lookup import LessThan
from mpcache.protocols.ring import RING_BITS, reduce_bits
from mpcache.protocols.session import Session, together


@dataclass(frozen=True)
class ComparisonMask(Correlation):
    """r modulo 2^bits, the digit tables of its low bits, and for each threshold a random bit d in both forms.

    With `select`, also shares of r d (modulo 2^bits), for `negative_part`; with `payload_bits`, a mask of a payload and
    its product with d. Bits come modulo 2^out_bits.
    """

    shape: Shape
    bits: int
    thresholds: int = 1
    select: bool = False
    flat: bool = False
    out_bits: int = RING_BITS
    payload_bits: int = 0

    def tables(self) -> LessThan:
        return LessThan(self.shape, self.bits - 1, self.thresholds, self.flat)

    def fields(self) -> Sequence[Random | Corrected]:
        many = (*self.shape, self.thresholds)
        out: list[Random | Corrected] = [Random(self.shape, self.bits), Random(many, 1, xor=True)]
        out += [Random(self.shape, self.payload_bits)] if self.payload_bits else []
        out += [*self.tables().fields(), Corrected(many, 1, xor=True), Corrected(many, self.out_bits)]
        out += [Corrected(many, self.bits)] if self.select else []
        return [*out, Corrected(many, self.payload_bits)] if self.payload_bits else out

    def deal(self, randoms: Sequence[torch.Tensor], kept: object, dealer: Dealer) -> list[torch.Tensor]:
        r, d, *rest = randoms
        payload_masks, index_masks = (rest[:1], rest[1:]) if self.payload_bits else ([], rest)
        top = (r >> (self.bits - 1)) & 1
        values = [*self.tables().deal(r, index_masks), top[..., None].expand(d.shape), d]
        values += [r[..., None] * d] if self.select else []
        return [*values, *(mask[..., None] * d for mask in payload_masks)]


def from_flip(session: Session, flip: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Arithmetic shares of bit = flip xor d. Local."""
    return session.constant(flip) + (1 - 2 * flip) * d


async def sign(
    session: Session, tables: LessThan, material: Iterator[torch.Tensor], at: torch.Tensor, d_bit: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(flip, d in the ring) with [at - r negative] = flip xor d; at: (..., thresholds), opened minus thresholds."""
    low = tables.low_bits
    less = await tables.evaluate(session, material, reduce_bits(at, low))
    top, d = next(material), next(material)
    sign = less ^ top ^ session.constant((at >> low) & 1)
    return await session.open((sign ^ d_bit) & 1, 1, xor=True), d


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
    r, d_bit, *rest = session.take(correlation)
    z = (await session.open(x + r, bits))[..., None]
    at = z if tuple(thresholds) == (0,) else z - torch.tensor(thresholds, device=session.device)
    return from_flip(session, *await sign(session, correlation.tables(), iter(rest), at, d_bit))


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
    r, d_bit, *rest = session.take(correlation)
    openings, masks = [session.open(x + r, bits)], [r]
    if payload is not None:
        masks.append(rest.pop(0))
        openings.append(session.open(payload + masks[1], payload_bits))
    opened, material = await together(*openings), iter(rest)
    flip, d = await sign(session, correlation.tables(), material, opened[0][..., None], d_bit)
    flip, bit = flip[..., 0], from_flip(session, flip, d)[..., 0]
    # bit value = bit opened - bit mask, and bit mask = flip mask + (1 - 2 flip) (d mask)
    parts = [z * bit - flip * m - (1 - 2 * flip) * next(material)[..., 0] for z, m in zip(opened, masks, strict=True)]
    return bit, parts[0], parts[1] if payload is not None else None
