"""Files that are there whole or not at all, and what a power cut must not undo."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mpcache.protocols.errors import ConfigError


@contextmanager
def written_whole(path: Path, mode: int = 0o666, durable: bool = False) -> Iterator[Path]:
    """A file to write in the place of `path`, which it replaces when the block ends; if that fails it is removed.

    It has the permissions `mode` from the start. durable: a power cut after the block does not undo it. Raises OSError.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}.partial")
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        yield partial
        if durable:
            _synchronise(partial)
        partial.replace(path)
        if durable:
            _synchronise(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def remove_for_good(path: Path) -> None:
    """A power cut does not bring the file back. Raises FileNotFoundError if it is gone already, OSError."""
    path.unlink()
    _synchronise(path.parent)


def rename_for_good(path: Path, to: Path) -> None:
    """A power cut does not undo it. Raises FileNotFoundError if it is gone already, OSError."""
    path.rename(to)
    _synchronise(path.parent)


def locked(path: Path, create: bool = True) -> IO[bytes] | None:
    """The file `path`, locked until it is closed or this process ends; None if somebody else has it locked.

    Raises OSError; ConfigError where the system has no such locks.
    """
    try:
        import fcntl
    except ImportError:
        raise ConfigError("sessions are prepared on systems with POSIX file locks alone") from None
    file = os.fdopen(os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:
        file.close()
        raise
    return file


def _synchronise(path: Path) -> None:
    """Wait until the disk has what was done to a file, or to the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any, what: str, *, private: bool = False) -> None:
    """As JSON, for people to read. private: for nobody but this user. what: its name in the error.

    Raises ConfigError.
    """
    try:
        with written_whole(path, 0o600 if private else 0o666) as partial:
            partial.write_text(json.dumps(value, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"{what} cannot be written to {path}: {error}") from None
