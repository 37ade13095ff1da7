"""When a process dies, the others end within seconds, with an error that names it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mpcache.parties.client import Connection, Generation
from mpcache.parties.launcher import launched_model
from mpcache.protocols.errors import PeerLost
from tests.asking import asking
from tests.end_to_end.test_generation import PROMPT


@pytest.mark.parametrize("victim", ["owner", "dealer"])
def test_a_process_that_dies_mid_generation_is_named(model: Path, victim: str) -> None:
    with launched_model(model) as parties:
        processes = {"owner": parties.owner.process, "dealer": parties.dealer.process}
        generation = iter(Generation(parties.connection, asking(PROMPT, 100)))
        next(generation)
        os.kill(processes[victim].pid, signal.SIGKILL)
        with pytest.raises(PeerLost, match=f"the {victim}"):
            for _ in generation:
                pass
    assert all(p.poll() is not None for p in processes.values()), "no process may be left"


def test_the_owner_serves_on_after_a_client_died(connection: Connection, model: Path) -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from mpcache.parties.certificates import load_identity\n"
        "from mpcache.parties.client import Connection, Generation\n"
        "from tests.asking import asking\n"
        "owner, dealer, certificates, state = sys.argv[1:]\n"
        "where = Connection(owner, dealer, load_identity(Path(certificates), 'client'), Path(state))\n"
        f"next(iter(Generation(where, asking({PROMPT}, 50))))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    certificates = connection.state.parent / "certificates"
    arguments = [connection.owner, connection.dealer, str(certificates), str(connection.state)]
    died = subprocess.run([sys.executable, "-c", code, *arguments], timeout=600)
    assert died.returncode == -signal.SIGKILL
    assert len(list(Generation(connection, asking(PROMPT, 2)))) == 2


def test_nobody_at_the_dealers_address_is_said(connection: Connection) -> None:
    lost = Connection(connection.owner, "127.0.0.1:9", connection.identity, connection.state, 20)
    with pytest.raises(PeerLost, match="dealer"):
        list(Generation(lost, asking(PROMPT, 2)))
