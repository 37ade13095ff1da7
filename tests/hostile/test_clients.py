"""The owner before clients that misbehave."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from mpcache.parties.batch import Batch
from mpcache.parties.certificates import host_name
from mpcache.parties.client import Generation
from mpcache.parties.link import Link, last_word
from mpcache.parties.streams import AHEAD, ThreadedStream
from mpcache.policies import available_policies, policy_settings
from mpcache.protocols.errors import Busy, HandshakeError, MpcacheError, PeerLost
from mpcache.protocols.transport import Channel
from tests.asking import asking
from tests.hostile.client import CLIENTS, HostileClient, hello, message, request
from tests.hostile.identities import issued
from tests.hostile.servers import PROMPT, Servers, serving
from tests.mpcache.policies.matrix import fitting


def until(true: Callable[[], bool], what: str) -> None:
    """Wait for what other threads do; a slow machine is given minutes."""
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def serves_on(servers: Servers) -> bool:
    """Whether an honest client is welcome, with a certificate of its own."""
    client = HostileClient(servers.connection.owner, issued(servers.certificates, "client"))
    client.send(hello())
    welcome = client.hear() == "welcome"
    client.leave()
    return welcome


@pytest.mark.parametrize(("misbehave", "answer"), CLIENTS.values(), ids=CLIENTS)
def test_the_owner_answers_in_words_and_serves_on(
    servers: Servers, caplog: pytest.LogCaptureFixture, misbehave: Callable[[HostileClient], None], answer: str
) -> None:
    client = HostileClient(servers.connection.owner, servers.connection.identity)
    with caplog.at_level(logging.WARNING):
        misbehave(client)
        heard = client.hear()
        assert answer in heard
        assert "Traceback" not in caplog.text
    client.leave()
    assert serves_on(servers)


def test_every_refusal_is_logged_with_its_session(servers: Servers, caplog: pytest.LogCaptureFixture) -> None:
    client = HostileClient(servers.connection.owner, servers.connection.identity)
    with caplog.at_level(logging.INFO):
        client.send(hello(request=request(max_new_tokens=999)))
        client.hear()
        until(lambda: "refused client" in caplog.text, "the refusal is logged")
    assert "[00010203] refused client" in caplog.text and "allows 256 new tokens" in caplog.text
    client.leave()


def test_a_certificate_whose_name_is_no_dns_name_has_no_role(
    servers: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    name = host_name("client")
    mails = x509.RFC822Name(name), x509.RFC822Name(f"x@{name}")
    for other in (x509.UniformResourceIdentifier(name), *mails, x509.DNSName(f"x.{name}")):
        client = HostileClient(servers.connection.owner, issued(servers.certificates, "client", [other]))
        client.send(hello())
        assert "your certificate is not of the role client" in client.hear()
        client.leave()
    assert "its certificate is not of the role client" in caplog.text


# ---------------------------------------------------------------- places


def test_silence_takes_no_place(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As many silent connections as one certificate may have: others are served meanwhile."""
    limits = {"hello_seconds": 600.0, "max_sessions": 1, "max_sessions_per_client": 1}
    with serving(model, tmp_path, limits) as servers:
        identity = issued(servers.certificates, "client")
        silent = [HostileClient(servers.connection.owner, identity) for _ in range(4)]
        heard: queue.SimpleQueue[str] = queue.SimpleQueue()
        for client in silent:
            threading.Thread(target=lambda client=client: heard.put(client.hear()), daemon=True).start()  # type: ignore[misc]
        assert "allows 3 connections at a time for one certificate" in heard.get(timeout=600)
        assert "refused client" in caplog.text and "allows 3 connections" in caplog.text
        assert len(list(servers.client())) == 2, "an honest client is served"
        for client in silent:
            client.leave()


def test_silence_ends_soon(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, {"hello_seconds": 0.5}) as servers:
        client = HostileClient(servers.connection.owner, servers.connection.identity)
        assert "the client sent nothing for 0.5 seconds" in client.hear()
        client.leave()


def test_one_client_does_not_take_all_places(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, {"max_sessions": 3, "max_sessions_per_client": 1}) as servers:
        greedy = iter(servers.client(50))
        next(greedy)
        with pytest.raises(PeerLost, match="allows 1 sessions at a time for one certificate"):
            list(servers.client(1))
        assert len(list(servers.another_client())) == 2
        greedy.close()  # type: ignore[attr-defined]
        until(lambda: _served(servers), "the place is free again")


def _served(servers: Servers) -> bool:
    try:
        return bool(list(servers.client(1)))
    except PeerLost:
        return False


def test_all_places_taken_is_said(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, {"max_sessions": 1}) as servers:
        first = iter(servers.client(100))
        next(first)
        with pytest.raises(PeerLost, match="the owner serves 1 sessions already: try again later"):
            list(servers.another_client())
        first.close()  # type: ignore[attr-defined]


def endless(decoder: Any, plan: object, prompt: object, *others: object) -> Iterator[None]:
    """A program whose plan has no end."""
    while True:
        decoder.backend.mask(decoder.backend.zeros((1, 1, 1)))


def test_planning_ends_with_its_time_limit(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, {"planning_seconds": 0.5}, program=endless) as servers:
        client = HostileClient(servers.connection.owner, servers.connection.identity)
        client.send(hello())
        assert "planning this session takes longer than 0.5 seconds" in client.hear()
        client.leave()


