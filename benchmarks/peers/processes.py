"""Several processes for one case, on loopback, until all are done, one fails or time is up. None is left behind."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mpcache.protocols.errors import MpcacheError

LOOPBACK = "127.0.0.1"
POLL_SECONDS = 0.05
END_SECONDS = 5
TAIL_CHARACTERS = 600


class CaseFailed(MpcacheError):
    """A peer's process failed or took too long; the message says what it last said."""


def run_together(
    commands: Mapping[str, Sequence[str]], limit_seconds: float, folder: Path, directory: Path
) -> dict[str, str]:
    """Run the named commands at once; what each printed. Raises CaseFailed; every process has ended either way.

    folder: for their output; directory: where they run.
    """
    logs = {name: folder / f"{name}.log" for name in commands}
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in commands.items():
            with logs[name].open("wb") as log:
                running[name] = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=directory,
                    env=_environment(),
                )
        _wait(running, time.monotonic() + limit_seconds, limit_seconds, logs)
    finally:
        for process in running.values():
            _end(process)
    return {name: log.read_text(errors="replace") for name, log in logs.items()}


def _wait(
    running: Mapping[str, subprocess.Popen[bytes]], deadline: float, limit_seconds: float, logs: Mapping[str, Path]
) -> None:
    while True:
        codes = {name: process.poll() for name, process in running.items()}
        for name, code in codes.items():
            if code:
                raise CaseFailed(f"{name} ended with {_code(code)}: {_tail(logs[name])}")
        if all(code == 0 for code in codes.values()):
            return
        if time.monotonic() > deadline:
            raise CaseFailed(f"not done within {limit_seconds:g} seconds")
        time.sleep(POLL_SECONDS)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def _code(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit status {code}"


def _tail(log: Path) -> str:
    return log.read_text(errors="replace").strip()[-TAIL_CHARACTERS:] or "it said nothing"


def _environment() -> dict[str, str]:
    """This one's, with no proxy: nothing here leaves the machine."""
    return {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}


def free_addresses(count: int) -> list[str]:
    """Loopback addresses that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind((LOOPBACK, 0))
        return [f"{LOOPBACK}:{s.getsockname()[1]}" for s in sockets]
    finally:
        for s in sockets:
            s.close()
