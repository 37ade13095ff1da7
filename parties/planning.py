"""What ends planning early: its time limit, or that nobody waits for the plan any more."""

from __future__ import annotations

import time
from collections.abc import Callable

from mpcache.protocols.errors import HandshakeError


def planning_check(seconds: float, check_peer: Callable[[], None]) -> Callable[[], None]:
    """For `plan_digest` and `plan_parts`. check_peer: raises if the plan is not wanted any more."""
    deadline = time.monotonic() + seconds

    def check() -> None:
        check_peer()
        if time.monotonic() > deadline:
            raise HandshakeError(f"planning this session takes longer than {seconds:g} seconds: ask for less")

    return check
