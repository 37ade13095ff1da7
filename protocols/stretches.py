"""A plan cut into stretches, which several dealers that have the same seeds make side by side.

A correlation draws from streams of its own number, so whoever has the seeds can make it alone. Two things tie it to a
place. A weight's fixed mask is large: all weights of a layer are at one dealer. A kept mask is where it grows; but it
follows from the seeds as well. A dealer that lacks one makes the correlations that drew, joined and lengthened it once
more, which deal nothing, and forgets it after the stretch.

So any cut and any choice of places gives the same bytes. Cut and choice follow from public parameters alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from mpcache.protocols.beaver import Forget
from mpcache.protocols.correlation import Correlation, Dealer, Uses, leaves
from mpcache.protocols.errors import PlanError

FIRST_BYTES = 1 << 16
"""Corrections of the first stretch: small, as somebody waits for it. Each one after it has twice as many, up to what is
asked for."""
MOST_CORRELATIONS = 2048
"""In a stretch, however little they deal."""
SMALL_BYTES = 1 << 18
"""A kept mask up to this size is drawn again wherever it is needed, rather than that a stretch ends for it."""


@dataclass(frozen=True)
class Stretch:
    """Neighbouring correlations for the dealer at `place`: (number in the session, correlation) as they are to be made,
    with those that it needs again. nbytes: of their corrections."""

    place: int
    items: tuple[tuple[int, Correlation], ...]
    nbytes: int

    def corrections(self, dealer: Dealer) -> bytes:
        """What party 1 must be sent for it. Raises TooLarge. `dealer` has made the place's earlier stretches."""
        return b"".join(dealer.corrections(self.items))


@dataclass(frozen=True, eq=False, repr=False)
class _Kept:
    """How a kept mask came to be: by this correlation, from `parents`. nbytes: what all of that draws."""

    number: int
    handle: int
    correlation: Correlation
    parents: tuple[_Kept, ...]
    nbytes: int


@dataclass
class _Place:
    """What a dealer has: kept masks as far as it has them. gone: forgotten elsewhere, and to be forgotten here."""

    held: dict[int, _Kept] = field(default_factory=dict)
    gone: list[int] = field(default_factory=list)


class Stretches:
    """The stretches of one session's plan.

    places: how many dealers there are. most_bytes: of corrections in a stretch that has more than one correlation, if
    one correlation less has fewer. free: the place for a stretch that may be made anywhere. small_bytes: see
    SMALL_BYTES.
    """

    def __init__(self, places: int, most_bytes: int, free: Callable[[], int], small_bytes: int = SMALL_BYTES) -> None:
        self._places = [_Place() for _ in range(places)]
        self._most_bytes, self._free, self._small_bytes = most_bytes, free, small_bytes
        self._kept: dict[int, _Kept] = {}
        self._home: dict[int, int] = {}
        self._weights: dict[str, int] = {}
        self._near = 0
        self._place: int | None = None
        self._begin()

    def cut(self, plan: Iterable[Correlation]) -> Iterator[Stretch]:
        """In the order of the plan, which is read as they are asked for. Each must be made, in order at its place."""
        limit = min(FIRST_BYTES, self._most_bytes)
        for number, correlation in enumerate(plan):
            uses = correlation.uses()
            wanted = self._wanted(uses)
            if wanted is not None and self._place not in (None, wanted):
                yield self._end()
            if wanted is not None:
                self._place = self._near = wanted
            self._open.append((number, correlation, uses))
            self._nbytes += correlation.correction_bytes()
            if self._nbytes >= limit or len(self._open) == MOST_CORRELATIONS:
                yield self._end()
                limit = min(2 * limit, self._most_bytes)
        if self._open:
            yield self._end()

    def _begin(self) -> None:
        self._open: list[tuple[int, Correlation, Uses]] = []
        self._nbytes = 0
        self._place = None

    def _wanted(self, uses: Uses) -> int | None:
        """Where a correlation must be made, or had better be; None: it does not matter."""
        if uses.weight:
            layer = uses.weight.rpartition(".")[0] or uses.weight
            return self._weights.setdefault(layer, len(self._weights) % len(self._places))
        if uses.keeps in self._home:  # it grows where all of it is
            return self._home[uses.keeps]
        dear = [self._kept[h] for h in uses.masks if h in self._home and self._kept[h].nbytes > self._small_bytes]
        return self._home[max(dear, key=lambda kept: kept.nbytes).handle] if dear else None

    def _end(self) -> Stretch:
        """The open stretch, at its place."""
        number = self._open[0][0]
        at = self._anywhere() if self._place is None else self._place
        place, borrowed = self._places[at], set[int]()
        items: list[tuple[int, Correlation]] = []
        if place.gone:
            items.append((number, Forget(tuple(place.gone))))
            for handle in place.gone:
                place.held.pop(handle, None)
            place.gone = []
        for number, correlation, uses in self._open:
            for kept in self._missing(uses, place):
                items.append((kept.number, kept.correlation))
                place.held[kept.handle] = kept
                borrowed.add(kept.handle)
            items.append((number, correlation))
            self._note(number, correlation, uses, at)
        borrowed &= place.held.keys()
        if borrowed:
            items.append((number, Forget(tuple(sorted(borrowed)))))
            for handle in borrowed:
                del place.held[handle]
        stretch = Stretch(at, tuple(items), self._nbytes)
        self._begin()
        return stretch

    def _anywhere(self) -> int:
        """Near the layer that it belongs to, if something of the open stretch is kept for later; or where it suits."""
        kept = {uses.keeps for _, _, uses in self._open} - {None}
        forgotten = {handle for _, _, uses in self._open for handle in uses.forgets}
        return self._near if kept - forgotten else self._free()

    def _missing(self, uses: Uses, place: _Place) -> list[_Kept]:
        """What must be made again for a correlation at that place, in order."""
        found: dict[int, _Kept] = {}
        wanted = [self._kept[handle] for handle in uses.masks if handle in self._kept]
        while wanted:
            kept = wanted.pop()
            held = place.held.get(kept.handle)
            if kept.number not in found and (held is None or held.number < kept.number):
                found[kept.number] = kept
                wanted += kept.parents
        return [found[number] for number in sorted(found)]

    def _note(self, number: int, correlation: Correlation, uses: Uses, at: int) -> None:
        """What a correlation keeps and forgets, made at that place."""
        place = self._places[at]
        if uses.keeps is not None:
            parents = tuple(self._kept[handle] for handle in dict.fromkeys(uses.masks) if handle in self._kept)
            kept = _Kept(number, uses.keeps, correlation, parents, _drawn_bytes(correlation, parents))
            self._kept[uses.keeps] = place.held[uses.keeps] = kept
            self._home.setdefault(uses.keeps, at)
        for handle in uses.forgets:
            self._kept.pop(handle, None)
            place.held.pop(handle, None)
            home = self._home.pop(handle, at)
            if home != at:
                self._places[home].gone.append(handle)


def _drawn_bytes(correlation: Correlation, parents: Iterable[_Kept]) -> int:
    """Raises PlanError if it would deal something."""
    if correlation.correction_bytes():
        raise PlanError(f"{type(correlation).__name__} keeps a mask and deals something: it cannot be made twice")
    own = 8 * sum(math.prod(drawn.shape) for drawn in leaves(correlation.fields()))
    return own + sum(parent.nbytes for parent in parents)
