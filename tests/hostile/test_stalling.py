"""Peers that say nothing, or take nothing: they keep no thread, place or memory for longer than they are given."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from mpcache.generation.request import PROTOCOL_VERSION, GenerationRequest
from mpcache.parties import dealer as dealing
from mpcache.parties.certificates import Identity, host_name
from mpcache.parties.chunks import BoundedChunks
from mpcache.parties.generated import dealer_pb2, owner_pb2
from mpcache.parties.link import ClientLink, Frame, Link, last_word
from mpcache.parties.streams import AHEAD, ThreadedStream
from mpcache.parties.tls import _options, _server_certificate
from mpcache.protocols.errors import PeerLost
from tests.hostile.client import hello, request
from tests.hostile.dealer import request as deal_request
from tests.hostile.identities import issued
from tests.hostile.servers import PATIENT, Servers, serving
from tests.hostile.test_clients import until

NO_WINDOW = [("grpc.http2.lookahead_bytes", 0), ("grpc.http2.bdp_probe", 0)]
"""A client that lets its peer send as little as HTTP/2 can, and reads nothing."""


@contextmanager
def stalled(address: str, identity: Identity, role: str, count: int) -> Iterator[list[grpc.Call]]:
    """So many calls to a role that neither say nor take a word."""
    method = {"owner": "/mpcache.v1.Owner/Converse", "dealer": "/mpcache.v1.Dealer/Deal"}[role]
    there = _server_certificate(address, identity, role, 60)
    credentials = grpc.ssl_channel_credentials(there, identity.key, identity.certificate)
    options = [*_options(60), *NO_WINDOW, ("grpc.ssl_target_name_override", host_name(role))]
    release = threading.Event()

    def nothing() -> Iterator[bytes]:
        release.wait(600)
        yield from ()

    with grpc.secure_channel(address, credentials, options) as channel:
        calls = [channel.stream_stream(method)(nothing()) for _ in range(count)]
        yield calls
        release.set()
        for call in calls:
            call.cancel()


@pytest.mark.parametrize("role", ["owner", "dealer"])
@pytest.mark.parametrize("name", ["client", "nobody"])
def test_calls_that_say_and_take_nothing_keep_nobody_waiting(model: Path, tmp_path: Path, role: str, name: str) -> None:
    """More of them than there are workers, of one certificate, whatever its role is."""
    one = {"max_sessions": 1, "hello_seconds": 1.0}
    with serving(model, tmp_path, one, one) as servers:
        identity = issued(servers.certificates, "client", [x509.DNSName(host_name(name))])
        with stalled(getattr(servers.connection, role), identity, role, 40) as calls:
            until(lambda: all(call.done() for call in calls), "each ends by itself")
            assert len(list(servers.client())) == 2


def test_a_client_that_takes_no_corrections_keeps_no_session(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Though the owner has gone, and the dealer waits for it to take what was made."""
    dealer = {"max_sessions": 1, "memory_mib": 1}
    with caplog.at_level(logging.INFO), serving(model, tmp_path, dealer_settings=dealer) as servers:
        identity = issued(servers.certificates, "client")
        link = ClientLink(servers.connection.owner, identity, os.urandom(16), 600)
        wanted = request(max_new_tokens=100)
        link.put(hello(session=link.session, request=wanted))
        welcome = link.next_frame().welcome
        link.send(b"\x00")
        deal = dealer_pb2.DealRequest(
            protocol_version=PROTOCOL_VERSION,
            role="client",
            session=link.session,
            model=welcome.model,
            request=GenerationRequest.from_json(wanted).to_json(),
            plan_digest=welcome.plan_digest,
            seed=bytes(16),
        )
        with taking_nothing(servers, identity, deal) as call:
            until(lambda: caplog.text.count("has come") == 2, "both are at the dealer")
            link.disconnect()
            until(lambda: "session ends: the owner left" in caplog.text, "the owner leaves")
            until(call.done, "the dealer ends the call")
            assert len(list(servers.client())) == 2


