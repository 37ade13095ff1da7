"""Owner and dealer as processes of this machine, with certificates of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mpcache.generation.backends import PRIVATE_BACKENDS
from mpcache.parties.certificates import load_identity, write_development_certificates
from mpcache.parties.client import Connection
from mpcache.protocols.errors import PeerLost

START_SECONDS = 600
"""For a process to start, and for any wait of the three: long, as the machine may be busy. A process that ends is
noticed at once."""


@dataclass(frozen=True)
class RoleProcess:
    """A role's process that listens at `address`. log: the lines that it has logged so far."""

    process: subprocess.Popen[str]
    address: str
    log: list[str]


@contextmanager
def role_process(
    role: str, settings: Path, module: str = "mpcache", prefix: Sequence[str] = ()
) -> Iterator[RoleProcess]:
    """A role's command as a process, ended with the block.

    prefix: a command that runs the role's, somewhere else (benchmarks/measure/namespace.py).
    """
    command = [*prefix, sys.executable, "-m", module, role, "--config", str(settings)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log: list[str] = []
    assert process.stderr is not None and process.stdout is not None
    reader = threading.Thread(target=lambda: log.extend(process.stderr or ()), daemon=True)
    reader.start()
    guard = threading.Timer(START_SECONDS, process.kill)
    guard.start()
    try:
        line = process.stdout.readline()
        guard.cancel()
        if not line.startswith(f"{role} listening on "):
            process.wait(timeout=5)
            reader.join(timeout=5)
            raise PeerLost(f"the {role} did not start: {''.join(log).strip() or 'it said nothing'}")
        yield RoleProcess(process, line.split()[-1], log)
    finally:
        guard.cancel()
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class LocalParties:
    """The two processes, and the connection of a client to them."""

    owner: RoleProcess
    dealer: RoleProcess
    connection: Connection


@contextmanager
def launched(
    folder: Path, write: Callable[[str, dict[str, object]], Path], module: str = "mpcache", prefix: Sequence[str] = ()
) -> Iterator[LocalParties]:
    """Dealer and owner, ended with the block; all that they and the client keep is in `folder`.

    write: gives a role's settings file with these values in it. module, prefix: see `role_process`.
    """
    certificates = folder / "certificates"
    write_development_certificates(certificates, days=1)
    shared: dict[str, object] = {"certificates": certificates, "prepare": True}
    dealing = {**shared, "state": folder / "dealer-state"}
    with role_process("dealer", write("dealer", dealing), module, prefix) as dealer:
        own = {**shared, "dealer": dealer.address, "state": folder / "owner-state"}
        with role_process("owner", write("owner", own), module, prefix) as owner:
            identity = load_identity(certificates, "client")
            where = Connection(owner.address, dealer.address, identity, folder / "client-state", START_SECONDS)
            yield LocalParties(owner, dealer, where)


@contextmanager
def launched_model(model: Path) -> Iterator[LocalParties]:
    """The same for a model folder, on loopback, with every backend allowed."""
    with tempfile.TemporaryDirectory(prefix="mpcache-") as name:
        folder = Path(name)

        def write(role: str, values: dict[str, object]) -> Path:
            own = {"model": model.resolve()} if role == "owner" else {}
            common = {"listen": "127.0.0.1:0", "timeout_seconds": START_SECONDS, "backends": PRIVATE_BACKENDS}
            return write_settings(folder / f"{role}.toml", {**common, **own, **values})

        with launched(folder, write) as parties:
            yield parties


@contextmanager
def local_parties(model: Path) -> Iterator[Connection]:
    """Dealer and owner of a model folder on loopback; gives the client's connection."""
    with launched_model(model) as parties:
        yield parties.connection


def write_settings(path: Path, values: dict[str, object]) -> Path:
    """A role's TOML file."""
    lines = (f"{key} = {json.dumps(str(v) if isinstance(v, Path) else v)}\n" for key, v in values.items())
    path.write_text("".join(lines))
    return path
