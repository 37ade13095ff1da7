"""Which cached tokens the queries of a block see: all before the block, and of the block those up to themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Causal:
    """For `tokens` queries after `past` tokens, `repeat` times one below the other: a mask (queries, tokens seen).

    A plan needs its shape and how many places are seen, and of a long prompt's mask no more.
    """

    tokens: int
    past: int
    repeat: int

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.repeat * self.tokens, self.past + self.tokens))

    def count(self) -> int:
        """Places that are seen."""
        return self.repeat * (self.tokens * self.past + self.tokens * (self.tokens + 1) // 2)

    def mask(self) -> torch.Tensor:
        """bool"""
        seen = torch.ones(self.tokens, self.past + self.tokens, dtype=torch.bool).tril(self.past)
        return seen.repeat(self.repeat, 1)
