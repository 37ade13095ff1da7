"""Logs: a time and a session on every line, and never a secret. What is refused is a warning, what happens is info."""

from __future__ import annotations

import logging
import os
from collections.abc import MutableMapping
from typing import Any

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LONGEST = 2000


class OneLine(logging.Formatter):
    """A message is one line without control characters, whatever a peer put into it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = one_line(record.message)
        return super().formatMessage(record)


def one_line(text: str) -> str:
    """Fit for a log or a terminal."""
    return "".join(c if c.isprintable() else " " for c in text[:LONGEST])


class SessionLog(logging.LoggerAdapter[logging.Logger]):
    """Begins each line with the first 8 digits of the session's id, by which lines of two processes are matched."""

    def __init__(self, log: logging.Logger, session: bytes) -> None:
        super().__init__(log)
        self._prefix = f"[{session.hex()[:8] or 'no session'}]"

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[str, MutableMapping[str, Any]]:
        return f"{self._prefix} {msg}", kwargs


def configure(verbose: bool) -> None:
    """To standard error; below warnings only if `verbose`, or for a role that serves (`log_service`)."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine(FORMAT))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])


def log_service() -> None:
    """A process that serves strangers logs sessions' begin and end, and certificates that TLS refuses.

    Call it before gRPC is imported: it is gRPC that logs these, at its level INFO, which it reads then.
    """
    logging.getLogger("mpcache").setLevel(logging.INFO)
    os.environ["GRPC_VERBOSITY"] = "INFO"
