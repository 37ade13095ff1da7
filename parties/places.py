"""Places that strangers take: so many at a time in all, and so many for one certificate."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from mpcache.protocols.errors import Busy


class Places:
    """At most `total` at a time, `each` for one certificate. what: their name in a refusal, such as 'sessions'."""

    def __init__(self, role: str, what: str, total: int, each: int) -> None:
        self._role, self._what, self._total, self._each = role, what, total, each
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def taken(self, certificate: str) -> Iterator[None]:
        """A place, for as long as the block lasts. Raises Busy if there is none."""
        self.take(certificate)
        try:
            yield
        finally:
            self.free(certificate)

    def take(self, certificate: str) -> None:
        """Raises Busy."""
        with self._lock:
            if self._taken.total() >= self._total:
                raise Busy(f"the {self._role} serves {self._total} {self._what} already: try again later")
            if self._taken[certificate] >= self._each:
                raise Busy(
                    f"the {self._role} allows {self._each} {self._what} at a time for one certificate: "
                    "wait for one of yours to end"
                )
            self._taken[certificate] += 1

    def free(self, certificate: str) -> None:
        with self._lock:
            self._taken[certificate] -= 1
            if not self._taken[certificate]:
                del self._taken[certificate]
