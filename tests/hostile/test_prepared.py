"""Prepared sessions before peers that misbehave, and disks that do. A session that cannot be handed over from disk
gives way to an ordinary one; what was handed over once never is again."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpcache.generation.plan import phase_costs
from mpcache.model.config_file import read_model_config
from mpcache.parties import dealer as dealing
from mpcache.parties import making
from mpcache.parties.agreement import Agreement, Party
from mpcache.parties.certificates import Identity, load_identity
from mpcache.parties.dealer_link import DealerLink
from mpcache.parties.generated import dealer_pb2, purpose_pb2
from mpcache.parties.prepared import OVERHEAD_BYTES
from mpcache.protocols.errors import MpcacheError
from mpcache.protocols.session import Cost
from tests.asking import asked
from tests.hostile.client import SESSION, HostileClient, hello
from tests.hostile.dealer import HostileParty, dealer_that, request
from tests.hostile.identities import issued
from tests.hostile.servers import PROMPT, Servers, serving
from tests.hostile.test_clients import until

Corrections, Failure = dealer_pb2.Corrections, dealer_pb2.Failure
PREPARE, PREPARED = purpose_pb2.PREPARE, purpose_pb2.PREPARED
PREPARING = {"prepare": True}


@pytest.fixture(scope="module")
def servers(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with serving(model, tmp_path_factory.mktemp("prepared"), PREPARING, PREPARING) as running:
        yield running


def folder(servers: Servers, role: str) -> Path:
    return servers.connection.state.parent / f"{role}-state" / "prepared"


def on_disk(servers: Servers) -> list[Path]:
    return sorted(folder(servers, "dealer").glob("*.*"))


@pytest.fixture(autouse=True)
def nothing_is_left(servers: Servers) -> Iterator[None]:
    """A test's files do not serve the next one."""
    yield
    for role in ("owner", "client"):
        for path in folder(servers, role).glob("*"):
            path.unlink()
    for path in on_disk(servers):
        path.unlink()
    store = servers.dealer._store
    assert store is not None
    store._entries.clear()


