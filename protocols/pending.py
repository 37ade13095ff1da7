"""Secrets whose last opening is left to who uses them, so that it may share a message with what comes next.

A product of two fixed-point values must be truncated, which opens it; so does nearly every use. Where the user can do
both at once, the truncation costs no round: a norm or an activation reads the truncated value from the one opening.
Whoever asks for `share` gets the value as usual, for a round. What is summed before it is used is truncated once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mpcache.protocols.ring import FRACTION_BITS, PRODUCT_BITS
from mpcache.protocols.shares import Secret


class Pending(Secret):
    """A secret that is made when its share is asked for, once."""

    __slots__ = ("_made", "_make", "_shape")

    def __init__(self, make: Callable[[], torch.Tensor], shape: tuple[int, ...], party: int) -> None:
        self.party = party
        self._make, self._shape = make, torch.Size(shape)
        self._made: torch.Tensor | None = None

    @property
    def share(self) -> torch.Tensor:  # type: ignore[override]
        if self._made is None:
            self._made = self._make()
        return self._made

    @property
    def made(self) -> bool:
        """Whether somebody asked for the share."""
        return self._made is not None

    @property
    def shape(self) -> torch.Size:
        return self._shape

    def __len__(self) -> int:
        return self._shape[0]

    def dim(self) -> int:
        return len(self._shape)

    def numel(self) -> int:
        return self._shape.numel()


class Product(Pending):
    """A value of scale 2^(16 + shift), shares modulo 2^bits, to be truncated by `shift`.

    What is selected of a product may be used before it is truncated; its share is selected from the whole one's, which
    is truncated once for all its parts.
    """

    __slots__ = ("_truncate", "_whole", "bits", "shift", "untruncated")

    def __init__(
        self,
        untruncated: torch.Tensor,
        party: int,
        truncate: Callable[[Product], torch.Tensor],
        bits: int = PRODUCT_BITS,
        shift: int = FRACTION_BITS,
        make: Callable[[], torch.Tensor] | None = None,
        whole: Product | None = None,
    ) -> None:
        super().__init__(make or (lambda: truncate(self)), tuple(untruncated.shape), party)
        self.untruncated, self.bits, self.shift = untruncated, bits, shift
        self._truncate, self._whole = truncate, whole

    def like(self, untruncated: torch.Tensor) -> Product:
        """Another one of the same scale and ring."""
        return Product(untruncated, self.party, self._truncate, self.bits, self.shift)

    def alone(self) -> torch.Tensor:
        """Its share, where nobody asks for the rest of what it was selected from."""
        if self.made or self._whole is None or self._whole.made:
            return self.share
        return self.like(self.untruncated).share

    def __add__(self, other: Any) -> Secret:
        if isinstance(other, Product) and (other.bits, other.shift) == (self.bits, self.shift):
            return self.like(self.untruncated + other.untruncated)
        if isinstance(other, Secret) and not isinstance(other, Pending):
            return self.like(self.untruncated + (other.share << self.shift))
        total: Secret = Secret(self.share, self.party) + other
        return total

    def __getitem__(self, index: Any) -> Secret:
        if self.made:
            return Secret(self.share[index], self.party)
        part, selected = self.untruncated[index], lambda: self.share[index]
        return Product(part, self.party, self._truncate, self.bits, self.shift, selected, self)


def alone(x: Secret) -> torch.Tensor:
    """A value's share; of what was selected from a product, without the rest of it."""
    return x.alone() if isinstance(x, Product) else x.share


class Normed(Pending):
    """x over its root mean square, to be computed with the linear layer that follows, or alone."""

    __slots__ = ("epsilon", "x")

    def __init__(self, x: Product, epsilon: float, norm: Callable[[], torch.Tensor]) -> None:
        super().__init__(norm, tuple(x.shape), x.party)
        self.x, self.epsilon = x, epsilon
