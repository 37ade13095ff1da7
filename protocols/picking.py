"""Picking rows by a secret choice in stripes, and putting what was computed of them back in their places.

A stripe's choice is one-hot rows C (picks, size), each of which adds up to 1. So the picked rows of x are
C (x - last) + last: only the differences to a stripe's last candidate are opened, under masks, and of C all columns but
the last. Putting e back, C^T e, the places of a stripe add up to the sum of e: the last one's masked form is that of e,
less the others', and is not opened either.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import torch

from mpcache.protocols.beaver import Masked, mask, multiply_masked
from mpcache.protocols.correlation import Correlation, Dealer, Dealt, Fields, Tensors, Uses
from mpcache.protocols.session import Session, together
from mpcache.protocols.stripes import Stripes, to_tokens

Chosen = Sequence[Masked | None]
"""For each group of stripes the masked one-hot rows (heads, stripes, picks, size - 1); None: all are picked."""


async def mask_choice(session: Session, choice: Sequence[torch.Tensor | None], bits: int) -> list[Masked | None]:
    """One-hot rows (heads, stripes, picks, size) masked for all their products. Rounds: 1. Online: ceil(bits/8) bytes
    each way an element, the last columns excepted.

    Opened: shares of bits under fresh masks.
    """
    masked = iter(await together(*[mask(session, rows[..., :-1], bits) for rows in choice if rows is not None]))
    return [None if rows is None else next(masked) for rows in choice]


async def pick(
    session: Session, stripes: Stripes, chosen: Awaitable[Chosen], rows: torch.Tensor, bits: int
) -> torch.Tensor:
    """Shares modulo 2^bits of the picked rows (heads, k, c) of (heads, n, c).

    chosen: what masks the choice, in the same round. Rounds: 1. Online: ceil(bits/8) bytes each way an element of all
    but a stripe's last row. Correction: ceil(bits/8) bytes an element of the result.
    Opened: differences of rows under fresh masks.
    """
    parts = stripes.split(rows)
    masks = [
        _mask_differences(session, part, bits) for part, g in zip(parts, stripes.groups, strict=True) if not g.whole
    ]
    choice, *differences = await together(chosen, *masks)
    picked, masked = [], iter(differences)
    for part, by in zip(parts, choice, strict=True):
        if by is None:
            picked.append(part)
        else:
            difference = next(masked)
            picked.append(part[..., -1:, :] + multiply_masked(session, by, difference, "matmul", (difference,)))
    return stripes.join_picked(picked)


def _mask_differences(session: Session, part: torch.Tensor, bits: int) -> Awaitable[Masked]:
    return mask(session, part[..., :-1, :] - part[..., -1:, :], bits)


async def place(session: Session, stripes: Stripes, chosen: Chosen, picked: torch.Tensor, bits: int) -> torch.Tensor:
    """Shares modulo 2^bits of rows (heads, n, c) that have the picked rows (heads, k, c) in their places, and zeros.

    Rounds: 1. Online: ceil(bits/8) bytes each way an element of `picked`. Correction: the same an element of the
    result. Opened: the picked rows under fresh masks.
    """
    parts = stripes.split_picked(picked)
    masked = await together(*[mask(session, part, bits) for part in parts])
    out = []
    for part, by, e in zip(parts, chosen, masked, strict=True):
        out.append(part if by is None else _with_last(part, _first_places(session, by, e)))
    return stripes.join(out)


def _first_places(session: Session, by: Masked, e: Masked) -> torch.Tensor:
    """What each candidate of a stripe but the last gets of e."""
    return multiply_masked(session, by, e, "transposed_matmul")


def _with_last(picked: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """All places of a stripe: the last one has what the first ones leave. Linear, so it holds of what is opened, of
    shares and of masks alike."""
    return torch.cat([first, picked.sum(-2, keepdim=True) - first.sum(-2, keepdim=True)], -2)


# ---------------------------------------------------------------- in place among other tokens


@dataclass(frozen=True)
class Layout:
    """Of a row of tokens (H, queries, T): `start` tokens before the runs of `size` tokens that are picked from.

    shape: (H, queries).
    """

    shape: tuple[int, int]
    start: int
    size: int
    stripes: Stripes

    def joined(self, outside: torch.Tensor, parts: Sequence[tuple[torch.Tensor, torch.Tensor | None]]) -> torch.Tensor:
        """(H, queries, T). outside: what is not picked from (H, queries, tokens). parts: for each group what was picked
        and what is placed of it, None if all were picked. Linear, see `_with_last`."""
        rows = [picked if first is None else _with_last(picked, first) for picked, first in parts]
        inside = to_tokens(self.stripes.join(rows), self.size, self.shape)
        return torch.cat([outside[..., : self.start], inside, outside[..., self.start :]], -1)


@dataclass(frozen=True)
class PlacedMask(Correlation):
    """Nothing is dealt: the dealer puts kept masks in their places, as the parties do with what is opened.

    row: how they lie in it. outside, parts: numbers of the masks, as `Layout.joined` has them.
    """

    new_handle: int
    row: Layout
    outside: int
    parts: tuple[tuple[int, int | None], ...]

    def uses(self) -> Uses:
        masks = [self.outside, *(handle for part in self.parts for handle in part if handle is not None)]
        return Uses(tuple(masks), keeps=self.new_handle)

    def renamed(self, handle: Callable[[int], int], weight: Callable[[str], str]) -> Correlation:
        parts = tuple((handle(e), None if first is None else handle(first)) for e, first in self.parts)
        return PlacedMask(handle(self.new_handle), self.row, handle(self.outside), parts)

    def fields(self) -> Fields:
        return {}

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        parts = [(dealer.kept(e), None if first is None else dealer.kept(first)) for e, first in self.parts]
        dealer.keep(self.new_handle, self.row.joined(dealer.kept(self.outside), parts))
        return {}


async def place_masked(
    session: Session, layout: Layout, chosen: Chosen, outside: torch.Tensor, picked: torch.Tensor, bits: int
) -> tuple[Masked, list[Masked]]:
    """(all tokens (H, queries, T), masked; what to forget after their use). picked: (heads, k, c).

    Rounds: 2. Online: ceil(bits/8) bytes each way an element of `outside`, `picked`, and of all places but a stripe's
    last. Correction: ceil(bits/8) bytes for each such place.
    Opened: all of these under fresh masks. What is computed of openings tells nothing more.
    """
    pieces = layout.stripes.split_picked(picked)
    held, *masked = await together(*[mask(session, part, bits) for part in (outside, *pieces)])
    pairs = list(zip(chosen, masked, strict=True))
    places = iter(
        await together(*[mask(session, _first_places(session, by, e), bits) for by, e in pairs if by is not None])
    )
    parts = [(e, None if by is None else next(places)) for by, e in pairs]
    handle = session.new_handle()
    numbers = tuple((e.handle, None if first is None else first.handle) for e, first in parts)
    session.take(PlacedMask(handle, layout, held.handle, numbers))
    opened = layout.joined(held.opened, [(e.opened, None if first is None else first.opened) for e, first in parts])
    shares = layout.joined(held.mask, [(e.mask, None if first is None else first.mask) for e, first in parts])
    used = [held, *(m for pair in parts for m in pair if m is not None)]
    return Masked(opened, shares, handle, bits), used
