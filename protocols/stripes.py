"""The public shape of a choice of k among n candidates: stripes, in each of which a public number is picked.

Candidate i lies in stripe i mod `count`, so that neighbours are rivals of others than each other. Ranking all pairs
within a stripe takes n (n / count - 1) / 2 comparisons where one block of all takes n (n - 1) / 2, and the one-hot rows
of a choice are as short as a stripe. With one stripe the choice is exact; with more, what a stripe has too many of is
lost.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class Group:
    """Stripes [first, end), each with `size` candidates of which `picks` are picked."""

    first: int
    end: int
    size: int
    picks: int

    @property
    def stripes(self) -> int:
        return self.end - self.first

    @property
    def whole(self) -> bool:
        """Whether all candidates are picked: there is nothing to choose, and they stay in their order."""
        return self.picks == self.size


@dataclass(frozen=True)
class Stripes:
    """`picked` of `candidates` in `count` stripes, 1 <= count <= picked <= candidates.

    Sizes of stripes, and what is picked in each, differ by one at most; the first stripes have more. Picked ones are in
    the order of their stripes, and within a stripe the largest first.
    """

    candidates: int
    picked: int
    count: int = 1

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Up to three, in order, of stripes that are alike."""
        size, larger = divmod(self.candidates, self.count)
        picks, more = divmod(self.picked, self.count)
        ends = sorted({0, larger, more, self.count})
        return tuple(
            Group(first, end, size + (first < larger), picks + (first < more))
            for first, end in itertools.pairwise(ends)
        )

    def split(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The candidates (..., n, c) of each group, (..., stripes, size, c)."""
        size, out = self.candidates // self.count, []
        whole = x[..., : size * self.count, :].unflatten(-2, (size, self.count)).transpose(-3, -2)
        for group in self.groups:
            part = whole[..., group.first : group.end, :, :]
            if group.size > size:
                start = size * self.count
                last = x[..., start + group.first : start + group.end, :]
                part = torch.cat([part, last.unflatten(-2, (-1, 1))], -2)
            out.append(part)
        return out

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The inverse of `split`."""
        size = self.candidates // self.count
        whole = torch.cat([part[..., :size, :] for part in parts], -3).transpose(-3, -2).flatten(-3, -2)
        last = [part[..., size, :] for part, group in zip(parts, self.groups, strict=True) if group.size > size]
        return torch.cat([whole, *last], -2)

    def split_picked(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The picked ones (..., k, c) of each group, (..., stripes, picks, c)."""
        out, start = [], 0
        for group in self.groups:
            end = start + group.stripes * group.picks
            out.append(x[..., start:end, :].unflatten(-2, (group.stripes, group.picks)))
            start = end
        return out

    def join_picked(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The inverse of `split_picked`."""
        return torch.cat([part.flatten(-3, -2) for part in parts], -2)

    def positions(self, chosen: Sequence[torch.Tensor]) -> torch.Tensor:
        """Numbers (heads, k) of the picked candidates, from their places (heads or 1, stripes or 1, picks) within their
        stripes."""
        parts = []
        for group, places in zip(self.groups, chosen, strict=True):
            stripe = torch.arange(group.first, group.end)[:, None]
            parts.append((places * self.count + stripe).flatten(-2))
        heads = max(len(part) for part in parts)
        return torch.cat([part.expand(heads, -1) for part in parts], -1)


def to_runs(x: torch.Tensor, size: int, heads: int) -> torch.Tensor:
    """(H, queries, tokens) to (heads, runs, c): what belongs to a run's tokens in one row. heads: H, or 1 if all heads
    share a choice: then a row has all heads'."""
    h, queries, tokens = x.shape
    return x.reshape(heads, h // heads * queries, tokens // size, size).transpose(1, 2).flatten(2)


def to_tokens(x: torch.Tensor, size: int, shape: Sequence[int]) -> torch.Tensor:
    """The inverse of `to_runs`; shape: (H, queries)."""
    heads, runs, width = x.shape
    return x.reshape(heads, runs, width // size, size).transpose(1, 2).reshape(*shape, runs * size)
