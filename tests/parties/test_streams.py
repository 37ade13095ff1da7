"""Both ends of a link, in both ways: straight by what gRPC does not document, and in threads by what it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from mpcache.parties import direct
from mpcache.parties.certificates import Identity
from mpcache.parties.direct import ClientStream, ServerStream
from mpcache.parties.link import Link
from mpcache.parties.streams import AHEAD, ThreadedStream
from mpcache.parties.threads import session_threads
from mpcache.protocols.errors import PeerLost, ProtocolError
from tests.parties.links import linked


@pytest.fixture(params=["direct", "in threads"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "in threads":
        monkeypatch.setattr(direct, "cygrpc", None)
    return str(request.param)


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def beside(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_gRPC_is_inside_as_it_is_used_here(way: str) -> None:
    """Else messages take more threads, and all else is as it was."""
    with linked() as (owner, client):
        kinds = (ServerStream, ClientStream) if way == "direct" else (ThreadedStream, ThreadedStream)
        assert (type(owner._stream), type(client._stream)) == kinds


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 5_000_000])
def test_rounds_go_both_ways_over_mutual_tls(identities: dict[str, Identity], size: int) -> None:
    with linked(identities) as (owner, client):

        def answer() -> None:
            for i in range(20):
                owner.send(bytes([i]) * size)
                assert owner.receive(size) == bytes([99 - i]) * size
            owner.send(b"end")

        thread = beside(answer)
        for i in range(20):
            client.send(bytes([99 - i]) * size)
            assert client.receive(size) == bytes([i]) * size
        assert client.receive(3) == b"end"
        thread.join(600)


@pytest.mark.parametrize("sender", [0, 1])
def test_messages_of_one_side_come_in_order(sender: int) -> None:
    """More than wait ahead, and none of the other side between them."""
    with linked() as ends:
        there, here = ends[sender], ends[1 - sender]
        thread = beside(lambda: [there.send(i.to_bytes(4, "little")) for i in range(20 * AHEAD)])
        assert [int.from_bytes(here.receive(4), "little") for _ in range(20 * AHEAD)] == list(range(20 * AHEAD))
        thread.join(600)


def test_two_ends_that_send_large_messages_at_once_go_on() -> None:
    """Neither reads before it has sent: what is large must leave without the peer's next word."""
    size, heard = (AHEAD * 3) << 20, []
    with linked() as ends:

        def run(link: Link) -> None:
            for _ in range(3):
                link.send(bytes(size))
                heard.append(len(link.receive(size)))

        for thread in [beside(lambda link=link: run(link)) for link in ends]:  # type: ignore[misc]
            thread.join(600)
    assert heard == [size] * 6


@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_due_yet_waits_at_its_sender(side: int) -> None:
    with linked() as ends:
        here, there = ends[side], ends[1 - side]
        there.timeout = 2.0
        with pytest.raises(PeerLost, match="took nothing for 2 seconds"):
            for _ in range(1000):
                there.send(bytes(1 << 20))
        here.check_peer()
        assert here._stream._inbox.qsize() <= AHEAD


@pytest.mark.parametrize("side", [0, 1])
def test_a_silent_peer_is_an_error_after_the_deadline(side: int) -> None:
    with linked() as ends:
        ends[side].timeout = 0.2
        for _ in range(2):
            with pytest.raises(PeerLost, match=r"sent nothing for 0\.2 seconds"):
                ends[side].receive(1)


def waits(link: Link) -> bool:
    """Whether a frame has come that was not taken yet."""
    link.check_peer()
    return not link._stream._inbox.empty()


@pytest.mark.parametrize("side", [0, 1])
def test_an_abort_is_heard_before_it_is_due(side: int) -> None:
    """By a peer that waits for somebody else, though messages wait that were sent before."""
    with linked() as ends:
        here, there = ends[side], ends[1 - side]
        there.send(b"x")
        until(lambda: waits(here), "the message has come")
        there.abort("no more")

        def heard() -> bool:
            try:
                here.check_peer()
            except PeerLost as lost:
                return f"the {here.peer} ended the session: no more" in str(lost)
            return False

        until(heard, "the abort is heard")
        assert here.receive(1) == b"x"
        with pytest.raises(PeerLost, match="no more"):
            here.receive(1)


@pytest.mark.parametrize("side", [0, 1])
def test_another_thread_ends_a_wait(side: int) -> None:
    with linked() as ends:
        here, there = ends[side], ends[1 - side]
        heard: list[str] = []

        def wait() -> None:
            with pytest.raises(PeerLost) as lost:
                here.receive(1)
            heard.append(str(lost.value))

        waiting = beside(wait)
        here.abort("stopped here")
        waiting.join(600)
        assert heard == ["stopped here"]
        with pytest.raises(PeerLost, match="ended the session: stopped here"):
            there.receive(1)


@pytest.mark.parametrize("side", [0, 1])
def test_who_else_is_lost_ends_a_wait(side: int) -> None:
    def check() -> None:
        raise PeerLost("lost the dealer")

    with linked() as ends:
        ends[side].check = check
        with pytest.raises(PeerLost, match="lost the dealer"):
            ends[side].receive(1)


def test_a_client_that_leaves_is_noticed(way: str) -> None:
    with linked() as (owner, client):
        client.disconnect()
        with pytest.raises(PeerLost, match=r"the client closed|lost the client"):
            owner.receive(1)
        assert owner.reason(600) is not None


def test_a_connection_that_breaks_is_noticed_by_both_while_they_wait_for_others() -> None:
    with linked() as (owner, client):
        client._channel.close()
        for link in (owner, client):
            assert link.reason(600) is not None
            with pytest.raises(PeerLost):
                link.check_peer()


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("frame", [b"\xff" * 3, b"\x22\xff", b"\x1a\x05\x0a"], ids=["noise", "abort", "message"])
def test_what_is_no_frame_is_refused_in_words(side: int, frame: bytes) -> None:
    with linked() as ends:
        ends[1 - side]._stream.put(frame)
        with pytest.raises(ProtocolError, match="sent what is no frame"):
            ends[side].receive(1)


def test_no_thread_and_no_call_stays() -> None:
    for _ in range(3):
        with linked() as (owner, client):
            client.send(b"x")
            assert owner.receive(1) == b"x"
    until(lambda: not session_threads(), "all threads end")


def test_what_goes_wrong_with_a_frame_ends_its_call_alone() -> None:
    """Not the thread of the server that serves all of them."""
    with linked() as (owner, client):

        def fail(frame: bytes) -> str | None:
            raise RuntimeError("no such frame")

        owner._stream._last_word = fail
        client.send(b"x")
        with pytest.raises(PeerLost, match="the connection broke: no such frame"):
            owner.receive(1)
        client.disconnect()
        assert owner.reason(600) is not None, "its events are still served"
