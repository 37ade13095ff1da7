"""Both parties in one process, each in a thread, with a dealer in line: for tests, examples and measurements."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from mpcache.protocols.correlation import Correlation, Dealer, PartyCorrelations, Tensors
from mpcache.protocols.errors import PeerLost
from mpcache.protocols.randomness import Stream, new_key
from mpcache.protocols.ring import RING_BITS, signed
from mpcache.protocols.session import Session
from mpcache.protocols.transport import channel_pair

T = TypeVar("T")


class InlineCorrelations:
    """A party with a dealer of its own, which works when asked.

    It knows both seeds, so it protects nothing.
    """

    def __init__(self, party: int, seeds: tuple[bytes, bytes], weight_key: bytes | None = None) -> None:
        self._dealer = Dealer(seeds, weight_key)
        self._pending = b""
        self._party = PartyCorrelations(party, seeds[party], self._read)

    def _read(self, nbytes: int) -> bytes:
        head, self._pending = self._pending[:nbytes], self._pending[nbytes:]
        return head

    def take(self, correlation: Correlation) -> Tensors:
        self._pending = self._dealer.correction(correlation)
        return self._party.take(correlation)


def run_parties(
    program: Callable[[Session], T], timeout: float = 600.0, weight_key: bytes | None = None
) -> tuple[T, T]:
    """Run `program` as both parties and return what each of them returned. If either fails, neither waits for long:
    its error is raised."""
    seeds = (new_key(), new_key())
    channels = channel_pair(timeout)

    def run(party: int) -> T:
        try:
            return program(Session(party, channels[party], InlineCorrelations(party, seeds, weight_key)))
        finally:
            channels[party].close()

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(run, party) for party in (0, 1)]
        errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:  # rather than that the other party ended, why it did
        raise next((error for error in errors if not isinstance(error, PeerLost)), errors[0])
    return futures[0].result(), futures[1].result()


def shares_of(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two shares of x, of any shape, modulo 2^64."""
    mask = Stream(new_key()).elements(tuple(x.shape))
    return x - mask, mask


def run_shared(protocol: Callable[..., Awaitable[torch.Tensor]], *values: torch.Tensor) -> torch.Tensor:
    """`protocol(session, *shares)` of these values, run by both parties, and its result opened, as signed integers."""
    shares = [shares_of(value) for value in values]
    results = run_parties(lambda session: session.run(protocol(session, *(pair[session.party] for pair in shares))))
    return signed(results[0] + results[1], RING_BITS)
