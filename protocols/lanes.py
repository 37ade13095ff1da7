"""Computations in lock step: what each of them sends in a round travels as one message, so that all share the rounds.

A lane is one computation of both parties: a session in a thread of its own, with correlations and masks of its own. The
k-th rounds of all lanes are one exchange. It begins when every lane that still runs has come to its round, and carries
their messages one after the other. A lane that ends leaves, at both parties after the same round. Which lanes take
part, and the length of each one's part, follow from plans and from announcements: both ends know them, and nothing else
is sent. A part is what the lane alone would have sent. So a batch shows what its lanes would show one by one, and when
they end.

Where one lane fails, all end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mpcache.protocols.correlation import LARGEST_BYTES, check_bytes
from mpcache.protocols.errors import PeerLost
from mpcache.protocols.session import Correlations, Session
from mpcache.protocols.transport import Channel, Received


@dataclass
class _Turn:
    """A lane's round. outgoing: None if it sends nothing; expected: bytes, None if it is sent nothing."""

    outgoing: bytes | None
    expected: int | None
    received: Received = b""
    over: bool = False


class LaneStopped(PeerLost):
    """Another lane failed, and is why."""


class Lanes:
    """`count` lanes of one party over one channel. rounds: exchanges so far. largest_bytes: of a message of all."""

    def __init__(self, channel: Channel, count: int, largest_bytes: int = LARGEST_BYTES) -> None:
        self.channel, self.rounds = channel, 0
        self._largest_bytes = largest_bytes
        self._running = set(range(count))
        self._turns: dict[int, _Turn] = {}
        self._changed = threading.Condition()
        self._failure: Exception | None = None

    def session(self, lane: int, party: int, correlations: Correlations) -> Session:
        """The lane's end of its computation."""
        return _LaneSession(self, lane, party, correlations)

    def run(self, work: Callable[[int], None]) -> None:
        """`work(lane)` of each lane in a thread of its own, until all have ended.

        Raises what the first that failed has raised, at once: the others end as soon as they come to a round.
        """
        threads = [
            threading.Thread(target=self._run, args=(lane, work), name=f"mpcache lane {lane}", daemon=True)
            for lane in sorted(self._running)
        ]
        for thread in threads:
            thread.start()
        with self._changed:
            self._changed.wait_for(lambda: not self._running or self._failure is not None)
        if self._failure is not None:
            raise self._failure
        for thread in threads:
            thread.join()

    def exchange(self, lane: int, outgoing: bytes | None, expected: int | None) -> Received:
        """One round of a lane, when all have come to theirs. Raises LaneStopped."""
        turn = _Turn(outgoing, expected)
        with self._changed:
            self._turns[lane] = turn
            self._go_on()
            self._changed.wait_for(lambda: turn.over or self._failure is not None)
        if not turn.over:
            raise LaneStopped("another prompt of the batch failed")
        return turn.received

    def _run(self, lane: int, work: Callable[[int], None]) -> None:
        try:
            work(lane)
        except Exception as error:  # a thread of its own: whatever it was, it is raised where all are awaited
            self._fail(error)
        with self._changed:
            self._running.discard(lane)
            self._go_on()
            self._changed.notify_all()

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def _go_on(self) -> None:
        """The exchange, if all that run have come. Call it with the lock held."""
        if self._failure is not None or not self._running or self._turns.keys() != self._running:
            return
        turns, self._turns = [self._turns[lane] for lane in sorted(self._turns)], {}
        try:
            self._exchange(turns)
        except Exception as error:  # in whichever lane's thread: it concerns all
            self._failure = error
        self._changed.notify_all()

    def _exchange(self, turns: Sequence[_Turn]) -> None:
        sent = [turn.outgoing for turn in turns if turn.outgoing is not None]
        due = [turn for turn in turns if turn.expected is not None]
        expected = sum(turn.expected or 0 for turn in due)
        check_bytes(max(sum(map(len, sent)), expected), self._largest_bytes)
        self.rounds += 1
        if sent:
            self.channel.send(b"".join(sent))
        view = memoryview(self.channel.receive(expected)) if due else memoryview(b"")
        for turn in due:
            turn.received, view = view[: turn.expected], view[turn.expected :]
        for turn in turns:
            turn.over = True


class _LaneSession(Session):
    """One party's end of one lane."""

    def __init__(self, lanes: Lanes, lane: int, party: int, correlations: Correlations) -> None:
        super().__init__(party, lanes.channel, correlations)
        self._lanes, self._lane = lanes, lane

    def _exchange(self, outgoing: bytes | None, expected: int | None) -> Received:
        return self._lanes.exchange(self._lane, outgoing, expected)
