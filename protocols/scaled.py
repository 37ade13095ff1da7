"""Rows truncated and scaled: what is opened to be truncated is masked already, for the product with the row's scale.

With C and R the upper bits of the opened c (less the offset's) and of its mask r, w the top bit of r, and u = 1 where
that of c is 0, the truncated value is x = C - R + u w 2^k (truncation.py). So x = C - A with A = R - u w 2^k, where C
and u are public, and R and w the dealer's: A times another mask b is R b - u w b 2^k, linear in what the dealer knows.
What is opened under r once serves both, and nothing is opened under A: it is a function of r and of what is public.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpcache.protocols.correlation import (
    Corrected,
    Dealer,
    Dealt,
    Fields,
    Placewise,
    Random,
    Tensors,
)
from mpcache.protocols.ring import RING_BITS
from mpcache.protocols.session import Session
from mpcache.protocols.truncation import Truncation


@dataclass
class Opened:
    """A value x = known - A with A = high - unwrapped * top * 2^wrap: `known` and `unwrapped` are public."""

    known: torch.Tensor
    unwrapped: torch.Tensor
    high: torch.Tensor
    top: torch.Tensor
    wrap: int

    def times_wrapped(self, high: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
        """Shares of A times what `high` and `top` are dealt times. Local."""
        return high - ((self.unwrapped * top) << self.wrap)

    @property
    def mask(self) -> torch.Tensor:
        """Shares of A. Local."""
        return self.times_wrapped(self.high, self.top)

    def value(self, session: Session) -> torch.Tensor:
        """Shares of x. Local."""
        return session.constant(self.known) - self.mask


def opened_mask(truncation: Truncation, c: torch.Tensor, shares: Tensors) -> Opened:
    """The truncated value with its mask, from the opened c = z + offset + r. Local."""
    wrap = truncation.bits - truncation.shift
    return Opened(truncation.known(c), truncation.unwrapped(c), shares.high, shares.top, wrap)


@dataclass(frozen=True)
class RowsMask(Placewise):
    """r modulo 2^bits for each element of rows (..., n), with what truncates by `shift`; a mask b for each row's scale;
    and its products with the truncation's parts."""

    bits: int
    shift: int

    def truncation(self) -> Truncation:
        return Truncation(self.shape, self.bits, self.shift)

    def fields(self) -> Fields:
        return {
            "r": self.truncation().mask(),
            "b": Random((*self.shape[:-1], 1)),
            "truncated": self.truncation().fields(),
            "high_b": Corrected(self.shape),
            "top_b": Corrected(self.shape, self.truncation().top_bits),
        }

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        truncated = self.truncation().deal(randoms.r)
        times_b = {f"{name}_b": value * randoms.b for name, value in truncated.items()}
        return {"truncated": truncated, **times_b}


@dataclass
class Rows:
    """Truncated rows, to be scaled once."""

    x: Opened
    shares: Tensors


async def open_rows(session: Session, z: torch.Tensor, bits: int, shift: int) -> Rows:
    """z / 2^shift, for z modulo 2^bits with |z| < 2^(bits-2), off by one unit at most. Rounds: 1.

    Opened: z under r, uniform modulo 2^bits and used once.
    """
    correlation = RowsMask(tuple(z.shape), bits, shift)
    truncation, shares = correlation.truncation(), session.take(correlation)
    c = await session.open(z + shares.r + session.constant(truncation.offset), bits)
    return Rows(opened_mask(truncation, c, shares.part("truncated")), shares)


async def scale_rows(session: Session, rows: Rows, scale: torch.Tensor) -> torch.Tensor:
    """Shares of the rows times a scale (..., 1) each, modulo 2^64, nothing truncated. Rounds: 1. Online: 8 bytes a row.

    Opened: the scale under b, uniform and used once.
    """
    x, shares = rows.x, rows.shares
    opened = await session.open(scale - shares.b, RING_BITS)
    return opened * x.value(session) + x.known * shares.b - x.times_wrapped(shares.high_b, shares.top_b)
