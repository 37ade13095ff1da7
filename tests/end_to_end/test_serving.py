"""Owner and dealer as an operator runs them: what they log, and how they stop."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mpcache.parties.certificates import load_identity, write_development_certificates
from mpcache.parties.client import Connection, Generation
from mpcache.parties.launcher import RoleProcess, role_process, write_settings
from mpcache.protocols.errors import PeerLost
from tests.asking import asking
from tests.end_to_end.test_answers import until
from tests.end_to_end.test_generation import PROMPT
from tests.hostile.client import HostileClient, hello, message
from tests.hostile.dealer import HostileParty, request

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING) mpcache\.\w+: \[([0-9a-f]{8})\] ")


def logged(running: RoleProcess, words: str) -> bool:
    return any(words in line for line in running.log)


@contextmanager
def running(role: str, folder: Path, **settings: object) -> Iterator[RoleProcess]:
    values = {"listen": "127.0.0.1:0", "certificates": folder / "certificates", **settings}
    with role_process(role, write_settings(folder / f"{role}.toml", values)) as process:
        yield process


def test_sigterm_lets_running_sessions_end_and_every_line_has_its_time_and_session(model: Path, tmp_path: Path) -> None:
    write_development_certificates(tmp_path / "certificates")
    with running("dealer", tmp_path) as dealer:
        state = str(tmp_path / "owner-state")
        with running("owner", tmp_path, dealer=dealer.address, model=str(model), state=state) as owner:
            identity = load_identity(tmp_path / "certificates", "client")
            where = Connection(owner.address, dealer.address, identity, tmp_path / "state")
            generation = iter(Generation(where, asking(PROMPT, 100)))
            next(generation)
            for server in (owner, dealer):
                server.process.send_signal(signal.SIGTERM)
                until(lambda server=server: logged(server, "no new sessions"))  # type: ignore[misc]
            with pytest.raises(PeerLost):
                list(Generation(where, asking(PROMPT, 1)))
            assert len(list(generation)) == 99, "the running session ends as it would have"
            assert [server.process.wait(600) for server in (owner, dealer)] == [0, 0]
    for server, begins in ((owner, "session of client"), (dealer, "session begins")):
        sessions = [line for line in server.log if "mpcache." in line and "[" in line]
        assert any(begins in line for line in sessions) and any("session ends" in line for line in sessions)
        for line in sessions:
            assert LINE.match(line), line
    served = {found[2] for line in owner.log if "session of" in line and (found := LINE.match(line))}
    assert served and all(any(session in line for line in dealer.log) for session in served), "lines can be matched"


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_server_without_sessions_stops_at_once(tmp_path: Path, stop: signal.Signals) -> None:
    write_development_certificates(tmp_path / "certificates")
    with running("dealer", tmp_path, drain_seconds=3600.0) as dealer:
        dealer.process.send_signal(stop)
        assert dealer.process.wait(600) == 0
    assert not any("Traceback" in line for line in dealer.log)


def test_a_second_signal_ends_what_runs(model: Path, tmp_path: Path) -> None:
    write_development_certificates(tmp_path / "certificates")
    with running("dealer", tmp_path, drain_seconds=3600.0, timeout_seconds=3600.0) as dealer:
        half = HostileParty(dealer.address, load_identity(tmp_path / "certificates", "client"), request("client"))
        until(lambda: logged(dealer, "has come"))
        dealer.process.send_signal(signal.SIGTERM)
        until(lambda: logged(dealer, "no new sessions"))
        assert dealer.process.poll() is None, "it waits for the call that runs"
        dealer.process.send_signal(signal.SIGTERM)
        assert dealer.process.wait(600) == 0
        half.leave()


def test_an_owner_that_waits_for_a_silent_dealer_stops(model: Path, tmp_path: Path) -> None:
    """Though its session waits for an hour: the call has ended."""
    write_development_certificates(tmp_path / "certificates")
    settings = {"model": str(model), "state": str(tmp_path / "owner-state"), "timeout_seconds": 3600.0}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dealer = f"127.0.0.1:{silent.getsockname()[1]}"
        with running("owner", tmp_path, dealer=dealer, **settings) as owner:
            client = HostileClient(owner.address, load_identity(tmp_path / "certificates", "client"))
            client.send(hello())
            assert client.hear() == "welcome"
            client.send(message(b"\x00"))
            connection, _ = silent.accept()
            owner.process.send_signal(signal.SIGINT)
            assert owner.process.wait(600) == 0
            connection.close()
            client.leave()


def test_refused_certificates_do_not_go_unlogged(model: Path, tmp_path: Path) -> None:
    """One of another authority is refused by TLS itself, whose library logs it; one of another role by us."""
    write_development_certificates(tmp_path / "certificates")
    write_development_certificates(tmp_path / "other")
    with running("dealer", tmp_path) as dealer:
        own = load_identity(tmp_path / "certificates", "client")
        stranger = replace(load_identity(tmp_path / "other", "client"), authority=own.authority)
        with pytest.raises(PeerLost, match=r"refused this client's certificate|ended this one"):
            HostileParty(dealer.address, stranger, request("owner"))
        until(lambda: logged(dealer, "Handshake failed"))
        party = HostileParty(dealer.address, own, request("owner"))
        assert "your certificate is not of the role owner" in party.hear()
        until(lambda: logged(dealer, "your certificate is not of the role owner"))
        party.leave()
