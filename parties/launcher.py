"""Owner and dealer as processes of this machine, on loopback, with certificates of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mpcache.generation.backends import PRIVATE_BACKENDS
from mpcache.parties.certificates import load_identity, write_development_certificates
from mpcache.parties.client import Connection
from mpcache.protocols.errors import PeerLost

START_SECONDS = 600
"""For a process to start, and for any wait of the three: long, as the machine may be busy. A process that ends is
noticed at once."""


@contextmanager
def role_process(role: str, settings: Path, module: str = "mpcache", prefix: Sequence[str] = ()) -> Iterator[str]:
    """A role's command as a process, ended with the block; gives the address where it listens.

    prefix: a command that runs the role's, somewhere else (benchmarks/measure/namespace.py).
    """
    command = [*prefix, sys.executable, "-m", module, role, "--config", str(settings)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    errors: list[str] = []
    assert process.stderr is not None and process.stdout is not None
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
    reader.start()
    guard = threading.Timer(START_SECONDS, process.kill)
    guard.start()
    try:
        line = process.stdout.readline()
        guard.cancel()
        if not line.startswith(f"{role} listening on "):
            process.wait(timeout=5)
            reader.join(timeout=5)
            raise PeerLost(f"the {role} did not start: {''.join(errors).strip() or 'it said nothing'}")
        yield line.split()[-1]
    finally:
        guard.cancel()
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _toml(path: Path, **values: object) -> Path:
    path.write_text(
        "".join(f"{key} = {json.dumps(str(v) if isinstance(v, Path) else v)}\n" for key, v in values.items())
    )
    return path


@contextmanager
def local_parties(model: Path) -> Iterator[Connection]:
    """Dealer and owner of `model` on loopback with certificates of their own; gives the client's connection."""
    with tempfile.TemporaryDirectory(prefix="mpcache-") as name:
        folder = Path(name)
        certificates = folder / "certificates"
        write_development_certificates(certificates, days=1)
        shared = {
            "listen": "127.0.0.1:0",
            "certificates": certificates,
            "timeout_seconds": START_SECONDS,
            "backends": PRIVATE_BACKENDS,
        }
        dealer_file = _toml(folder / "dealer.toml", **shared)
        with role_process("dealer", dealer_file) as dealer:
            owner_file = _toml(
                folder / "owner.toml", dealer=dealer, model=model.resolve(), state=folder / "owner-state", **shared
            )
            with role_process("owner", owner_file) as owner:
                identity = load_identity(certificates, "client")
                yield Connection(owner, dealer, identity, folder / "client-state", START_SECONDS)
