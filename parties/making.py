"""How the dealer makes a session's corrections: in its own process, or in stretches with the workers of a pool."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from mpcache.parties.workers.pool import Pool, State, Worker
from mpcache.protocols.correlation import Correlation, Dealer, WeightMasks, corrections
from mpcache.protocols.stretches import Stretch, Stretches

STRETCH_BYTES = 4 << 20
"""Corrections of a stretch: its call and its bytes' way cost little beside making them."""
LOOK_SECONDS = 0.2
"""How often somebody who waits for a worker looks whether the session still goes on."""


class SharedMasks:
    """Masks of weights by their key: those of sessions that run at the same time, such as the prompts of a batch, are
    drawn once. They are gone with the last of them."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[bytes, WeightMasks] = WeakValueDictionary()
        self._lock = threading.Lock()

    def of(self, weight_key: bytes | None) -> WeightMasks | None:
        if not weight_key:
            return None
        with self._lock:
            return self._known.setdefault(weight_key, WeightMasks(weight_key))


@dataclass(frozen=True)
class Secrets:
    """What a session's dealer is made from; shown nowhere. largest_bytes: of one correlation."""

    seeds: tuple[bytes, bytes] = field(repr=False)
    weight_key: bytes | None = field(repr=False)
    largest_bytes: int

    def dealer(self, weight_masks: WeightMasks | None) -> Dealer:
        return Dealer(self.seeds, self.weight_key, self.largest_bytes, weight_masks)


class Maker:
    """Makes corrections for any number of sessions at a time.

    ahead: bytes that may be made, and not be taken by the parties yet, for each session.
    """

    def __init__(self, pool: Pool | None, ahead: int) -> None:
        """pool: None for this process alone; the maker closes it."""
        self._pool, self._ahead, self._shared = pool, ahead, SharedMasks()
        self._numbers = itertools.count()

    def corrections(
        self,
        secrets: Secrets,
        plan: Iterable[Correlation],
        check: Callable[[], None] = lambda: None,
        held: Callable[[], int] = lambda: 0,
    ) -> Generator[bytes, None, None]:
        """Party 1's corrections in order, the same bytes whoever makes them.

        check: called now and then; raises if the session is over. held: bytes that were given and wait elsewhere to be
        taken. Raises TooLarge; PeerLost if a worker is lost.
        """
        if self._pool is None:
            yield from corrections(secrets.dealer(self._shared.of(secrets.weight_key)), plan)
            return
        making = _Making(self._pool.workers(), next(self._numbers), secrets, self._ahead, check, held)
        yield from making.corrections(plan)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()


@dataclass
class _Making:
    """One session's corrections by workers. ahead, check, held: see `Maker`."""

    workers: list[Worker]
    session: int
    secrets: Secrets
    ahead: int
    check: Callable[[], None]
    held: Callable[[], int]
    begun: deque[tuple[Future[bytes], int]] = field(default_factory=deque)
    """Calls in order, with the bytes that they will give."""

    def corrections(self, plan: Iterable[Correlation]) -> Generator[bytes, None, None]:
        most = max(1, min(STRETCH_BYTES, self.ahead // (4 * len(self.workers))))
        try:
            for stretch in Stretches(len(self.workers), most, self._least_busy).cut(plan):
                while self.begun and (self.begun[0][0].done() or self._is_full(stretch)):
                    yield from self._next()
                call = self.workers[stretch.place].submit(_make, self.session, self.secrets, stretch)
                self.begun.append((call, stretch.nbytes))
            while self.begun:
                yield from self._next()
        finally:
            for call, _ in self.begun:
                call.cancel()
            for worker in self.workers:
                worker.submit(_forget, self.session)

    def _least_busy(self) -> int:
        return min(range(len(self.workers)), key=lambda place: self.workers[place].load)

    def _is_full(self, stretch: Stretch) -> bool:
        return sum(nbytes for _, nbytes in self.begun) + stretch.nbytes + self.held() > self.ahead

    def _next(self) -> Generator[bytes, None, None]:
        """What the first call gives, when it does."""
        call, _ = self.begun[0]
        while not wait([call], LOOK_SECONDS, FIRST_COMPLETED).done:
            self.check()
        data = call.result()
        self.begun.popleft()
        if data:
            yield data


def _make(state: State, session: int, secrets: Secrets, stretch: Stretch) -> bytes:
    """At a worker, whose state has a dealer for each session."""
    if session not in state:
        others = (dealer.weight_masks for dealer in state.values())
        state[session] = secrets.dealer(next((masks for masks in others if masks.key == secrets.weight_key), None))
    return stretch.corrections(state[session])


def _forget(state: State, session: int) -> None:
    """At a worker: the session is over."""
    state.pop(session, None)
