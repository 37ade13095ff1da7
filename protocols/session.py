"""A session: one party's view of one private computation, and the rounds it takes.

Protocols are coroutines. `await session.open(x, bits)` is a round; `await together(a, b)` runs independent protocols
in step, so that their openings share messages. Nothing in here branches on a secret: what is sent, and when, follows
from shapes.

What `open` and `transfer` send is under a mask of the same width, so it is noise whatever the values are, out of every
bound too. What is seen as it is goes through `reveal`: each of its callers says why the value may be known.

Costs are counted as they occur: a round is one message (or one in each direction at the same time).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch

from mpcache.protocols.causal import Causal
from mpcache.protocols.correlation import LARGEST_BYTES, Correlation, Tensors, check_bytes
from mpcache.protocols.errors import PlanError
from mpcache.protocols.public import Factor, fixed_point
from mpcache.protocols.ring import FRACTION_BITS, pack, packed_bytes, reduce_bits, unpack
from mpcache.protocols.transport import Channel, Received

T = TypeVar("T")
C = TypeVar("C", torch.Tensor, int)


ROUND_BYTES = 45_000
"""What a round is worth, see `Session.round_bytes`, where nobody says otherwise: on one machine. There the dealer's
work for a byte is the parties' time, and bytes are what there is to save. So much that a step takes no more of them
than before rounds could be traded for bytes."""


@dataclass
class Cost:
    """What a computation took so far. Bytes are payload bytes, of messages between the two parties or corrections."""

    sent_bytes: int = 0
    received_bytes: int = 0
    correction_bytes: int = 0
    rounds: int = 0

    @property
    def online_bytes(self) -> int:
        """Both directions."""
        return self.sent_bytes + self.received_bytes

    def __sub__(self, earlier: Cost) -> Cost:
        return Cost(
            self.sent_bytes - earlier.sent_bytes,
            self.received_bytes - earlier.received_bytes,
            self.correction_bytes - earlier.correction_bytes,
            self.rounds - earlier.rounds,
        )

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.sent_bytes + other.sent_bytes,
            self.received_bytes + other.received_bytes,
            self.correction_bytes + other.correction_bytes,
            self.rounds + other.rounds,
        )

    def times(self, count: int) -> Cost:
        return Cost(
            self.sent_bytes * count, self.received_bytes * count, self.correction_bytes * count, self.rounds * count
        )

    def copy(self) -> Cost:
        return replace(self)


@dataclass
class Part:
    """What one part of a computation (linear, attention, ...) took; CPU seconds are those of the whole process."""

    cost: Cost = field(default_factory=Cost)
    seconds: float = 0.0
    cpu_seconds: float = 0.0


@dataclass
class Opening:
    """A request for one value: awaited by a protocol, answered by the session at the end of the round.

    `receiver` None: both parties send their share and both get the value modulo 2^bits (sum, or xor of bits).
    `receiver` 0 or 1: the other party sends `share`, and the receiver gets it; nobody else learns anything.
    `revealed`: there is no mask; with a `receiver`, it gets the value, its own share included.
    """

    shape: torch.Size
    bits: int
    share: torch.Tensor | None
    xor: bool = False
    receiver: int | None = None
    revealed: bool = False
    result: Any = field(default=None, init=False)

    def __await__(self) -> Generator[list[Opening], None, torch.Tensor]:
        yield [self]
        result: torch.Tensor = self.result  # None at a party that is sent nothing; it asks for no value
        return result

    def nbytes(self) -> int:
        return packed_bytes(self.shape.numel(), self.bits)


class together:
    """Run protocols in step: in each round, the openings of all of them travel in one message.

    >>> keep, weight = await together(compare(session, d, 20), exponential(session, d))
    """

    def __init__(self, *protocols: Awaitable[Any]) -> None:
        self._protocols = protocols

    def __await__(self) -> Generator[list[Opening], None, tuple[Any, ...]]:
        results: list[Any] = [None] * len(self._protocols)
        running = {i: protocol.__await__() for i, protocol in enumerate(self._protocols)}
        try:
            while running:
                requests: list[Opening] = []
                for i, protocol in list(running.items()):
                    try:
                        requests += next(protocol)
                    except StopIteration as stop:
                        results[i] = stop.value
                        del running[i]
                if requests:
                    yield requests
        finally:  # where one failed, the others end as well
            for protocol in running.values():
                protocol.close()
        return tuple(results)


class Correlations(Protocol):
    def take(self, correlation: Correlation) -> Tensors: ...


class Session:
    """One party's end of a two-party computation.

    party: 0 (the model owner) or 1 (the data owner).
    """

    device = torch.device("cpu")
    planning = False
    largest_bytes = LARGEST_BYTES
    """What a message may take, see `correlation.check_bytes`."""
    round_bytes = ROUND_BYTES
    """How many bytes (online and corrections) cost as much time as a round: what protocols choose their shapes by."""

    def __init__(self, party: int, channel: Channel, correlations: Correlations) -> None:
        self.party = party
        self.cost = Cost()
        self.parts: dict[str, Part] = {}
        self._channel = channel
        self._correlations = correlations
        self._handles = 0

    # ------------------------------------------------------------ what protocols call

    def take(self, correlation: Correlation) -> Tensors:
        """This party's shares of the next correlation of the plan, by the names of its fields."""
        self.cost.correction_bytes += correlation.correction_bytes()
        return self._correlations.take(correlation)

    def open(self, share: torch.Tensor, bits: int, xor: bool = False) -> Opening:
        """Both get a masked value modulo 2^bits. The mask is uniform modulo 2^bits and never used again."""
        return Opening(share.shape, bits, share, xor)

    def transfer(self, share: torch.Tensor | None, shape: Sequence[int], bits: int, receiver: int) -> Opening:
        """One-way message: the party that is not `receiver` sends its tensor, under a mask of its own, modulo 2^bits.
        Gives None there."""
        return Opening(torch.Size(shape), bits, share, receiver=receiver)

    def reveal(self, share: torch.Tensor, bits: int, to: int | None = None, xor: bool = False) -> Opening:
        """The value itself, modulo 2^bits, to both or to one party (None at the other). The exception: the caller says
        why it may be known, for whatever weights and prompt; docs/threat-model.md lists all of them."""
        return Opening(share.shape, bits, share, xor, to, revealed=True)

    def new_handle(self) -> int:
        """A number under which the dealer keeps a mask; equal at both parties and in the plan."""
        self._handles += 1
        return self._handles

    def run(self, protocol: Awaitable[T], part: str = "other") -> T:
        """Run a protocol to its end, one message a round; what it took is added to `parts[part]`."""
        before, seconds, cpu_seconds = self.cost.copy(), time.perf_counter(), time.process_time()
        try:
            return self._run(protocol)
        finally:
            spent = self.parts.setdefault(part, Part())
            spent.cost += self.cost - before
            spent.seconds += time.perf_counter() - seconds
            spent.cpu_seconds += time.process_time() - cpu_seconds

    def _run(self, protocol: Awaitable[T]) -> T:
        steps = protocol.__await__()
        try:
            while True:
                self._round(next(steps))
        except StopIteration as stop:
            result: T = stop.value
            return result

    def constant(self, value: C) -> C:
        """A share of a public value: party 0 has it, party 1 has zero."""
        return value if self.party == 0 else value * 0

    def public(self, x: Factor, fraction_bits: int = FRACTION_BITS) -> torch.Tensor:
        """Ring elements of scale 2^fraction_bits of what both parties know and multiply shares by; the same at both on
        any machine, see public.py. The handshake compares it, as far as a plan has it."""
        return fixed_point(x, fraction_bits).to(self.device)

    def seen(self, visible: torch.Tensor | Causal) -> tuple[torch.Tensor, torch.Tensor]:
        """A public mask, and the places that are seen, counted along its rows."""
        mask = visible.mask() if isinstance(visible, Causal) else visible
        return mask.to(self.device), mask.flatten().nonzero()[:, 0].to(self.device)

    async def placewise(
        self, protocol: Callable[..., Awaitable[torch.Tensor]], x: torch.Tensor, *public: Hashable
    ) -> torch.Tensor:
        """`protocol(self, x, *public)`, (..., size) to (...), which does the same at each place (...). That it is said
        changes nothing but what planning many places takes."""
        return await protocol(self, x, *public)

    # ------------------------------------------------------------ one round

    def _round(self, requests: list[Opening]) -> None:
        outgoing = [r for r in requests if r.receiver != self.party]
        incoming = [r for r in requests if r.receiver in (None, self.party)]
        expected = sum(r.nbytes() for r in incoming)
        sent = sum(r.nbytes() for r in outgoing)
        check_bytes(max(sent, expected), self.largest_bytes)
        self._count(sent, expected)
        payload = b"".join(pack(_present(r.share), r.bits) for r in outgoing) if outgoing else None
        view = memoryview(self._exchange(payload, expected if incoming else None))
        for r in incoming:
            theirs, view = unpack(view[: r.nbytes()], r.shape, r.bits), view[r.nbytes() :]
            if r.receiver is not None and not r.revealed:
                r.result = theirs
            else:
                mine = _present(r.share)
                r.result = reduce_bits(mine ^ theirs if r.xor else mine + theirs, r.bits)

    def _exchange(self, outgoing: bytes | None, expected: int | None) -> Received:
        """What this party sends in the round, and is sent: None where there is nothing."""
        if outgoing is not None:
            self._channel.send(outgoing)
        return b"" if expected is None else self._channel.receive(expected)

    def _count(self, sent: int, received: int) -> None:
        self.cost.rounds += 1
        self.cost.sent_bytes += sent
        self.cost.received_bytes += received


def _present(share: torch.Tensor | None) -> torch.Tensor:
    if share is None:
        raise PlanError("a message without a share to send")
    return share
