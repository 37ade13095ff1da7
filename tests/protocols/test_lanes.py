"""Computations in lock step: what is sent is what each would send alone, in as few messages as the longest has."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.protocols.errors import PeerLost, TooLarge
from mpcache.protocols.lanes import Lanes
from mpcache.protocols.local import InlineCorrelations
from mpcache.protocols.session import Cost, Session
from mpcache.protocols.softmax import softmax
from mpcache.protocols.transport import Channel, channel_pair

OPEN, TO_OWNER, TO_CLIENT = "open", "to the owner", "to the client"
Rounds = tuple[tuple[str, int], ...]
"""What a lane does: in each round an opening or a one-way message, of so many elements."""
LANES = st.lists(
    st.lists(st.tuples(st.sampled_from([OPEN, TO_OWNER, TO_CLIENT]), st.integers(1, 9)), max_size=6).map(tuple),
    min_size=1,
    max_size=5,
)


class Recorded:
    """A channel that keeps what is sent on it."""

    def __init__(self, channel: Channel) -> None:
        self.sent: list[bytes] = []
        self._channel = channel

    def send(self, payload: bytes) -> None:
        self.sent.append(payload)
        self._channel.send(payload)

    def receive(self, expected: int) -> Any:
        return self._channel.receive(expected)


def seeds(lane: int) -> tuple[bytes, bytes]:
    return bytes([lane] * 16), bytes([100 + lane] * 16)


def side_by_side(
    count: int, program: Callable[[Session, int], Any], largest_bytes: int = 1 << 30
) -> tuple[list[list[Any]], list[Recorded], list[Lanes]]:
    """(what each lane gives at each party, what the parties sent, their lanes); the lanes of both in one process."""
    ends = channel_pair(600.0)
    channels = [Recorded(end) for end in ends]
    both = [Lanes(channel, count, largest_bytes) for channel in channels]
    results: list[list[Any]] = [[None] * count for _ in both]
    errors: list[Exception | None] = [None, None]

    def run(party: int) -> None:
        def work(lane: int) -> None:
            session = both[party].session(lane, party, InlineCorrelations(party, seeds(lane)))
            results[party][lane] = program(session, lane)

        try:
            both[party].run(work)
        except Exception as error:
            errors[party] = error
        finally:
            ends[party].close()

    threads = [threading.Thread(target=run, args=(party,)) for party in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    failed = [error for error in errors if error is not None]
    if failed:
        raise next((error for error in failed if not isinstance(error, PeerLost)), failed[0])
    return results, channels, both


def rounds_of(session: Session, lane: int, rounds: Rounds) -> list[list[int] | None]:
    found: list[list[int] | None] = []
    for number, (kind, size) in enumerate(rounds):
        share = torch.full((size,), 1000 * lane + 10 * number + session.party)
        if kind == OPEN:
            opening = session.open(share, 32)
        else:
            opening = session.transfer(share, (size,), 32, receiver=0 if kind == TO_OWNER else 1)
        result = session.run(opening)
        found.append(None if result is None else result.tolist())
    return found


def alone(lane: int, rounds: Rounds) -> tuple[list[Any], list[list[bytes | None]]]:
    """(what the lane gives at each party, what each party sends in each of its rounds)."""
    results, channels, _ = side_by_side(1, lambda session, _: rounds_of(session, lane, rounds))
    sent: list[list[bytes | None]] = []
    for party, channel in enumerate(channels):
        messages, one_way = iter(channel.sent), TO_CLIENT if party == 0 else TO_OWNER
        sent.append([next(messages) if kind in (OPEN, one_way) else None for kind, _ in rounds])
    return [results[0][0], results[1][0]], sent


@settings(max_examples=40, deadline=None)
@given(LANES)
def test_a_message_is_the_lanes_own_messages_one_after_the_other(lanes: list[Rounds]) -> None:
    each = [alone(lane, rounds) for lane, rounds in enumerate(lanes)]
    results, channels, both = side_by_side(len(lanes), lambda session, lane: rounds_of(session, lane, lanes[lane]))
    longest = max(len(rounds) for rounds in lanes)
    assert [end.rounds for end in both] == [longest, longest]
    for party in (0, 1):
        assert results[party] == [found[party] for found, _ in each]
        joined = []
        for number in range(longest):
            own = [sent[party][number] for _, sent in each if number < len(sent[party])]
            parts = [part for part in own if part is not None]
            joined += [b"".join(parts)] if parts else []
        assert channels[party].sent == joined


def test_protocols_of_several_lanes_take_the_rounds_of_the_longest() -> None:
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(1)) * 3
    widths = [5, 40, 17]

    def program(session: Session, lane: int) -> tuple[torch.Tensor, Cost]:
        share = (x[lane, : widths[lane]] * 2**16).long() * (session.party == 0)
        return session.run(softmax(session, share)), session.cost

    results, channels, both = side_by_side(3, program)
    for lane, width in enumerate(widths):
        opened = (results[0][lane][0] + results[1][lane][0]).double() / 2**16
        assert (opened - x[lane, :width].double().softmax(-1)).abs().max() < 1e-3
    costs = [cost for _, cost in results[0]]
    assert both[0].rounds == max(cost.rounds for cost in costs) < sum(cost.rounds for cost in costs)
    assert sum(map(len, channels[0].sent)) == sum(cost.sent_bytes for cost in costs)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_lane_that_fails_ends_all_and_says_why(failing: int) -> None:
    ended = []

    def program(session: Session, lane: int) -> None:
        try:
            for number in range(1000):
                if session.party == failing and lane == 1 and number == 3:
                    raise ZeroDivisionError("of the second prompt")
                session.run(session.open(torch.tensor([5]), 64))
        finally:
            ended.append((session.party, lane))

    with pytest.raises(ZeroDivisionError, match="of the second prompt"):
        side_by_side(3, program)
    assert len(ended) < 7


def test_a_message_of_all_is_bounded_as_one_of_each() -> None:
    def program(session: Session, lane: int) -> None:
        session.run(session.open(torch.zeros(100, dtype=torch.int64), 64))

    side_by_side(2, program, largest_bytes=1600)
    with pytest.raises(TooLarge, match="a step of this computation takes"):
        side_by_side(2, program, largest_bytes=1599)


def test_lanes_end_in_any_order_and_leave_no_thread() -> None:
    def program(session: Session, lane: int) -> int:
        for _ in range((3, 0, 7, 1)[lane]):
            session.run(session.open(torch.tensor([1]), 8))
        return session.cost.rounds

    results, _, both = side_by_side(4, program)
    assert results[0] == results[1] == [3, 0, 7, 1] and both[0].rounds == 7
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mpcache lane")]
