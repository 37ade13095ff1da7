"""A session that is aborted, by whomever, leaves nothing behind: no thread, no connection, no half-written file; and
owner and dealer serve on. Servers and client run in one process here, so that all their threads show."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mpcache.generation.request import PROTOCOL_VERSION
from mpcache.parties import handshake
from mpcache.parties.certificates import load_identity, write_development_certificates
from mpcache.parties.client import Connection, Generation
from mpcache.parties.dealer import DealerServer
from mpcache.parties.dealer_link import DealerLink
from mpcache.parties.generated import dealer_pb2
from mpcache.parties.owner import OwnerServer
from mpcache.parties.settings import DealerSettings, OwnerSettings
from mpcache.parties.threads import session_threads
from mpcache.protocols.errors import ConfigError, MpcacheError, PeerLost, ProtocolError
from mpcache.protocols.randomness import KEY_BYTES
from mpcache.protocols.session import Session
from tests.asking import asking
from tests.end_to_end.test_generation import PROMPT

TIMEOUT = 600.0
"""Of every wait: what ends sooner than `ENDS_WITHIN` did not wait for it."""
ENDS_WITHIN = 120.0


@dataclass
class Servers:
    owner: OwnerServer
    dealer: DealerServer
    connection: Connection

    def client(self, new_tokens: int = 20, **changes: object) -> Generation:
        return Generation(replace(self.connection, **changes), asking(PROMPT, new_tokens))  # type: ignore[arg-type]


@contextmanager
def serving(model: Path, folder: Path) -> Iterator[Servers]:
    write_development_certificates(folder / "certificates")
    identities = {role: load_identity(folder / "certificates", role) for role in ("owner", "client", "dealer")}
    dealer = DealerServer(DealerSettings("127.0.0.1:0", timeout_seconds=TIMEOUT), identities["dealer"])
    own = {"state": folder / "owner-state", "timeout_seconds": TIMEOUT, "hello_seconds": TIMEOUT}
    settings = OwnerSettings("127.0.0.1:0", f"127.0.0.1:{dealer.port}", model, **own)  # type: ignore[arg-type]
    owner = OwnerServer(settings, identities["owner"])
    where = (f"127.0.0.1:{owner.port}", f"127.0.0.1:{dealer.port}")
    try:
        yield Servers(owner, dealer, Connection(*where, identities["client"], folder / "client-state", TIMEOUT))
    finally:
        owner.stop()
        dealer.stop()


@pytest.fixture(scope="module")
def servers(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with serving(model, tmp_path_factory.mktemp("servers")) as running:
        yield running


def assert_all_threads_end() -> None:
    """Those, too, that the last act of another one starts."""
    until = time.monotonic() + ENDS_WITHIN
    while (running := session_threads()) and time.monotonic() < until:
        time.sleep(0.01)
    assert not running, "threads of an aborted session are left"


def stops_early(servers: Servers) -> None:
    generation = iter(servers.client())
    next(generation)
    generation.close()  # type: ignore[attr-defined]


def fails_in_the_middle(servers: Servers) -> None:
    """The client's own code raises between two tokens."""

    def failing(session: Session) -> None:
        session._round = lambda requests: 1 // 0  # type: ignore[assignment,return-value]

    with pytest.raises(ZeroDivisionError):
        list(meddling(servers.client(), failing))


def meddling(generation: Generation, meddle: Callable[[Session], None]) -> Generation:
    """After the first token, in the session's own thread, which does not wait for who takes the tokens."""

    original = generation._steps

    def meddled(*arguments: Any) -> Iterator[int | None]:
        for token in original(*arguments):
            assert generation.session is not None
            meddle(generation.session)
            yield token

    generation._steps = meddled  # type: ignore[method-assign]
    return generation


def is_refused(servers: Servers) -> None:
    with pytest.raises(PeerLost, match="allows 256 new tokens"):
        list(servers.client(new_tokens=1000))


def finds_no_dealer(servers: Servers) -> None:
    with pytest.raises(PeerLost, match="dealer"):
        list(servers.client(dealer="127.0.0.1:9"))


def sends_a_short_message(servers: Servers) -> None:
    """The owner refuses it, and says so."""
    with pytest.raises(PeerLost, match=r"the owner ended the session: the client's message .* were due"):
        list(meddling(servers.client(), lambda session: session._channel.send(b"too short")))


def repeats_a_message(servers: Servers) -> None:
    def repeating(session: Session) -> None:
        session._channel._sent -= 1  # type: ignore[attr-defined]

    with pytest.raises(PeerLost, match=r"the client sent message .* was due"):
        list(meddling(servers.client(), repeating))


def hears_a_message_of_the_wrong_length(servers: Servers) -> None:
    def expecting(session: Session) -> None:
        channel = session._channel
        channel.receive = partial(_expecting_more, channel.receive)  # type: ignore[method-assign]

    with pytest.raises(ProtocolError, match="the owner's message"):
        list(meddling(servers.client(), expecting))


def _expecting_more(receive: Callable[[int], object], expected: int) -> object:
    return receive(expected + 1)


ENDINGS = [
    stops_early,
    fails_in_the_middle,
    is_refused,
    finds_no_dealer,
    sends_a_short_message,
    repeats_a_message,
    hears_a_message_of_the_wrong_length,
]


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
def test_nothing_is_left_of_an_aborted_session(servers: Servers, ending: Callable[[Servers], None]) -> None:
    ending(servers)
    assert_all_threads_end()
    assert len(list(servers.client(new_tokens=2))) == 2, "owner and dealer serve on"
    assert_all_threads_end()


@pytest.mark.parametrize("victim", ["owner", "dealer"])
def test_nothing_is_left_when_a_server_stops_mid_generation(model: Path, tmp_path: Path, victim: str) -> None:
    with serving(model, tmp_path) as servers:
        generation = iter(servers.client(new_tokens=100))
        next(generation)
        getattr(servers, victim).stop()
        with pytest.raises(PeerLost, match=f"the {victim}"):
            for _ in generation:
                pass
        assert_all_threads_end()


def test_a_party_that_waits_at_the_dealer_hears_that_the_other_left(servers: Servers) -> None:
    identity = servers.connection.identity
    request = dealer_pb2.DealRequest(
        protocol_version=PROTOCOL_VERSION, role="client", session=bytes(16), seed=bytes(KEY_BYTES)
    )
    lost = threading.Event()

    def check_peer() -> None:
        if lost.is_set():
            raise PeerLost("lost the owner")

    link = DealerLink(servers.connection.dealer, identity, request, TIMEOUT)
    lost.set()
    with pytest.raises(PeerLost, match="lost the owner"):
        link.wait_started(check_peer)
    link.close()
    assert_all_threads_end()


def test_masked_weights_that_cannot_be_kept_leave_no_half_of_them(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("mpcache.parties.weights.save_file", full_disk)
    with pytest.raises(ConfigError, match=r"cannot be kept in .*No space left"):
        list(servers.client(state=tmp_path))
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    assert_all_threads_end()


def test_masked_weights_that_do_not_all_arrive_are_not_kept(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = handshake.unpack
    calls: list[int] = []

    def broken(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise PeerLost("lost the owner")
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(handshake, "unpack", broken)
    with pytest.raises(MpcacheError, match="lost the owner"):
        list(servers.client(state=tmp_path))
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    assert_all_threads_end()
