"""Linear layers whose weight party 0 knows: one message from party 1, however large the weight is.

The weight W is masked once per model and client: party 1 holds F = W - B, where B is a function of the owner's weight
key, known to party 0 and the dealer. For x = x0 + x1, party 1 sends x1 - a; party 0 computes (x0 + x1 - a) W^T; party
1 computes a F^T plus its share of a B^T from the dealer. (Beaver's product with a fixed mask, as in SecureML,
Mohassel & Zhang, S&P 2017, section IV; with one operand known to a party as in Delphi, USENIX Security 2020.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from mpcache.protocols.correlation import Corrected, Correlation, Dealer, Dealt, Fields, Random, Shape, Tensors, Uses
from mpcache.protocols.products import times_rows
from mpcache.protocols.ring import PRODUCT_BITS
from mpcache.protocols.session import Session

FEW_ROWS = 16


@dataclass(frozen=True)
class LinearMask(Correlation):
    """a, held by party 1 alone, and shares of a B^T for the weight's fixed mask B."""

    weight: str
    weight_shape: Shape
    input_shape: Shape
    output_shape: Shape
    bits: int
    weight_bits: int

    @property
    def early(self) -> bool:
        """A product of few rows takes reading the weight, however few they are."""
        return math.prod(self.input_shape[:-1]) <= FEW_ROWS

    def several(self, count: int) -> Correlation:
        """Inputs of the same weight, as so many rows of one."""
        shapes = (count, *self.input_shape), (count, *self.output_shape)
        return replace(self, input_shape=shapes[0], output_shape=shapes[1])

    def renamed(self, handle: Callable[[int], int], weight: Callable[[str], str]) -> Correlation:
        return replace(self, weight=weight(self.weight))

    def fields(self) -> Fields:
        a = Random(self.input_shape, self.bits, holder=1)
        return {"a": a, "a_b": Corrected(self.output_shape, self.bits)}

    def uses(self) -> Uses:
        return Uses(weight=self.weight)

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        b = dealer.weight_mask(self.weight, self.weight_shape, self.weight_bits)
        products = times_rows(randoms.a.reshape(-1, self.input_shape[-1]), b, self.bits)
        return {"a_b": products.reshape(self.output_shape)}


@dataclass
class MaskedWeight:
    """A weight (out, in), scale 2^16: party 0 has the value, party 1 has F = W - B, modulo 2^bits.

    bits: of its widest products, too. tensor: int32 if they are 32 or fewer (`ring.stored`), for half the memory
    and twice the speed.
    """

    name: str
    tensor: torch.Tensor
    bits: int = PRODUCT_BITS

    @property
    def shape(self) -> Shape:
        return tuple(self.tensor.shape)


async def linear(session: Session, x: torch.Tensor, weight: MaskedWeight, bits: int = PRODUCT_BITS) -> torch.Tensor:
    """Shares of x W^T modulo 2^bits, or the weight's if these are fewer; scales added, nothing truncated.

    x: (..., in). Rounds: 1, one way. Online: ceil(bits/8) bytes an element of x, from party 1. Correction: ceil(bits/8)
    bytes an element of the result. Party 0 sees x1 - a, uniform since a is party 1's own mask, used once; party 1
    sees nothing.
    """
    shape, bits = (*x.shape[:-1], weight.shape[0]), min(bits, weight.bits)
    shares = session.take(LinearMask(weight.name, weight.shape, tuple(x.shape), shape, bits, weight.bits))
    if session.party == 1:
        await session.transfer(x - shares.a, x.shape, bits, receiver=0)
        return times_rows(shares.a, weight.tensor, bits) + shares.a_b
    masked = await session.transfer(None, x.shape, bits, receiver=0)
    return times_rows(x + masked, weight.tensor, bits) + shares.a_b
