"""Secrets whose last opening is left to who uses them, so that it may share a message with what comes next.

A product of two fixed-point values must be truncated, which opens it; so does nearly every use. Where the user can do
both at once, the truncation costs no round: a norm or an activation reads the truncated value from the one opening.
Whoever asks for `share` gets the value as usual, for a round. What is summed before it is used is truncated once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from mpcache.protocols.ring import FRACTION_BITS, PRODUCT_BITS, RING_BITS
from mpcache.protocols.session import Session
from mpcache.protocols.shares import Secret
from mpcache.protocols.stream import stream_norm
from mpcache.protocols.truncation import truncate


class Pending(Secret, ABC):
    """A secret that is made when its share is asked for, once."""

    __slots__ = ("_made", "_session", "_shape")

    def __init__(self, session: Session, shape: torch.Size) -> None:
        self.party = session.party
        self._session, self._shape = session, shape
        self._made: torch.Tensor | None = None

    @abstractmethod
    def _make(self) -> torch.Tensor:
        """The share. Rounds: what the subclass says; once."""

    @property
    def share(self) -> torch.Tensor:  # type: ignore[override]
        if self._made is None:
            self._made = self._make()
        return self._made

    @property
    def made(self) -> bool:
        """Whether somebody asked for the share."""
        return self._made is not None

    def is_made(self, share: torch.Tensor) -> None:
        """Somebody did, in a repeated plan (backends/planned.py)."""
        self._made = share

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
    """A value of scale 2^(16 + shift), shares modulo 2^bits, to be truncated by `shift` to shares modulo 2^out_bits.

    What is selected of a product may be used before it is truncated; its share is selected from the whole one's, which
    is truncated once for all its parts.
    """

    __slots__ = ("_index", "bits", "out_bits", "shift", "untruncated", "whole")

    def __init__(
        self,
        untruncated: torch.Tensor,
        session: Session,
        bits: int = PRODUCT_BITS,
        shift: int = FRACTION_BITS,
        out_bits: int = RING_BITS,
        selected: tuple[Product, Any] | None = None,
    ) -> None:
        """selected: the product that this one is selected from, and its index there."""
        super().__init__(session, untruncated.shape)
        self.untruncated, self.bits, self.shift, self.out_bits = untruncated, bits, shift, out_bits
        self.whole: Product | None
        self._index: Any
        self.whole, self._index = selected or (None, None)

    def _make(self) -> torch.Tensor:
        if self.whole is not None:
            return self.whole.share[self._index]
        return self._session.run(
            truncate(self._session, self.untruncated, self.shift, self.bits, self.out_bits), "linear"
        )

    def like(self, untruncated: torch.Tensor, session: Session | None = None) -> Product:
        """Another one of the same scale and rings. session: another, too."""
        return Product(untruncated, session or self._session, self.bits, self.shift, self.out_bits)

    def alone(self) -> torch.Tensor:
        """Its share, where nobody asks for the rest of what it was selected from."""
        if self.made or self.whole is None or self.whole.made:
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
        part = self.untruncated[index]
        return Product(part, self._session, self.bits, self.shift, self.out_bits, (self, index))


def alone(x: Secret) -> torch.Tensor:
    """A value's share; of what was selected from a product, without the rest of it."""
    return x.alone() if isinstance(x, Product) else x.share


class Normed(Pending):
    """Untruncated rows of the stream over their root mean square, to be computed with the linear layer that follows, or
    alone."""

    __slots__ = ("epsilon", "untruncated")

    def __init__(self, untruncated: torch.Tensor, session: Session, epsilon: float) -> None:
        super().__init__(session, untruncated.shape)
        self.untruncated, self.epsilon = untruncated, epsilon

    def _make(self) -> torch.Tensor:
        return self._session.run(stream_norm(self._session, self.untruncated, self.epsilon))