def test_a_prepared_session_gives_the_same_for_the_same_bytes_and_nothing_is_made(
    servers: Servers, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordinary = servers.client(3)
    answer = list(ordinary)
    servers.prepare(3)
    [path] = on_disk(servers)
    planned = sum(phase_costs(read_model_config(model), asked(len(PROMPT), 3)), Cost())
    assert path.stat().st_size == planned.correction_bytes + OVERHEAD_BYTES
    for module, name in (
        (making, "Dealer"),
        (making, "corrections"),
        (dealing, "correlations"),
        (dealing, "plan_digest"),
    ):
        monkeypatch.delattr(module, name)
    prepared = servers.client(3)
    assert list(prepared) == answer and prepared.prepared and not ordinary.prepared
    assert ordinary.meter is not None and prepared.meter is not None
    assert (prepared.meter.prefill.cost, prepared.meter.decode.cost) == (
        ordinary.meter.prefill.cost,
        ordinary.meter.decode.cost,
    )
    assert not on_disk(servers) and not any(any(folder(servers, role).iterdir()) for role in ("owner", "client"))


def test_each_is_used_once_and_then_sessions_are_ordinary(servers: Servers) -> None:
    servers.prepare(1)
    servers.prepare(1)
    generations = [servers.client(1) for _ in range(3)]
    assert len({tuple(generation) for generation in generations}) == 1
    assert [generation.prepared for generation in generations] == [True, True, False]


def test_another_request_leaves_it_there(servers: Servers) -> None:
    servers.prepare(2)
    other = servers.client(1)
    assert list(other) and not other.prepared
    fitting = servers.client(2)
    assert list(fitting) and fitting.prepared


def test_what_is_on_the_dealers_disk_holds_no_seed_and_no_key(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dealer_pb2.DealRequest] = []
    original = dealing._check_request

    def noted(role: str, wanted: dealer_pb2.DealRequest) -> None:
        seen.append(wanted)
        original(role, wanted)

    monkeypatch.setattr(dealing, "_check_request", noted)
    servers.prepare(1)
    secrets = [secret for wanted in seen for secret in (wanted.seed, wanted.weight_key) if secret]
    assert len(secrets) == 3
    [path] = on_disk(servers)
    for secret in secrets:
        assert secret not in path.read_bytes() and secret.hex().encode() not in path.read_bytes()
    seen.clear()
    assert list(servers.client(1))
    assert len(seen) == 2 and not any(wanted.seed or wanted.weight_key for wanted in seen), "nor is it told any again"


def test_files_are_the_users_alone(servers: Servers) -> None:
    servers.prepare(1)
    files = [*on_disk(servers), *folder(servers, "owner").iterdir(), *folder(servers, "client").iterdir()]
    assert len(files) == 3 and all(path.stat().st_mode & 0o077 == 0 for path in files)
    assert list(servers.client(1))


# ---------------------------------------------------------------- clients


def heard_for(servers: Servers, identity: Identity | None, **changes: Any) -> tuple[HostileClient, Any]:
    """A client, and the owner's welcome of it."""
    client = HostileClient(servers.connection.owner, identity)
    client.send(hello(**changes))
    return client, next(client._incoming).welcome


def test_the_same_id_is_welcome_once(servers: Servers) -> None:
    session, wanted = servers.prepare(2), asked(len(PROMPT), 2).to_json()
    answers = []
    for _ in range(2):
        changes = {"session": session, "request": wanted, "purpose": PREPARED}
        client, welcome = heard_for(servers, servers.connection.identity, **changes)
        answers.append(welcome.prepared)
        client.leave()
    assert answers == [True, False]


def test_an_id_of_another_client_or_request_is_not_welcome_and_stays_whose_it_is(servers: Servers) -> None:
    session, wanted = servers.prepare(2), asked(len(PROMPT), 2).to_json()
    own, other = servers.connection.identity, issued(servers.certificates, "client")
    for identity, text in ((other, wanted), (own, asked(len(PROMPT), 1).to_json())):
        client, welcome = heard_for(servers, identity, session=session, request=text, purpose=PREPARED)
        assert not welcome.prepared
        client.leave()
    generation = servers.client(2)
    assert list(generation) and generation.prepared


CLIENTS: dict[str, tuple[dict[str, Any], str]] = {
    "a purpose that there is not": ({"purpose": 7}, "for a purpose that there is not"),
    "4 billion tokens, prepared": (
        {"purpose": PREPARE, "request": asked(2**32, 1).to_json()},
        "the owner allows 2048 prompt tokens",
    ),
    "an id that is a path": ({"purpose": PREPARE, "session": b"../../etc/passwd"}, "welcome"),
}


@pytest.mark.parametrize(("changes", "words"), CLIENTS.values(), ids=CLIENTS)
def test_the_owner_answers_in_words(servers: Servers, changes: dict[str, Any], words: str) -> None:
    client = HostileClient(servers.connection.owner, servers.connection.identity)
    client.send(hello(**changes))
    assert words in client.hear()
    client.leave()


def test_no_name_of_a_file_leaves_the_folder(servers: Servers, tmp_path: Path) -> None:
    """16 bytes may be any: the file's name is their digits."""
    session = b"/../../../../a.b"
    for purpose, expected in ((PREPARE, "ended"), (PREPARED, "ended")):
        heard = both(servers, purpose, session)
        assert heard == [expected, expected]
        if purpose == PREPARE:
            assert [path.name for path in on_disk(servers)] == [f"{session.hex()}.corrections"]
    assert not on_disk(servers)


def test_too_many_are_refused_before_they_are_planned(model: Path, tmp_path: Path) -> None:
    limits = {**PREPARING, "max_prepared_sessions_per_client": 1, "max_prepared_sessions": 2}
    with serving(model, tmp_path, limits, PREPARING) as servers:
        servers.prepare(1)
        with pytest.raises(MpcacheError, match="1 prepared sessions are kept at most for a client"):
            servers.prepare(1)
        for words in (None, "2 prepared sessions are kept at most in all"):
            other = {"identity": issued(servers.certificates, "client"), "state": tmp_path / f"{words}"}
            if words is None:
                servers.prepare(1, **other)
            else:
                with pytest.raises(MpcacheError, match=words):
                    servers.prepare(1, **other)


def test_nothing_is_prepared_where_settings_do_not_say_so(model: Path, tmp_path: Path) -> None:
    for owner, dealer, role in (({}, PREPARING, "owner"), (PREPARING, {}, "dealer")):
        with serving(model, tmp_path / role, owner, dealer) as servers:
            with pytest.raises(MpcacheError, match=f"the {role} prepares no sessions"):
                servers.prepare(1)
            assert list(servers.client(1))


# ---------------------------------------------------------------- the dealer's parties


def party(servers: Servers, role: str, identity: Identity | None = None, **changes: Any) -> HostileParty:
    own = identity or load_identity(servers.certificates, role)
    return HostileParty(servers.connection.dealer, own, request(role, **changes))


def both(servers: Servers, purpose: Any, session: bytes = SESSION, **changes: Any) -> list[str]:
    """What the dealer answers an owner and a client who come for this."""
    parties = [party(servers, role, purpose=purpose, session=session, **changes) for role in ("owner", "client")]
    heard = [each.hear() for each in reversed(parties)]  # the client's first: it must take what it is sent
    for each in parties:
        each.leave()
    return heard


NONE = "the dealer has no such prepared session"


def test_the_dealer_hands_the_same_id_over_once(servers: Servers) -> None:
    assert both(servers, PREPARE) == ["ended", "ended"]
    data = on_disk(servers)[0].read_bytes()
    owner, client = (party(servers, role, purpose=PREPARED) for role in ("owner", "client"))
    assert [owner.hear(), client.hear()] == ["ended", "ended"]
    assert client.received == data[512:-32] and not owner.received
    assert both(servers, PREPARED) == [NONE, NONE]


def test_an_id_is_prepared_once_at_a_time(servers: Servers) -> None:
    assert both(servers, PREPARE) == ["ended", "ended"]
    again = both(servers, PREPARE)
    assert all("has a prepared session of this id already" in answer for answer in again)
    assert both(servers, PREPARED) == ["ended", "ended"]


def test_another_client_owner_or_request_gets_nothing_and_spoils_nothing(servers: Servers) -> None:
    assert both(servers, PREPARE) == ["ended", "ended"]
    for role in ("owner", "client"):
        identities = {role: issued(servers.certificates, role)}
        parties = [party(servers, r, identities.get(r), purpose=PREPARED) for r in ("owner", "client")]
        assert [each.hear() for each in parties] == [NONE, NONE] and not parties[1].received
    assert both(servers, PREPARED, plan_digest="0" * 64) == [NONE, NONE]
    assert both(servers, PREPARED) == ["ended", "ended"]


REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "a purpose that there is not": ({"purpose": 7}, "for a purpose that there is not"),
    "a seed for a prepared session": ({"purpose": PREPARED, "seed": bytes(16)}, "not of its length"),
    "a weight key for a prepared session": ({"purpose": PREPARED, "weight_key": bytes(16)}, "not of its length"),
    "no seed to prepare with": ({"purpose": PREPARE, "seed": b""}, "not of its length"),
    "another plan to prepare": ({"purpose": PREPARE, "plan_digest": "0" * 64}, "the dealer's plan differs"),
    "too much to prepare": ({"purpose": PREPARE, "request": asked(2**32, 1).to_json()}, "allows 4096 prompt tokens"),
    "an id that nobody prepared": ({"purpose": PREPARED, "session": os.urandom(16)}, NONE),
}


