"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mpcache.protocols.errors import ConfigError


@contextmanager
def written_whole(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """A file to write in the place of `path`, which it replaces when the block ends; if that fails it is removed.

    It has the permissions `mode` from the start. Raises OSError.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}.partial")
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any, what: str, *, private: bool = False) -> None:
    """As JSON, for people to read. private: for nobody but this user. what: its name in the error.

    Raises ConfigError.
    """
    try:
        with written_whole(path, 0o600 if private else 0o666) as partial:
            partial.write_text(json.dumps(value, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"{what} cannot be written to {path}: {error}") from None
