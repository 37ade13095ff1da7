"""Sessions on a network that misbehaves."""

from __future__ import annotations

import time
from threading import Thread

import pytest

from mpcache.protocols.errors import PeerLost
from tests.hostile.proxy import Proxy, proxied
from tests.hostile.servers import PATIENT, Servers
from tests.hostile.test_clients import until

OUTAGE = 30.0
"""Longer than two intervals of keepalive and the 5 seconds that it once had, shorter than the parties' time-out."""
IN_THE_MIDDLE = 300_000
"""Bytes from a peer after which an outage begins: more than a handshake, and far less than 30 tokens take."""


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["owner", "dealer"])
def test_an_outage_shorter_than_the_time_out_ends_no_session(servers: Servers, peer: str) -> None:
    with proxied(getattr(servers.connection, peer), hold_after=IN_THE_MIDDLE) as proxy:
        tokens: list[int] = []
        reader = Thread(target=lambda: tokens.extend(servers.client(30, **{peer: proxy.address})))
        reader.start()
        assert proxy.held.wait(PATIENT)
        time.sleep(OUTAGE)
        assert reader.is_alive(), "the outage came too late to be felt"
        proxy.release()
        reader.join(PATIENT)
        assert len(tokens) == 30


def test_an_outage_longer_than_the_time_out_is_named(servers: Servers) -> None:
    with proxied(servers.connection.owner) as proxy:
        generation = servers.client(100, owner=proxy.address)
        tokens = iter(generation)
        next(tokens)
        proxy.hold()
        assert generation._links.owner is not None
        generation._links.owner.timeout = 1.0  # only now: a slow machine is given its time until here
        with pytest.raises(PeerLost, match=r"the owner sent nothing for 1 seconds"):
            list(tokens)


def _cut_in_the_middle(servers: Servers, proxy: Proxy) -> str:
    generation = iter(servers.client(100, owner=proxy.address))
    next(generation)
    proxy.cut()
    with pytest.raises(PeerLost) as error:
        list(generation)
    return str(error.value)


def test_what_is_said_of_a_broken_connection_is_what_broke_it(servers: Servers) -> None:
    """Not what a new connection finds, which comes about: the owner is there."""
    with proxied(servers.connection.owner) as proxy:
        said = _cut_in_the_middle(servers, proxy)
    assert said.startswith(f"lost the owner at {proxy.address}") and "refused" not in said


def test_an_address_where_nobody_is_is_said(servers: Servers) -> None:
    with pytest.raises(PeerLost, match=r"nothing answers at 127\.0\.0\.1:9 .*is the owner running there"):
        list(servers.client(owner="127.0.0.1:9"))


@pytest.mark.parametrize("address", ["a" * 300 + ":1", "..:1"])
def test_a_name_that_is_none_is_said(servers: Servers, address: str) -> None:
    with pytest.raises(PeerLost, match="nothing answers at"):
        list(servers.client(owner=address))


def test_no_session_goes_through_a_proxy_of_the_environment(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC would tunnel what the first handshake does not; and in plaintext, which is for loopback alone."""
    for name in ("https_proxy", "http_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert len(list(servers.client())) == 2


@pytest.mark.parametrize("lost", ["dealer", "dealer in the middle"])
def test_a_peer_is_not_told_where_another_is(servers: Servers, caplog: pytest.LogCaptureFixture, lost: str) -> None:
    with proxied(servers.connection.dealer) as proxy:
        address = "127.0.0.1:9" if lost == "dealer" else proxy.address
        generation = iter(servers.client(100, dealer=address))
        with pytest.raises(PeerLost, match=address):
            next(generation)
            proxy.cut()
            list(generation)
    until(lambda: "failed: the client ended" in caplog.text, "the owner hears of it")
    assert address not in "".join(r.getMessage() for r in caplog.records if r.name == "mpcache.owner")
