"""One party's end of a CrypTen computation, and what its two-party protocols send: one round of our session a call.

Everything that belongs to one computation hangs on a `CryptenSession`, and the current one is a context variable: two
sessions in one process, in threads or interleaved in one thread, do not meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed import ReduceOp

from mpcache.protocols.correlation import Correlation, Fields, Random
from mpcache.protocols.errors import ProtocolError
from mpcache.protocols.randomness import Stream, derive_key
from mpcache.protocols.ring import RING_BITS, pack
from mpcache.protocols.session import Session, together

_KEY_WORDS = 2
"""Ring elements in a seed: 128 bits."""


@dataclass(frozen=True)
class SessionKeys(Correlation):
    """Seeds of a CrypTen session: one that the parties open to each other, and one for each party alone."""

    def fields(self) -> Fields:
        seed = (_KEY_WORDS,)
        return {"common": Random(seed), "of_party_0": Random(seed, holder=0), "of_party_1": Random(seed, holder=1)}


class CryptenSession:
    """One party's end of a CrypTen computation, on one of our sessions. Make one per session and keep it.

    Rounds: 1, online 16 bytes a direction: the parties agree on the seed of zero sharings. Opened: that seed, which
    is meant for both. (The dealer could derive it too; it sees no message that the seed hides anything in.)
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.communicator = TwoPartyCommunicator(session)
        keys = session.take(SessionKeys())
        own = keys.of_party_0 if session.party == 0 else keys.of_party_1
        seed = pack(session.run(session.reveal(keys.common, RING_BITS)), RING_BITS)
        # a party's "next" stream is the other one's "prev": their difference is a sharing of zero
        around = [Stream(derive_key(seed, "crypten", "zero sharing", f"from party {p}")) for p in (0, 1)]
        self.next, self.prev = around[session.party], around[1 - session.party]
        self.local = Stream(derive_key(pack(own, RING_BITS), "crypten", "local"))


_current: ContextVar[CryptenSession] = ContextVar("crypten_session")


def current_session() -> CryptenSession:
    """The session that CrypTen's calls in this context belong to. Raises ProtocolError if there is none."""
    session = _current.get(None)
    if session is None:
        raise ProtocolError("CrypTen was used outside of a session: wrap the calls in `with active(session):`")
    return session


@contextmanager
def active(session: CryptenSession) -> Iterator[CryptenSession]:
    """Make `session` the current one in this thread or task. Nests; other threads and tasks are not concerned.

    >>> with active(CryptenSession(session)):
    ...     product = x * y
    """
    token = _current.set(session)
    try:
        yield session
    finally:
        _current.reset(token)


def is_active() -> bool:
    """Whether a session is current in this thread or task."""
    return _current.get(None) is not None


def unsupported(what: str) -> ProtocolError:
    # not a NotImplementedError: that is a RuntimeError, which CrypTen's arithmetic-to-binary conversion swallows
    return ProtocolError(f"CrypTen asked for {what}, which two-party inference on MPCache's sessions does not have")


class TwoPartyCommunicator:
    """What CrypTen's two-party protocols send. Each call is one round of the session.

    CrypTen opens what it has masked with a triple, a bit pair, or (for a result) what its caller says is public.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def get_rank(self) -> int:
        return self._session.party

    def get_world_size(self) -> int:
        return 2

    def get_name(self) -> str:
        return f"party {self._session.party}"

    def all_reduce(self, share: Any, op: Any = None, batched: bool = False) -> Any:
        """Both parties get the sum (or xor) of both shares; a list of shares if `batched`, in one message."""
        xor = _is_xor(op)
        if not batched:
            return self._session.run(self._session.open(share, RING_BITS, xor))
        return list(self._session.run(together(*[self._session.open(s, RING_BITS, xor) for s in share])))

    def reduce(self, share: Any, dst: int, op: Any = None, batched: bool = False) -> Any:
        """Party `dst` gets the sum (or xor); the other sends its share, learns nothing and gets None."""
        xor, shares = _is_xor(op), list(share) if batched else [share]
        values = self._session.run(together(*[self._session.reveal(s, RING_BITS, dst, xor) for s in shares]))
        if self._session.party != dst:
            return None
        return list(values) if batched else values[0]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise unsupported(f"communicator.{name}")


def _is_xor(op: Any) -> bool:
    if op is None or op == ReduceOp.SUM:
        return False
    if op == ReduceOp.BXOR:
        return True
    raise unsupported(f"a reduction by {op}")


def require_cpu(device: Any) -> None:
    if device is not None and torch.device(device).type != "cpu":
        raise unsupported(f"device {device}")
