"""The norm of the residual stream, which is kept as a sum of untruncated products: scale 2^32, modulo 2^48.

One opening c = z + 2^46 + r modulo 2^48 truncates z and masks it, see scaled.py: x = C - A with A = R - u w 2^32, C and
u public, R and w the dealer's. A's square and its product with another mask b are linear in what the dealer knows, with
public factors: A^2 = R^2 - u w R 2^33 (w^2 2^64 is 0), A b = R b - u w b 2^32. So neither the sum of squares nor the
product with the scale needs x masked again.

A linear layer that follows may be computed beside the norm: W (x s) = (W x) s for a row's scale s. W x is truncated to
22 fractional bits, s to 26, each masked by that one opening as above, and their product is exact: its truncation is
the layer's. That is two rounds less for some bytes more a result.
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
from mpcache.protocols.linear import MaskedWeight, linear
from mpcache.protocols.normalisation import inverse_root
from mpcache.protocols.reciprocal import RSQRT_BITS
from mpcache.protocols.ring import FRACTION_BITS, PRODUCT_BITS, RING_BITS
from mpcache.protocols.scaled import Opened, opened_mask
from mpcache.protocols.session import Session, together
from mpcache.protocols.truncation import Truncation, truncate

WIDE_BITS = 56
"""Ring of W x, which is not yet divided by x's root mean square: it stays below 2^22."""
LAYER_FRACTION = 22
SCALE_FRACTION = 26
"""Fractional bits of W x and of s. The scale's relative error is 2^-17 where x's root mean square is 1,000."""


@dataclass(frozen=True)
class StreamMask(Placewise):
    """r modulo 2^48 for each element of rows (..., n), with what truncates; w R; each row's sum of R^2.

    With `scaled`, also a mask b for each row's scale, R b and w b.
    """

    scaled: bool

    def truncation(self) -> Truncation:
        return Truncation(self.shape, PRODUCT_BITS, FRACTION_BITS)

    def fields(self) -> Fields:
        rows, top_bits = (*self.shape[:-1], 1), self.truncation().top_bits
        fields: Fields = {
            "r": self.truncation().mask(),
            **({"b": Random(rows)} if self.scaled else {}),
            "truncated": self.truncation().fields(),
            "top_high": Corrected(self.shape, top_bits - 1),
            "squares": Corrected(rows),
        }
        if self.scaled:
            fields = {**fields, "high_b": Corrected(self.shape), "top_b": Corrected(self.shape, top_bits)}
        return fields

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        truncated = self.truncation().deal(randoms.r)
        high, top = truncated["high"], truncated["top"]
        dealt: Dealt = {
            "truncated": truncated,
            "top_high": top * high,
            "squares": (high * high).sum(-1, keepdim=True),
        }
        return {**dealt, "high_b": high * randoms.b, "top_b": top * randoms.b} if self.scaled else dealt


async def _open_rows(session: Session, z: torch.Tensor, shares: Tensors, truncation: Truncation) -> Opened:
    """x of z at scale 2^32 modulo 2^48. Opened: z under r, uniform modulo 2^48 and used once."""
    c = await session.open(z + shares.r + session.constant(truncation.offset), PRODUCT_BITS)
    return opened_mask(truncation, c, shares.part("truncated"))


def _square_sums(session: Session, x: Opened, shares: Tensors) -> torch.Tensor:
    """Shares of each row's sum of squares, scale 2^32 modulo 2^64. Local."""
    crossed = (x.unwrapped * shares.top_high) << (x.wrap + 1)
    squares = session.constant(x.known * x.known) - 2 * x.known * x.mask - crossed
    return squares.sum(-1, keepdim=True) + shares.squares


