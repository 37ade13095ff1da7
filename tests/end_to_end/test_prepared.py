"""Prepared sessions with real processes, which are killed at every stage: what may have been sent never is again."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mpcache.demo import DEMO_MODEL
from mpcache.generation.plan import plan_digest
from mpcache.model.tokenizer import load_tokenizer
from mpcache.parties.certificates import Identity, load_identity, write_development_certificates
from mpcache.parties.client import Connection, Generation
from mpcache.parties.dealer import DealerServer
from mpcache.parties.generated import purpose_pb2
from mpcache.parties.handshake import Wanted
from mpcache.parties.launcher import RoleProcess, role_process, write_settings
from mpcache.parties.owner import OwnerServer
from mpcache.parties.preparing import prepare_session
from mpcache.parties.settings import DealerSettings, OwnerSettings
from mpcache.protocols.errors import ConfigError, MpcacheError, PeerLost
from tests.asking import asked, asking
from tests.end_to_end.dying import WHERE
from tests.end_to_end.test_commands import mpcache
from tests.end_to_end.test_generation import PROMPT
from tests.hostile.client import SESSION
from tests.hostile.dealer import HostileParty, request
from tests.hostile.owner import MODEL

PREPARE, PREPARED = purpose_pb2.PREPARE, purpose_pb2.PREPARED
ROLES = ("owner", "client")
NONE = "the dealer has no such prepared session"


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    write_development_certificates(tmp_path / "certificates")
    return tmp_path / "certificates"


@contextmanager
def running(
    role: str, folder: Path, monkeypatch: pytest.MonkeyPatch, dies: str = "", **settings: object
) -> Iterator[RoleProcess]:
    """A role's process, which dies where it is told to."""
    monkeypatch.setenv(WHERE, dies)
    values = {
        "listen": "127.0.0.1:0",
        "certificates": folder / "certificates",
        "state": folder / f"{role}-state",
        "prepare": True,
        "timeout_seconds": 600.0,
        "hello_seconds": 600.0,
        **settings,
    }
    with role_process(role, write_settings(folder / f"{role}.toml", values), "tests.end_to_end.dying") as process:
        yield process


def heard(dealer: RoleProcess, certificates: Path, purpose: purpose_pb2.Purpose) -> tuple[list[str], bytes]:
    """What both parties are told who come for this, and the corrections that the client is sent."""
    own = {"purpose": purpose, "request": LONG.to_json(), "plan_digest": plan_digest(MODEL, LONG)}
    parties = [HostileParty(dealer.address, load_identity(certificates, r), request(r, **own)) for r in ROLES]
    answers = [party.hear() for party in reversed(parties)]  # the client's first: it must take what it is sent
    for party in parties:
        party.leave()
    return answers, parties[1].received


LONG = asked(100, 1)
"""Of more corrections than one message has room for."""


def names(folder: Path) -> list[str]:
    return sorted(path.suffix for path in (folder / "dealer-state" / "prepared").iterdir() if path.suffix)


RENAME = "mpcache.parties.prepared:rename_for_good"


@pytest.mark.parametrize(
    ("dies", "left"),
    [
        (f"before {RENAME} 1", [".corrections"]),
        (f"after {RENAME} 1", [".taken"]),
        ("before mpcache.parties.chunks:BoundedChunks.put 2", [".taken"]),
        ("after mpcache.parties.chunks:BoundedChunks.get 1", [".taken"]),
        ("before mpcache.parties.prepared:PreparedSessions._forget 1", []),
    ],
    ids=["before it is taken", "before it is sent", "while it is read", "while it is sent", "when all is sent"],
)
def test_a_dealer_that_is_killed_sends_nothing_twice(
    certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: str, left: list[str]
) -> None:
    with running("dealer", tmp_path, monkeypatch) as dealer:
        assert heard(dealer, certificates, PREPARE)[0] == ["ended", "ended"]
    data = (tmp_path / "dealer-state" / "prepared" / f"{SESSION.hex()}.corrections").read_bytes()[512:-32]
    assert len(data) > 2 << 20
    with running("dealer", tmp_path, monkeypatch, dies) as dealer:
        _, first = heard(dealer, certificates, PREPARED)
        assert dealer.process.wait(600) == -signal.SIGKILL
    assert names(tmp_path) == left and data.startswith(first)
    with running("dealer", tmp_path, monkeypatch) as dealer:
        answers, second = heard(dealer, certificates, PREPARED)
        assert (not first or not second) and names(tmp_path) == []
        if left == [".corrections"]:
            assert not first and second == data and answers == ["ended", "ended"]
        else:
            assert not second and answers == [NONE, NONE]
        assert heard(dealer, certificates, PREPARED) == ([NONE, NONE], b"")


