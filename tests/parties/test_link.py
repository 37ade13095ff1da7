"""The link between the parties, over real sockets; the owner's end is played by the test."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import pytest

from parties.certificates import Identity
from parties.generated import owner_pb2, owner_pb2_grpc
from parties.link import ClientLink, Frame, printable
from parties.tls import open_server, require_peer
from protocols.errors import PeerLost, ProtocolError

SESSION = bytes(16)


def message(sequence: int, payload: bytes, session: bytes = SESSION, length: int | None = None) -> owner_pb2.Frame:
    return Frame(
        message=owner_pb2.Message(
            session=session, sequence=sequence, length=len(payload) if length is None else length, payload=payload
        )
    )


@contextmanager
def owner_that(
    answers: Callable[[Iterator[owner_pb2.Frame]], Iterator[owner_pb2.Frame]],
    identities: dict[str, Identity] | None = None,
) -> Iterator[str]:
    class Service(owner_pb2_grpc.OwnerServicer):
        def Converse(self, frames: Iterator, context: grpc.ServicerContext) -> Iterator[owner_pb2.Frame]:
            require_peer(context, ("client",), identities is None)
            yield from answers(frames)

    server, port = open_server("127.0.0.1:0", identities and identities["owner"], 4)
    owner_pb2_grpc.add_OwnerServicer_to_server(Service(), server)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def test_messages_arrive_in_order_over_mutual_tls(identities: dict[str, Identity]) -> None:
    def echo(frames: Iterator[owner_pb2.Frame]) -> Iterator[owner_pb2.Frame]:
        yield from frames

    with owner_that(echo, identities) as address:
        link = ClientLink(address, identities["client"], SESSION, 600)
        for payload in (b"first", b"", bytes(5_000_000)):
            link.send(payload)
            assert link.receive(len(payload)) == payload
        link.disconnect()


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (message(1, b"1234"), "sent message 1 where message 0 was due"),
        (message(0, b"12345"), "has 5 bytes, of which 5 came at once, where 4 and 4 were due"),
        (message(0, b"1234", length=9), "has 9 bytes, of which 4 came at once"),
        (message(0, b"12345", length=4), "has 4 bytes, of which 5 came at once"),
        (message(0, b"", length=4), "has 4 bytes, of which 0 came at once"),
        (message(0, b"1234", session=b"another session!"), "another session"),
        (Frame(welcome=owner_pb2.Welcome()), "sent a welcome where message 0 was due"),
    ],
)
def test_what_was_not_due_is_refused(frame: owner_pb2.Frame, error: str) -> None:
    with owner_that(lambda frames: iter([frame])) as address:
        link = ClientLink(address, None, SESSION, 600)
        with pytest.raises(ProtocolError, match=error):
            link.receive(4)
        link.disconnect()


def test_a_repeated_message_is_refused() -> None:
    with owner_that(lambda frames: iter([message(0, b"a"), message(0, b"a")])) as address:
        link = ClientLink(address, None, SESSION, 600)
        assert link.receive(1) == b"a"
        with pytest.raises(ProtocolError, match="sent message 0 where message 1 was due"):
            link.receive(1)
        link.disconnect()


def test_the_reason_of_an_abort_arrives() -> None:
    with owner_that(lambda frames: iter([Frame(abort=owner_pb2.Abort(reason="lost the dealer\x1b[31m"))])) as address:
        link = ClientLink(address, None, SESSION, 600)
        with pytest.raises(PeerLost, match="the owner ended the session: lost the dealer"):
            link.receive(1)
        link.disconnect()


def test_a_peer_that_goes_away_is_named() -> None:
    with owner_that(lambda frames: iter([])) as address:
        link = ClientLink(address, None, SESSION, 600)
        with pytest.raises(PeerLost, match="the owner closed the connection"):
            link.receive(1)
        link.disconnect()


def test_a_silent_peer_is_an_error_after_the_deadline() -> None:
    release = threading.Event()

    def silent(frames: Iterator[owner_pb2.Frame]) -> Iterator[owner_pb2.Frame]:
        release.wait(600)
        return iter([])

    with owner_that(silent) as address:
        link = ClientLink(address, None, SESSION, 600)
        link.timeout = 0.2
        with pytest.raises(PeerLost, match="the owner sent nothing"):
            link.receive(1)
        release.set()
        link.disconnect()


def test_text_of_a_peer_is_made_fit_to_show() -> None:
    assert printable("a\x1b[0m\nb" + "c" * 1000) == "a [0m b" + "c" * 293