@contextmanager
def taking_nothing(servers: Servers, identity: Identity, request: dealer_pb2.DealRequest) -> Iterator[grpc.Call]:
    address = servers.connection.dealer
    there = _server_certificate(address, identity, "dealer", 60)
    credentials = grpc.ssl_channel_credentials(there, identity.key, identity.certificate)
    options = [*_options(60), *NO_WINDOW, ("grpc.ssl_target_name_override", host_name("dealer"))]
    with grpc.secure_channel(address, credentials, options) as channel:
        method = channel.stream_stream(
            "/mpcache.v1.Dealer/Deal", request_serializer=dealer_pb2.DealRequest.SerializeToString
        )
        call = method(iter([request]))
        yield call
        call.cancel()


@pytest.mark.parametrize("takes", [0, 1])
def test_two_parties_that_take_nothing_are_given_up(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, takes: int
) -> None:
    """Neither the beginning nor, after it, a correction; and the owner does not mind."""
    monkeypatch.setattr(dealing, "PATIENCE", 1.0 / PATIENT)
    owner, client = (issued(servers.certificates, role) for role in ("owner", "client"))
    with (
        taking_nothing(servers, owner, deal_request("owner")) as first,
        taking_nothing(servers, client, deal_request("client")) as second,
    ):
        for _ in range(takes):
            next(second)  # type: ignore[call-overload]
        until(lambda: first.done() and second.done(), "the dealer ends both calls")
    assert len(list(servers.client())) == 2


def test_corrections_that_nobody_takes_end_the_session() -> None:
    chunks = BoundedChunks(10)
    assert chunks.put(bytes(10), 600)
    with pytest.raises(PeerLost, match=r"took no corrections for 0\.1 seconds"):
        chunks.put(b"x", 0.1)
    with pytest.raises(PeerLost, match="took no corrections"):
        chunks.finish(0.1)
    chunks.close()
    chunks.finish(600)
    assert not chunks.put(b"x", 600)


def test_a_peer_that_takes_no_messages_lets_few_of_them_wait() -> None:
    """Though it sends all that is due: what it does not take would else fill this process' memory."""
    stream = ThreadedStream(last_word("client"))
    link = Link("owner", "client", bytes(16), 0.1, stream)
    with pytest.raises(PeerLost, match=r"the client took nothing for 0\.1 seconds"):
        for _ in range(1000):
            link.send(b"x")
    assert stream.waiting() == AHEAD + 1
    with pytest.raises(PeerLost, match="took nothing"):
        link.send(b"x")


def test_messages_that_a_peer_takes_one_by_one_all_leave() -> None:
    stream, taken = ThreadedStream(last_word("client")), 0
    link = Link("owner", "client", bytes(16), 600.0, stream)

    def take() -> None:
        nonlocal taken
        for _ in stream.outgoing():
            taken += 1
            assert stream.waiting() <= AHEAD + 5, "those before the message, and its own parts"

    peer = threading.Thread(target=take, daemon=True)
    peer.start()
    for _ in range(20):
        link.send(bytes((4 << 20) + 1))
    link.close()
    peer.join(600)
    assert taken == 100


def test_a_peer_that_aborts_again_and_again_is_heard_once() -> None:
    stream, given = ThreadedStream(last_word("client")), 0
    link = Link("owner", "client", bytes(16), 5.0, stream)

    def aborts() -> Iterator[bytes]:
        nonlocal given
        while True:
            given += 1
            yield Frame(abort=owner_pb2.Abort(reason="x" * 200)).SerializeToString()

    stream.feed(aborts(), "closed", str)
    stream.end("and its connection broke")
    assert given == 1 and stream._inbox.qsize() == 1
    with pytest.raises(PeerLost, match="the client ended the session: x"):
        link.receive(1)
