"""Threads that serve a session in the background, by name, and end with it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

PREFIX = "mpcache "


def start_thread(name: str, target: Callable[..., None], *arguments: Any) -> threading.Thread:
    """A daemon: no process waits for it to end."""
    thread = threading.Thread(target=target, args=arguments, name=PREFIX + name, daemon=True)
    thread.start()
    return thread


def session_threads() -> list[threading.Thread]:
    """Those that run."""
    return [thread for thread in threading.enumerate() if thread.name.startswith(PREFIX)]
