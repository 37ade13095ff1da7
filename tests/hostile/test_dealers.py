"""Owner and client before dealers that misbehave, and the dealer before parties that do."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mpcache.parties import dealer as dealing
from mpcache.parties.batch import Batch
from mpcache.parties.chunks import BoundedChunks
from mpcache.parties.client import Generation
from mpcache.parties.generated import dealer_pb2
from mpcache.parties.owner import OwnerServer
from mpcache.parties.settings import OwnerSettings
from mpcache.parties.threads import session_threads
from mpcache.policies import policy_settings
from mpcache.protocols.errors import MpcacheError
from tests.asking import asking
from tests.hostile.dealer import DEALERS, REQUESTS, Answers, HostileParty, dealer_that, noise, request
from tests.hostile.identities import issued
from tests.hostile.servers import PROMPT, Servers, serving
from tests.hostile.test_clients import endless, until


@pytest.fixture
def client_and_owner_at(servers: Servers, model: Path, tmp_path: Path) -> Callable[[str], Servers]:
    """The same owner's settings, but for the dealer's address."""

    def at(address: str) -> Servers:
        settings = OwnerSettings("127.0.0.1:0", address, model, state=tmp_path / "owner-state", timeout_seconds=600.0)
        owner = OwnerServer(settings, issued(servers.certificates, "owner"))
        where = replace(
            servers.connection, owner=f"127.0.0.1:{owner.port}", dealer=address, state=tmp_path / "client-state"
        )
        return Servers(owner, servers.dealer, where, servers.certificates)

    return at


@pytest.mark.parametrize(("answers", "words"), DEALERS.values(), ids=DEALERS)
def test_both_parties_end_in_words(
    servers: Servers,
    client_and_owner_at: Callable[[str], Servers],
    caplog: pytest.LogCaptureFixture,
    answers: Answers,
    words: str,
) -> None:
    with dealer_that(answers, issued(servers.certificates, "dealer")) as address:
        there = client_and_owner_at(address)
        with pytest.raises(MpcacheError, match=words) as error:
            list(there.client())
        there.owner.stop()
    assert str(error.value).isprintable()
    assert "Traceback" not in caplog.text


def test_corrections_of_noise_spoil_the_answer_and_nothing_else(
    servers: Servers, client_and_owner_at: Callable[[str], Servers], caplog: pytest.LogCaptureFixture
) -> None:
    with dealer_that(noise, issued(servers.certificates, "dealer")) as address:
        there = client_and_owner_at(address)
        assert all(0 <= token < 96 for token in there.client(3))
        there.owner.stop()
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(("wanted", "words"), REQUESTS.values(), ids=REQUESTS)
def test_the_dealer_answers_in_words_and_deals_on(
    servers: Servers,
    caplog: pytest.LogCaptureFixture,
    wanted: Callable[[str], dealer_pb2.DealRequest],
    words: str,
) -> None:
    parties = []
    with caplog.at_level(logging.INFO):
        for role in ("owner", "client"):
            identity = issued(servers.certificates, role)
            parties.append(HostileParty(servers.connection.dealer, identity, wanted(role)))
        heard = [party.hear() for party in parties]
    assert all(words in answer for answer in heard), heard
    assert "Traceback" not in caplog.text
    for party in parties:
        party.leave()
    assert len(list(servers.client(1))) == 1


def test_half_sessions_of_one_certificate_keep_nobody_waiting(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), serving(model, tmp_path, dealer_settings={"max_sessions": 1}) as servers:
        identity = issued(servers.certificates, "client")

        def half(i: int) -> HostileParty:
            return HostileParty(servers.connection.dealer, identity, request("client", session=bytes([i] * 16)))

        waiting = [half(i) for i in range(16)]
        until(lambda: caplog.text.count("has come") == 16, "they wait")
        one_more = half(17)
        assert "allows 16 calls at a time for one certificate" in one_more.hear()
        assert "refused client" in caplog.text
        assert len(list(servers.client())) == 2, "an honest pair is dealt to"
        for party in (*waiting, one_more):
            party.leave()


def test_a_full_dealer_says_so(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, {"max_sessions_per_client": 4}, {"max_sessions": 1}) as servers:
        first = iter(servers.client(60))
        next(first)
        with pytest.raises(MpcacheError, match="the dealer serves 1 sessions already: try again later"):
            list(servers.client(1))
        first.close()  # type: ignore[attr-defined]


def test_a_dealer_bounds_how_many_prompts_share_rounds(model: Path, tmp_path: Path) -> None:
    """For the dealer, each prompt of a batch is a session."""
    with serving(model, tmp_path, None, {"max_sessions": 2}) as servers:
        with pytest.raises(MpcacheError, match="the dealer serves 2 sessions already: try again later"):
            list(Batch(servers.connection, [asking(PROMPT, 2)] * 3))
        until(lambda: _answered(servers, 2), "the places are free again")


def test_a_dealer_bounds_the_calls_of_a_batch(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, None, {"max_calls_per_certificate": 2}) as servers:
        with pytest.raises(MpcacheError, match="allows 2 calls at a time for one certificate"):
            list(Batch(servers.connection, [asking(PROMPT, 2)] * 3))
        until(lambda: _answered(servers, 2), "the places are free again")


def _answered(servers: Servers, prompts: int) -> bool:
    try:
        return len(list(Batch(servers.connection, [asking(PROMPT, 2)] * prompts))) == 2 * prompts
    except MpcacheError:
        return False


def test_a_dealer_restricts_policies(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, dealer_settings={"policies": ("full", "quest")}) as servers:
        wanted = asking(PROMPT, 1, policy=policy_settings("h2o"))
        with pytest.raises(MpcacheError, match=r"the dealer does not allow the policy 'h2o' \(allowed: full, quest\)"):
            list(Generation(servers.connection, wanted))


def test_a_half_session_ends_with_the_time_out(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(model, tmp_path, dealer_settings={"timeout_seconds": 1.0}) as servers:
        party = HostileParty(servers.connection.dealer, issued(servers.certificates, "owner"), request("owner"))
        assert "the client did not come within 1 seconds" in party.hear()
        party.leave()
    assert "session ends: the client did not come" in caplog.text


def both(servers: Servers) -> list[HostileParty]:
    """Both parties of a session."""
    where = servers.connection.dealer
    return [HostileParty(where, issued(servers.certificates, role), request(role)) for role in ("owner", "client")]


def test_planning_ends_with_its_time_limit(model: Path, tmp_path: Path) -> None:
    limit = {"planning_seconds": 0.5}
    with serving(model, tmp_path, dealer_settings=limit, dealer_program=endless) as servers:
        parties = both(servers)
        for party in parties:
            assert "planning this session takes longer than 0.5 seconds" in party.hear()
            party.leave()


def test_planning_ends_when_a_party_has_gone(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limit = {"planning_seconds": 3600.0}
    with caplog.at_level(logging.INFO), serving(model, tmp_path, None, limit, dealer_program=endless) as servers:
        parties = both(servers)
        until(lambda: "session begins" in caplog.text, "it plans")
        for party in parties:
            party.leave()
        until(lambda: not [t for t in session_threads() if "dealer: corrections" in t.name], "it stops planning")


def test_the_dealer_is_not_told_which_model_it_is(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dealer_pb2.DealRequest] = []
    monkeypatch.setattr(dealing, "_check_request", lambda role, wanted: seen.append(wanted))
    assert list(servers.client(1))
    digest = servers.owner.model_digest.encode()
    assert len(seen) == 2 and all(digest not in wanted.SerializeToString() for wanted in seen)


def test_a_dealer_whose_client_reads_nothing_stays_within_its_memory(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is made ahead waits at the dealer, and is bounded there."""
    held: list[int] = []
    original = BoundedChunks.put

    def noted(self: BoundedChunks, chunk: bytes, seconds: float) -> bool:
        held.append(self._held)
        return original(self, chunk, seconds)

    monkeypatch.setattr(BoundedChunks, "put", noted)
    with serving(model, tmp_path, dealer_settings={"memory_mib": 1}) as servers:
        generation = iter(servers.client(60))
        next(generation)
        threading.Event().wait(0.5)
        generation.close()  # type: ignore[attr-defined]
    assert max(held) <= (1 << 20) + (1 << 20)