def test_a_dealer_that_is_killed_while_it_writes_offers_nothing(
    certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running("dealer", tmp_path, monkeypatch, "before mpcache.parties.prepared:PreparedSessions._grow 9") as dealer:
        heard(dealer, certificates, PREPARE)
        assert dealer.process.wait(600) == -signal.SIGKILL
    assert names(tmp_path) == [".partial"]
    with running("dealer", tmp_path, monkeypatch) as dealer:
        assert names(tmp_path) == []
        assert heard(dealer, certificates, PREPARED) == ([NONE, NONE], b"")


@pytest.fixture
def dealer(certificates: Path, tmp_path: Path) -> Iterator[DealerServer]:
    own = DealerSettings("127.0.0.1:0", state=tmp_path / "dealer-state", prepare=True, timeout_seconds=600.0)
    server = DealerServer(own, load_identity(certificates, "dealer"))
    yield server
    server.stop()


REMOVE = "mpcache.parties.seeds:remove_for_good"


MESSAGE = "before mpcache.parties.link:Link.send 60"


@pytest.mark.parametrize(
    "dies", [f"before {REMOVE} 1", f"after {REMOVE} 1", "after mpcache.parties.owner:steps 1", MESSAGE]
)
def test_an_owner_that_is_killed_uses_no_seed_twice(
    dealer: DealerServer,
    certificates: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dies: str,
) -> None:
    """Though its client, which lost its own, has a copy."""
    own = {"model": model, "dealer": f"127.0.0.1:{dealer.port}"}
    identity = load_identity(certificates, "client")

    def there(owner: RoleProcess) -> Connection:
        return Connection(owner.address, str(own["dealer"]), identity, tmp_path / "client-state", 600.0)

    seeds = tmp_path / "owner-state" / "prepared"
    with running("owner", tmp_path, monkeypatch, **own) as owner:
        prepare_session(there(owner), Wanted(request=asked(len(PROMPT), 2)))
        shutil.copytree(tmp_path / "client-state", tmp_path / "copy")
    with running("owner", tmp_path, monkeypatch, dies, **own) as owner:
        with pytest.raises(PeerLost):
            list(Generation(there(owner), asking(PROMPT, 2)))
        assert owner.process.wait(600) == -signal.SIGKILL
    used = not list(seeds.iterdir())
    assert used == (dies != f"before {REMOVE} 1")
    shutil.copytree(tmp_path / "copy", tmp_path / "client-state", dirs_exist_ok=True)
    with running("owner", tmp_path, monkeypatch, **own) as owner:
        generations = [Generation(there(owner), asking(PROMPT, 2)) for _ in range(2)]
        assert len({tuple(generation) for generation in generations}) == 1
        assert [generation.prepared for generation in generations] == [not used, False]


@pytest.mark.parametrize("dies", [f"before {REMOVE} 1", f"after {REMOVE} 1", MESSAGE])
def test_a_client_that_is_killed_uses_no_seed_twice(
    dealer: DealerServer,
    certificates: Path,
    stories: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dies: str,
) -> None:
    """The command, which comes again with the files that the killed one left, or with a copy of those it began with."""
    address = f"127.0.0.1:{dealer.port}"
    with running("owner", tmp_path, monkeypatch, model=stories, dealer=address) as owner:
        values = {
            "owner": owner.address,
            "dealer": address,
            "tokenizer": stories,
            "certificates": certificates,
            "state": tmp_path / "client-state",
            "max_new_tokens": 2,
        }
        settings = write_settings(tmp_path / "client.toml", values)
        prompt = "Once upon a time"
        count = len(load_tokenizer(stories).encode(prompt).ids)
        assert mpcache("client", "prepare", "--config", settings, "--prompt-tokens", count).returncode == 0
        shutil.copytree(tmp_path / "client-state", tmp_path / "copy")

        def answered(where: str = "") -> subprocess.CompletedProcess[str]:
            monkeypatch.setenv(WHERE, where)
            command = [sys.executable, "-m", "tests.end_to_end.dying", "client", "--config", str(settings)]
            return subprocess.run(command, input=prompt, capture_output=True, text=True, timeout=600)

        assert answered(dies).returncode == -signal.SIGKILL
        left = len(list((tmp_path / "client-state" / "prepared").glob("*.json")))
        assert left == dies.startswith(f"before {REMOVE}")
        shutil.copytree(tmp_path / "copy", tmp_path / "client-state", dirs_exist_ok=True)
        again = [answered() for _ in range(2)]
    assert [run.returncode for run in again] == [0, 0], again[0].stderr
    assert not any("prepared: the dealer had" in run.stdout for run in again), "the owner's seed was gone"


def test_two_dealers_do_not_share_a_folder(dealer: DealerServer, certificates: Path, tmp_path: Path) -> None:
    identity = load_identity(certificates, "dealer")
    own = DealerSettings("127.0.0.1:0", state=tmp_path / "dealer-state", prepare=True)
    with pytest.raises(ConfigError, match="another dealer uses"):
        DealerServer(own, identity)


def test_a_dealer_that_only_prepares_serves_no_session_and_another_hands_over_what_it_made(
    certificates: Path, model: Path, tmp_path: Path
) -> None:
    """`mpcache dealer prepare` by night, `mpcache dealer` by day: on the same folder, one after the other."""
    own = DealerSettings("127.0.0.1:0", state=tmp_path / "dealer-state")
    identities: dict[str, Identity] = {r: load_identity(certificates, r) for r in (*ROLES, "dealer")}
    prepared: list[bool] = []
    for night in (True, False):
        settings = own if night else DealerSettings("127.0.0.1:0", state=own.state, prepare=True)
        server = DealerServer(settings, identities["dealer"], only_prepare=night)
        serving = OwnerSettings(
            "127.0.0.1:0", f"127.0.0.1:{server.port}", model, state=tmp_path / "owner-state", prepare=True
        )
        owner = OwnerServer(serving, identities["owner"])
        addresses = f"127.0.0.1:{owner.port}", f"127.0.0.1:{server.port}"
        where = Connection(*addresses, identities["client"], tmp_path / "client-state", 600.0)
        try:
            if night:
                prepare_session(where, Wanted(request=asked(len(PROMPT), 2)))
                with pytest.raises(MpcacheError, match="this dealer only prepares sessions"):
                    list(Generation(where, asking(PROMPT, 1)))
            else:
                generation = Generation(where, asking(PROMPT, 2))
                assert list(generation)
                prepared.append(generation.prepared)
        finally:
            owner.stop()
            server.stop()
    assert prepared == [True]


def test_the_commands_prepare_and_then_use_a_session(tmp_path: Path) -> None:
    assert mpcache("certs", cwd=tmp_path).returncode == 0
    shared: dict[str, object] = {"listen": "127.0.0.1:0", "prepare": True}
    with role_process("dealer", write_settings(tmp_path / "dealer.toml", {**shared, "state": "dealer"})) as dealer:
        own = {**shared, "dealer": dealer.address, "model": DEMO_MODEL, "state": "owner"}
        with role_process("owner", write_settings(tmp_path / "owner.toml", own)) as owner:
            values = {"owner": owner.address, "dealer": dealer.address, "tokenizer": DEMO_MODEL, "max_new_tokens": 2}
            client = ("--config", write_settings(tmp_path / "client.toml", {**values, "state": "client"}))
            prompt = "Q: Which Dr does Jasdell see?"
            count = len(load_tokenizer(DEMO_MODEL).encode(prompt).ids)
            made = mpcache("client", "prepare", *client, "--prompt-tokens", count, "--sessions", 2)
            assert made.returncode == 0, made.stderr
            out = tmp_path / "out.json"
            answered = mpcache("client", *client, "--json", out, typed=prompt)
            assert answered.returncode == 0, answered.stderr
    assert f"2 sessions are ready for prompts of {count} tokens" in made.stdout
    assert "prepared: the dealer had the corrections on its disk" in answered.stdout
    assert json.loads(out.read_text())["prepared"] is True
    assert len(list((tmp_path / "client" / "prepared").iterdir())) == 1
    assert any("now 1 prepared sessions" in line for line in dealer.log)
    assert any("0 prepared sessions, 0.0 MB, in" in line for line in dealer.log)
