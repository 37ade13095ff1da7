"""The value type of the `mpc` backend: one party's arithmetic share, with local operations only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class Secret:
    """One party's share of a secret tensor at scale 2^16; what costs no message works as on torch tensors.

    Products, comparisons and the like are methods of the backend, so that their cost is seen where it arises.
    """

    __slots__ = ("party", "share")

    def __init__(self, share: torch.Tensor, party: int) -> None:
        self.share, self.party = share, party

    @property
    def shape(self) -> torch.Size:
        return self.share.shape

    def __add__(self, other: Secret) -> Secret:
        return Secret(self.share + other.share, self.party)

    def __sub__(self, other: Secret) -> Secret:
        return Secret(self.share - other.share, self.party)

    def __getitem__(self, index: Any) -> Secret:
        return Secret(self.share[index], self.party)

    def reshape(self, *shape: int) -> Secret:
        return Secret(self.share.reshape(*shape), self.party)

    def transpose(self, first: int, second: int) -> Secret:
        return Secret(self.share.transpose(first, second), self.party)

    def __bool__(self) -> bool:
        raise TypeError("a secret has no truth value: nothing may branch on it")

    def __repr__(self) -> str:
        return f"Secret(shape={tuple(self.shape)}, party={self.party})"


def cat(parts: Sequence[Secret], dim: int) -> Secret:
    """Join along a dimension."""
    return Secret(torch.cat([p.share for p in parts], dim), parts[0].party)