@pytest.mark.parametrize(("changes", "words"), REQUESTS.values(), ids=REQUESTS)
def test_the_dealer_answers_in_words(
    servers: Servers, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], words: str
) -> None:
    assert all(words in answer for answer in both(servers, **changes)), words
    assert "Traceback" not in caplog.text and not on_disk(servers)


def test_a_party_that_leaves_while_it_is_prepared_leaves_no_file(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, go_on = making.corrections, threading.Event()

    def held_up(*arguments: Any) -> Iterator[bytes]:
        for data in original(*arguments):
            yield data
            go_on.wait(600)

    monkeypatch.setattr(making, "corrections", held_up)
    owner, client = (party(servers, role, purpose=PREPARE) for role in ("owner", "client"))
    until(lambda: bool(on_disk(servers)), "it writes")
    client.leave()
    assert "the client left" in owner.hear()
    go_on.set()
    until(lambda: not on_disk(servers), "what was half-written is gone")


# ---------------------------------------------------------------- disks


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit is flipped": flipped,
    "the file is cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "the file is empty": lambda path: path.write_bytes(b""),
    "the file is gone": lambda path: path.unlink(),
    "it says to be for something else": lambda path: path.write_bytes(path.read_bytes().replace(b'"a', b'"b')),
    "its head is no JSON": lambda path: path.write_bytes(b"\xff" * 600),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_not_used_and_an_ordinary_session_takes_its_place(
    servers: Servers, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object]
) -> None:
    expected = list(servers.client(2))
    servers.prepare(2)
    [path] = on_disk(servers)
    damage(path)
    with caplog.at_level(logging.WARNING):
        generation = servers.client(2)
        assert list(generation) == expected and not generation.prepared
    assert "the dealer has no such prepared session: it makes the corrections now" in caplog.text


@pytest.mark.parametrize("role", ["owner", "client"])
def test_a_seed_that_is_gone_or_damaged_gives_an_ordinary_session(servers: Servers, role: str) -> None:
    for damage in (lambda path: path.unlink(), lambda path: path.write_text("{"), lambda path: path.write_text("")):
        servers.prepare(1)
        [path] = folder(servers, role).iterdir()
        damage(path)
        generation = servers.client(1)
        assert list(generation) and not generation.prepared
        for rest in [*folder(servers, "owner").iterdir(), *folder(servers, "client").iterdir()]:
            rest.unlink()