def test_planning_ends_when_its_client_has_gone(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limits = {"planning_seconds": 3600.0, "max_sessions": 1}
    with caplog.at_level(logging.INFO), serving(model, tmp_path, limits, program=endless) as servers:
        client = HostileClient(servers.connection.owner, servers.connection.identity)
        client.send(hello())
        until(lambda: "begins" in caplog.text, "it plans")
        client.leave()
        until(lambda: "failed: " in caplog.text, "it stops planning")  # lost the client, or it closed the connection


def test_an_owner_restricts_policies_and_backends(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, {"policies": ("full", "streaming")}) as servers:
        for wanted, words in [
            (asking(PROMPT, 1, policy=policy_settings("h2o")), r"'h2o' \(allowed: full, streaming\)"),
            (asking(PROMPT, 1, backend="crypten"), r"'crypten' \(allowed: mpc\)"),
        ]:
            with pytest.raises(PeerLost, match=words):
                list(Generation(servers.connection, wanted))


# ---------------------------------------------------------------- messages


def test_what_comes_early_waits_at_its_sender(servers: Servers) -> None:
    """800 MB, sent ahead of all that is due: of them a few frames are taken in."""
    client = HostileClient(servers.connection.owner, servers.connection.identity)
    client.send(hello())
    frame = message(bytes(1 << 20), length=1 << 30)
    before = _memory()
    for _ in range(800):
        client.send(frame)  # always the same object: only what the owner takes in costs memory
    heard = client.hear()
    assert "where 1 and 1 were due" in (client.hear() if heard == "welcome" else heard)
    assert client.taken < 200, "the sender is held back"
    assert _memory() - before < 200 << 20
    client.leave()


def test_an_owner_allows_as_many_prompts_as_its_settings_say(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, {"max_batch": 2}) as servers:
        with pytest.raises(PeerLost, match="the owner allows 2 prompts in a batch, not 3"):
            list(Batch(servers.connection, [asking(PROMPT, 1)] * 3))
        assert len(list(Batch(servers.connection, [asking(PROMPT, 1)] * 2))) == 2


def _memory() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_a_link_reads_no_more_than_it_can_hold() -> None:
    stream, given = ThreadedStream(last_word("client")), 0

    def frames() -> Iterator[bytes]:
        nonlocal given
        for _ in range(10_000):
            given += 1
            yield message(b"x").SerializeToString()

    reader = threading.Thread(target=stream.feed, args=(frames(), "closed", str), daemon=True)
    reader.start()
    until(lambda: given == AHEAD + 1, "it reads until it is full")
    time.sleep(0.2)
    assert given == AHEAD + 1
    stream.finish()
    reader.join(600)
    assert given == 10_000, "and what comes after the end is dropped"
    assert stream._inbox.qsize() <= AHEAD + 1


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 5_000_000])
def test_a_message_travels_in_parts_of_a_megabyte(size: int) -> None:
    leaving, coming = ThreadedStream(last_word("owner")), ThreadedStream(last_word("client"))
    payload, sender = os.urandom(size), Link("client", "owner", bytes(16), 5.0, leaving)
    sender.send(payload)
    sender.close()
    frames = list(leaving.outgoing())
    assert max(map(len, frames)) < (1 << 20) + (1 << 12)
    threading.Thread(target=coming.feed, args=(iter(frames), "closed", str), daemon=True).start()
    assert Link("owner", "client", bytes(16), 5.0, coming).receive(size) == payload


@pytest.mark.parametrize("role", ["owner", "client", "dealer"])
def test_a_step_larger_than_a_role_allows_ends_the_session_in_words(model: Path, tmp_path: Path, role: str) -> None:
    limits = {role: {"max_step_gib": 1e-8}}  # 10 bytes
    with (
        serving(model, tmp_path, limits.get("owner"), limits.get("dealer")) as servers,
        pytest.raises(MpcacheError, match=r"a step of this computation takes .* GiB"),
    ):
        list(servers.client(1, **limits.get("client", {})))


class Random:
    """A channel on which only lengths are right."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def send(self, payload: bytes) -> None:
        self._channel.send(os.urandom(len(payload)))

    def receive(self, expected: int) -> bytes | bytearray | memoryview:
        return self._channel.receive(expected)


SMALL: dict[str, Any] = dict(budget=24, sinks=2, recent=4, clusters=(8, 4), page=4, window=8, cluster=2, called=1)


@pytest.mark.parametrize("name", available_policies())
def test_random_messages_spoil_the_answer_and_nothing_else(
    servers: Servers, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """A client whose every message is noise of the right length: the owner computes on, or ends it in words."""
    wanted = asking([(7 * i + 3) % 96 for i in range(40)], 3, policy=fitting(name, **SMALL))
    generation = Generation(servers.connection, wanted, transport=Random)
    try:
        assert len(list(generation)) <= 3
    except (PeerLost, HandshakeError, Busy) as error:
        assert "failed" not in str(error)
    assert "Traceback" not in caplog.text
    assert serves_on(servers)


def test_an_owner_that_sends_noise_spoils_the_answer_and_nothing_else(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, transport=Random) as servers:
        try:
            assert all(0 <= token < 96 for token in servers.client(3))
        except MpcacheError as error:
            assert "failed" not in str(error)