async def stream_norm(session: Session, z: torch.Tensor, epsilon: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + epsilon) of the stream's rows (..., n), at scale 2^16; errors as `normalisation.rms_norm`.

    z: scale 2^32 modulo 2^48, |x| < 2^14, a row's sum of squares below 2^30. Rounds: `inverse_root`'s and 3. Online: 14
    bytes an element and direction. Correction: 40 bytes an element, and the root's.
    Opened: z, the scale and the product, each once under a mask of its own.
    """
    correlation = StreamMask(tuple(z.shape), scaled=True)
    shares = session.take(correlation)
    x = await _open_rows(session, z, shares, correlation.truncation())
    inverse = await inverse_root(session, _square_sums(session, x, shares), z.shape[-1], epsilon)
    scale = await session.open(inverse - shares.b, RING_BITS)
    times_b = x.known * shares.b - x.times_wrapped(shares.high_b, shares.top_b)
    return await truncate(session, scale * x.value(session) + times_b, RSQRT_BITS, RING_BITS)


# ---------------------------------------------------------------- with the linear layer that follows


@dataclass(frozen=True)
class LayerMask(Placewise):
    """For a layer's results (..., out) and each row's scale: masks with what truncates; and the products of their
    masks' parts, modulo what counts of each."""

    def layer(self) -> Truncation:
        return Truncation(self.shape, WIDE_BITS, 2 * FRACTION_BITS - LAYER_FRACTION)

    def scale(self) -> Truncation:
        return Truncation((*self.shape[:-1], 1), RING_BITS, RSQRT_BITS - SCALE_FRACTION)

    def fields(self) -> Fields:
        layer, scale = self.layer(), self.scale()
        return {
            "r": layer.mask(),
            "scale_r": scale.mask(),
            "layer": layer.fields(),
            "scale": scale.fields(),
            "high_high": Corrected(self.shape),
            "top_high": Corrected(self.shape, layer.top_bits),
            "high_top": Corrected(self.shape, scale.top_bits),
        }

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        layer, scale = self.layer().deal(randoms.r), self.scale().deal(randoms.scale_r)
        return {
            "layer": layer,
            "scale": scale,
            "high_high": layer["high"] * scale["high"],
            "top_high": layer["top"] * scale["high"],
            "high_top": layer["high"] * scale["top"],
        }


LAYER_SHIFT = LAYER_FRACTION + SCALE_FRACTION - FRACTION_BITS
"""What is left to be truncated of a normed layer, in the whole ring."""


async def normed_linear(session: Session, z: torch.Tensor, epsilon: float, weight: MaskedWeight) -> torch.Tensor:
    """Shares of W x / sqrt(mean(x^2) + epsilon) at scale 2^(16 + LAYER_SHIFT) modulo 2^64, to be truncated.

    z: as in `stream_norm`. |W x| < 2^22, and the result below 2^14. Rounds: `inverse_root`'s and 2, which is two less
    than a norm and a layer one after another. Correction: 28 bytes an element of x and 31 of the result, and the
    root's. Error: 2^-22 over the root mean square, 2^-26 times it relative to the result, and the root's.
    Opened: z, W x and the scale, each once under a mask of its own; and x, to party 0, under party 1's (`linear`).
    """
    correlation = StreamMask(tuple(z.shape), scaled=False)
    shares = session.take(correlation)
    x = await _open_rows(session, z, shares, correlation.truncation())
    squares = _square_sums(session, x, shares)
    product, inverse = await together(
        linear(session, x.value(session), weight, WIDE_BITS),
        inverse_root(session, squares, z.shape[-1], epsilon),
    )
    of_layer = LayerMask(tuple(product.shape))
    layer, scale, shares = of_layer.layer(), of_layer.scale(), session.take(of_layer)
    opened = await together(
        session.open(product + shares.r + session.constant(layer.offset), WIDE_BITS),
        session.open(inverse + shares.scale_r + session.constant(scale.offset), RING_BITS),
    )
    y, s = opened_mask(layer, opened[0], shares.part("layer")), opened_mask(scale, opened[1], shares.part("scale"))
    masks = y.times_wrapped(shares.high_high, shares.top_high) - ((s.unwrapped * shares.high_top) << s.wrap)
    return session.constant(y.known * s.known) - y.known * s.mask - s.known * y.mask + masks


def pays(rows: int, inputs: int, outputs: int, round_bytes: int) -> bool:
    """Whether `normed_linear` costs less than a norm and a layer one after another, where a round is worth so much."""
    more = 45 * outputs - 39 * inputs  # bytes a row, both directions and corrections; a test holds it
    return rows * more < 2 * round_bytes
