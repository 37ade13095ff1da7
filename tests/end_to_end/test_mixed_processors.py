"""Owner, client and dealer on machines of different processors: what shares are multiplied by is the same on all."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpcache.inspection.watched import plain_answer
from mpcache.parties import launcher
from mpcache.parties.client import Connection, Generation
from mpcache.parties.launcher import local_parties
from mpcache.policies import spelled
from mpcache.protocols.errors import HandshakeError
from tests.asking import asking
from tests.end_to_end.test_generation import LONG_PROMPT, SMALL
from tests.mpcache.models import save_random_model
from tests.mpcache.tampering import TABLES, Tamper, fractions
from tests.processors import processors

PROMPT = [(33 * i * i + 24 * i + 11) % 96 for i in range(40)]
"""No selection and no token is a near tie."""
THETA = 600.0
"""At heads of 32, torch's kernels for plain processors and for AVX2 give other tables from the 8th position on."""
CLIENT = """
import json, sys
from pathlib import Path
from mpcache.policies import policy_settings
from mpcache.parties.certificates import load_identity
from mpcache.parties.client import Connection, Generation
from tests.asking import asking
owner, dealer, certificates, state, prompt, policy = sys.argv[1:]
where = Connection(owner, dealer, load_identity(Path(certificates), "client"), Path(state))
print(json.dumps(list(Generation(where, asking(json.loads(prompt), 3, policy=policy_settings(policy))))))
"""


def environment(processor: str) -> dict[str, str]:
    return {**os.environ, **processors()[processor]}


def answer(where: Connection, processor: str) -> list[int]:
    """What a client that is a process of its own is answered."""
    places = [where.owner, where.dealer, str(where.state.parent / "certificates"), str(where.state)]
    command = [sys.executable, "-c", CLIENT, *places, json.dumps(PROMPT), spelled(SMALL)]
    done = subprocess.run(command, env=environment(processor), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_parties_on_different_processors_give_the_plain_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_role = dict(zip(("owner", "client", "dealer"), itertools.cycle(processors()), strict=False))
    original = subprocess.Popen

    def start(command: list[str], **options: object) -> subprocess.Popen:
        if command[3] in of_role:
            options["env"] = environment(of_role[command[3]])
        return original(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(launcher.subprocess, "Popen", start)
    save_random_model(tmp_path, "llama", head_dim=32, rope_theta=THETA)
    with local_parties(tmp_path) as where:
        assert answer(where, of_role["client"]) == plain_answer(tmp_path, PROMPT, 3, SMALL)


@pytest.mark.parametrize("tamper", [*TABLES.values(), fractions("mpcache")], ids=[*TABLES, "a policy's factor"])
def test_a_client_with_other_constants_is_refused_before_any_secret_moves(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, tamper: Tamper
) -> None:
    tamper(monkeypatch)
    generation = Generation(connection, asking(LONG_PROMPT, 2, policy=SMALL))
    with pytest.raises(HandshakeError, match="differ"):
        list(generation)
    assert generation.setup_bytes == 0
