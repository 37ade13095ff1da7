"""The client before owners that misbehave."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpcache.parties.client import Generation
from mpcache.parties.generated import owner_pb2
from mpcache.parties.link import Frame
from mpcache.parties.planning import planning_check
from mpcache.parties.threads import session_threads
from mpcache.protocols.errors import MpcacheError
from tests.asking import asking
from tests.hostile.identities import issued
from tests.hostile.owner import OWNERS, Answers, evil, owner_that, welcome, welcoming
from tests.hostile.servers import PROMPT, Servers

REQUEST = asking(PROMPT, 2, vocabulary=96)


@pytest.mark.parametrize(("answers", "words"), OWNERS.values(), ids=OWNERS)
def test_the_client_ends_in_words(
    servers: Servers, tmp_path: Path, caplog: pytest.LogCaptureFixture, answers: Answers, words: str
) -> None:
    with owner_that(answers, issued(servers.certificates, "owner")) as address:
        connection = replace(servers.connection, owner=address, state=tmp_path / "state")
        with pytest.raises(MpcacheError, match=words) as error:
            list(Generation(connection, REQUEST))
    assert len(str(error.value)) < 600 and str(error.value).isprintable()
    assert "Traceback" not in caplog.text
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "nothing is kept of it"


def test_a_digest_writes_no_file_of_the_owners_choosing(servers: Servers, tmp_path: Path) -> None:
    """Not beside the state, not above it, not anywhere, though all weights come: only the dealer is not there."""
    target = tmp_path / "victim.safetensors"
    target.write_text("mine")
    for digest in (str(tmp_path / "victim"), "../../victim", "../victim"):
        with owner_that(evil(model_digest=digest), issued(servers.certificates, "owner")) as address:
            connection = replace(servers.connection, owner=address, dealer="127.0.0.1:9", state=tmp_path / "state")
            with pytest.raises(MpcacheError):
                list(Generation(connection, REQUEST))
    assert target.read_text() == "mine"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [target]


@pytest.mark.parametrize("prompt", [[1, 2, 3], [1, 95, 3]])
def test_a_smaller_vocabulary_tells_nothing_of_the_prompt(servers: Servers, tmp_path: Path, prompt: list[int]) -> None:
    """The client refuses it by its tokenizer, before it looks at the prompt: whatever the prompt is."""
    smaller, _ = OWNERS["a vocabulary smaller than the tokenizer's"]
    with owner_that(smaller, issued(servers.certificates, "owner")) as address:
        connection = replace(servers.connection, owner=address, state=tmp_path)
        with pytest.raises(MpcacheError) as error:
            list(Generation(connection, REQUEST.with_prompt(prompt)))
    assert str(error.value) == "the tokenizer does not fit the owner's model: it has tokens beyond its vocabulary of 95"


def test_a_silent_owner_is_an_error_after_the_time_out(servers: Servers, tmp_path: Path) -> None:
    release = threading.Event()

    def silent(hello: object) -> object:
        release.wait(120)
        return iter([])

    with owner_that(silent, issued(servers.certificates, "owner")) as address:  # type: ignore[arg-type]
        connection = replace(servers.connection, owner=address, state=tmp_path, timeout=1.0)
        with pytest.raises(MpcacheError, match=r"(sent|said) nothing for 1 seconds"):
            list(Generation(connection, REQUEST))
        release.set()


def planning(decoder: Any, plan: object, prompt: object, *others: object) -> Iterator[None]:
    """A program whose plan has no end that is waited for."""
    deadline = time.monotonic() + 300
    while True:
        decoder.backend.mask(decoder.backend.zeros((1, 1, 1)))
        assert time.monotonic() < deadline, "it plans on"


def test_planning_ends_when_the_owner_has_gone(servers: Servers, tmp_path: Path) -> None:
    def leaving(hello: owner_pb2.Hello) -> Iterator[owner_pb2.Frame]:
        yield welcome(hello)
        yield Frame(abort=owner_pb2.Abort(reason="gone"))

    with owner_that(leaving, issued(servers.certificates, "owner")) as address:
        connection = replace(servers.connection, owner=address, state=tmp_path)
        with pytest.raises(MpcacheError, match="the owner ended the session: gone"):
            list(Generation(connection, REQUEST, program=planning))


def test_planning_ends_with_its_time_limit(servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of every wait, which is shortened for planning alone: a slow machine is given its time until then."""

    def sooner(seconds: float, check_peer: Callable[[], None]) -> Callable[[], None]:
        return planning_check(seconds / 1200, check_peer)

    monkeypatch.setattr("mpcache.parties.handshake.planning_check", sooner)
    with owner_that(welcoming(), issued(servers.certificates, "owner")) as address:
        connection = replace(servers.connection, owner=address, state=tmp_path)
        with pytest.raises(MpcacheError, match=r"planning this session takes longer than 0\.5 seconds"):
            list(Generation(connection, REQUEST, program=planning))


def test_a_client_that_gives_up_leaves_no_thread(servers: Servers, tmp_path: Path) -> None:
    release = threading.Event()

    def stopping(hello: object) -> object:
        yield welcome(hello)  # type: ignore[arg-type]
        release.wait(120)

    with owner_that(stopping, issued(servers.certificates, "owner")) as address:  # type: ignore[arg-type]
        connection = replace(servers.connection, owner=address, state=tmp_path, timeout=1.0)
        with pytest.raises(MpcacheError, match=r"(sent|said) nothing"):
            list(Generation(connection, REQUEST))
        release.set()
    for thread in session_threads():
        thread.join(600)
    assert not session_threads()