@pytest.mark.parametrize("role", ["owner", "dealer"])
def test_an_old_one_is_deleted_and_not_used(model: Path, tmp_path: Path, role: str) -> None:
    aged = {role: {"prepared_hours": 1e-9}}
    with serving(model, tmp_path, *({**PREPARING, **aged.get(r, {})} for r in ("owner", "dealer"))) as servers:
        servers.prepare(1)
        generation = servers.client(1)
        assert list(generation) and not generation.prepared


def test_a_clients_old_seed_is_not_offered(servers: Servers) -> None:
    servers.prepare(1)
    generation = servers.client(1, prepared_hours=1e-9)
    assert list(generation) and not generation.prepared
    assert not list(folder(servers, "client").iterdir())


@pytest.mark.parametrize("limit", ["max_prepared_gib", "max_prepared_gib_per_client"])
def test_a_full_quota_is_refused_in_words_and_leaves_no_file(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """Half of the room that one session takes; then as good as none, which is known before anything is planned."""
    with serving(model, tmp_path / "measured", PREPARING, PREPARING) as servers:
        servers.prepare(1)
        size = on_disk(servers)[0].stat().st_size
    with serving(model, tmp_path / "half", PREPARING, {**PREPARING, limit: 1.5 * size / 2**30}) as servers:
        servers.prepare(1)
        with pytest.raises(MpcacheError, match=r"GiB of prepared sessions .* does not fit beside those that are there"):
            servers.prepare(1)
        assert len(on_disk(servers)) == 1 and len(list(folder(servers, "client").iterdir())) == 1
        assert list(servers.client(1))
    with serving(model, tmp_path / "none", PREPARING, {**PREPARING, limit: 1e-10}) as servers:
        monkeypatch.delattr(dealing, "plan_digest")
        with pytest.raises(MpcacheError, match="does not fit"):
            servers.prepare(1)
        assert not on_disk(servers)


def test_a_full_disk_is_said_and_leaves_no_file(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mpcache.files.os.fsync", full)
    with pytest.raises(MpcacheError, match=r"the dealer's disk takes no more prepared sessions now \(No space left"):
        servers.prepare(1)
    assert not on_disk(servers)


def test_a_dealer_that_says_nothing_has_prepared_nothing(servers: Servers, model: Path, tmp_path: Path) -> None:
    with dealer_that(lambda wanted: iter([]), issued(servers.certificates, "dealer")) as address:
        where = replace(servers.connection, dealer=address)
        with pytest.raises(MpcacheError, match=r"the dealer ended without a word|the owner ended the session"):
            servers.prepare(1, **{"dealer": where.dealer})
    assert not list(folder(servers, "client").glob("*"))


@pytest.mark.parametrize(
    "before", [[], [Corrections(chunk=bytes(100)), Corrections(progress=5)]], ids=["at once", "late"]
)
@pytest.mark.parametrize("role", ["owner", "client"])
def test_what_a_dealer_says_of_a_prepared_session_gets_no_seed_used_twice(
    servers: Servers, model: Path, role: str, before: list[dealer_pb2.Corrections]
) -> None:
    """It may refuse one party alone, and after it sent something: the ordinary session has a seed of its own each
    time, and of the prepared one the dealer is sent nothing."""
    asked_for: list[dealer_pb2.DealRequest] = []

    def answers(wanted: dealer_pb2.DealRequest) -> Iterator[dealer_pb2.Corrections]:
        asked_for.append(wanted)
        if wanted.purpose == PREPARED:
            yield from before
            yield Corrections(failure=Failure(kind=Failure.UNPREPARED, text=NONE))
        yield Corrections(started=True)

    prepared = b"p" * 16
    shape = read_model_config(model)
    agreement = Agreement(session=SESSION, model=shape, request=asked(len(PROMPT), 1), plan_digest="0" * 64)
    links: list[DealerLink] = []
    with dealer_that(answers, issued(servers.certificates, "dealer")) as address:
        own = load_identity(servers.certificates, role)
        key = b"w" * 16 if role == "owner" else b""
        party = Party(
            role=role,
            dealer=address,
            identity=own,
            timeout=5.0,
            watch=links.append,
            check_peer=lambda: None,
            weight_key=key,
        )
        started = [party.start(agreement, prepared) for _ in range(2)]
        for link in links:
            link.close()
    assert [wanted.purpose for wanted in asked_for] == [PREPARED, purpose_pb2.SESSION] * 2
    assert [dealt.seed for dealt in started] == [wanted.seed for wanted in asked_for[1::2]]
    assert len({prepared, *(dealt.seed for dealt in started)}) == 3 and not any(dealt.prepared for dealt in started)
    assert not any(wanted.seed or wanted.weight_key for wanted in asked_for[::2])
