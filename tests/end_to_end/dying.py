"""The command line in a process that is killed at a certain place.

DIES="before module:name 2": before the second call of that function; or "after" it."""

from __future__ import annotations

import os
import signal
from importlib import import_module
from typing import Any

from mpcache.parties.command.main import main

WHERE = "DIES"


def die_at(where: str) -> None:
    when, place, count = where.split()
    module_name, _, name = place.partition(":")
    target: Any = import_module(module_name)
    *owners, name = name.split(".")
    for owner in owners:
        target = getattr(target, owner)
    original, calls = getattr(target, name), 0

    def dying(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == int(count) and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **named)
        if calls == int(count):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(target, name, dying)


if __name__ == "__main__":
    if where := os.environ.get(WHERE):
        die_at(where)
    main()
