"""When a process dies, the others end within seconds, with an error that names it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mpcache.parties.client import Connection, Generation, Request
from mpcache.parties.command import demo
from mpcache.protocols.errors import PeerLost
from tests.end_to_end.test_generation import PROMPT


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> dict[str, subprocess.Popen]:
    """The processes that the launcher starts, by role."""
    started: dict[str, subprocess.Popen] = {}
    original = subprocess.Popen

    def start(command: list[str], **options: object) -> subprocess.Popen:
        process = original(command, **options)  # type: ignore[call-overload]
        started[command[3]] = process
        return process

    monkeypatch.setattr(demo.subprocess, "Popen", start)
    return started


@pytest.mark.parametrize("victim", ["owner", "dealer"])
def test_a_process_that_dies_mid_generation_is_named(
    model: Path, processes: dict[str, subprocess.Popen], victim: str
) -> None:
    with demo.local_parties(model) as where:
        generation = iter(Generation(where, Request(PROMPT, 100)))
        next(generation)
        os.kill(processes[victim].pid, signal.SIGKILL)
        with pytest.raises(PeerLost, match=f"the {victim}"):
            for _ in generation:
                pass
    assert all(p.poll() is not None for p in processes.values()), "no process may be left"


def test_the_owner_serves_on_after_a_client_died(connection: Connection, model: Path) -> None:
    code = (
        "import os, sys, pickle\n"
        "from pathlib import Path\n"
        "from parties.certificates import load_identity\n"
        "from parties.client import Connection, Generation, Request\n"
        "owner, dealer, certificates, state = sys.argv[1:]\n"
        "where = Connection(owner, dealer, load_identity(Path(certificates), 'client'), Path(state))\n"
        f"next(iter(Generation(where, Request({PROMPT}, 50))))\n"
        "os.kill(os.getpid(), 9)\n"
    ).replace(", pickle", "")
    certificates = connection.state.parent / "certificates"
    arguments = [connection.owner, connection.dealer, str(certificates), str(connection.state)]
    died = subprocess.run([sys.executable, "-c", code, *arguments], timeout=600)
    assert died.returncode == -signal.SIGKILL
    assert len(list(Generation(connection, Request(PROMPT, 2)))) == 2


def test_nobody_at_the_dealers_address_is_said(connection: Connection) -> None:
    lost = Connection(connection.owner, "127.0.0.1:9", connection.identity, connection.state, 20)
    with pytest.raises(PeerLost, match="dealer"):
        list(Generation(lost, Request(PROMPT, 2)))
