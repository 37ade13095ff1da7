"""The two parties of a dealer's session: who has come, what they asked for, and how it ended."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from mpcache.parties.calls import LAST_WORD_SECONDS, Call
from mpcache.parties.chunks import BoundedChunks
from mpcache.parties.generated import dealer_pb2
from mpcache.parties.logs import SessionLog
from mpcache.protocols.errors import PeerLost

Failure = dealer_pb2.Failure


@dataclass
class Pairing:
    """A session that waits for its second party, or runs."""

    journal: SessionLog
    ahead: BoundedChunks
    patience: float
    requests: dict[str, dealer_pb2.DealRequest] = field(default_factory=dict)
    certificates: dict[str, str] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    complete: threading.Event = field(default_factory=threading.Event)
    started: threading.Event = field(default_factory=threading.Event)
    progress: int = 0
    ended: threading.Event = field(default_factory=threading.Event)
    failure: dealer_pb2.Failure | None = None

    def fail(self, reason: str) -> None:
        self.end(Failure(text=reason))

    def left(self, role: str) -> None:
        """A party has gone, which ends a session that had not ended."""
        self.end(Failure(kind=Failure.LEFT, text=f"the {role} left"))

    def end(self, failure: dealer_pb2.Failure | None = None) -> None:
        """The first call counts."""
        with self.lock:
            if self.ended.is_set():
                return
            self.failure = failure
            self.ended.set()
        for awaited in (self.complete, self.started):  # whoever waits for these hears of it
            awaited.set()
        self.ahead.close()
        for call in self.calls:
            call.finish(self.patience if failure is None else LAST_WORD_SECONDS)
        if failure is None:
            self.journal.info("session ends")
        else:
            self.journal.warning("session ends: %s", failure.text)

    def hear(self, progress: int) -> None:
        """So many bytes are on the disk, or checked. Raises PeerLost if nobody waits any more."""
        self.progress = progress
        self.check()

    def check(self) -> None:
        """Raises PeerLost if nobody waits any more."""
        if self.ended.is_set():
            raise PeerLost(self.failure.text if self.failure else "the session has ended")


def disagreement(requests: dict[str, dealer_pb2.DealRequest]) -> str | None:
    """Of the two parties, in words; None if they agree."""
    a, b = requests["owner"], requests["client"]
    for what in ("model", "request", "plan_digest"):
        if getattr(a, what) != getattr(b, what):
            return f"the owner and the client gave the dealer different values of {what.replace('_', ' ')}"
    return None
