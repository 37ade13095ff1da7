"""A party's seeds of prepared sessions: a small file for each, used once.

Of its own, a seed is 16 random bytes. With the dealer's file of the session it is what the party would know while an
ordinary session runs. So it is deleted, and the disk has the deletion, before anything that follows from it is sent.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mpcache.files import locked, remove_for_good, written_whole
from mpcache.generation.request import GenerationRequest
from mpcache.parties.certificates import require_private
from mpcache.parties.link import SESSION_BYTES
from mpcache.protocols.errors import Busy, ConfigError, HandshakeError
from mpcache.protocols.randomness import KEY_BYTES
from mpcache.wire import STRICT, from_wire, to_wire

STALE_SECONDS = 24 * 3600.0
_NAME = re.compile(rf"[0-9a-z]+-[0-9a-f]{{{2 * SESSION_BYTES}}}\.json")
log = logging.getLogger("mpcache.prepared")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a prepared session is for, at one party: fingerprints. peer: of the other party's certificate."""

    peer: str
    request: str
    model: str
    plan: str
    masked_weights: str

    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True)
class Seed:
    """A party's part of a prepared session. session, seed: hexadecimal."""

    session: str
    seed: str
    facts: Facts

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        if not (len(bytes.fromhex(self.session)) == SESSION_BYTES and len(bytes.fromhex(self.seed)) == KEY_BYTES):
            raise HandshakeError("the session or the seed is not of its length")

    def __repr__(self) -> str:
        return f"Seed(session={self.session!r})"


def request_digest(request: GenerationRequest) -> str:
    return hashlib.sha256(request.to_json().encode()).hexdigest()


class KeptSeeds:
    """Those of one party, in its state folder. Threads and processes may share it.

    hours: the age at which an unused one is deleted; most, most_each: in all, and with one other party. Methods raise
    ConfigError where files cannot be read or written.
    """

    def __init__(self, state: Path, hours: float, most: int | None = None, most_each: int | None = None) -> None:
        self._folder, self._seconds = state / "prepared", 3600 * hours
        self._most, self._most_each = most, most_each
        self._keeping = threading.Lock()

    def check_room(self, peer: str, session: bytes) -> None:
        """Before anything is planned. Raises Busy if there are too many already, HandshakeError if this one is."""
        self.delete_old()
        with self._readable():
            if self._path(peer, session).exists():
                raise HandshakeError("a session of this id is prepared already")
            both = (self._most, "*", "in all"), (self._most_each, f"{peer[:32]}-*", "for a client")
            for most, pattern, what in both:
                if most is not None and sum(1 for _ in self._folder.glob(f"{pattern}.json")) >= most:
                    raise Busy(f"{most} prepared sessions are kept at most {what}: use some of them first")

    def keep(self, session: bytes, seed: bytes, facts: Facts) -> None:
        """Raises as `check_room`, once more: others may have been kept since."""
        kept = Seed(session=session.hex(), seed=seed.hex(), facts=facts)
        with self._keeping:
            self.check_room(facts.peer, session)
            self._write(self._path(facts.peer, session), kept)

    def _write(self, path: Path, kept: Seed) -> None:
        with self._readable():
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with written_whole(path, 0o600, durable=True) as partial:
                partial.write_text(to_wire(kept))

    def take(self, session: bytes, facts: Facts) -> bytes | None:
        """The seed of a session, which is here no more; None if there is none, or it is for something else."""
        self.delete_old()
        path = self._path(facts.peer, session)
        with self._readable():
            kept = _read(path)
            if kept is None or kept.session != session.hex() or kept.facts != facts:
                return None
            try:
                remove_for_good(path)
            except FileNotFoundError:  # another thread was first
                return None
        return bytes.fromhex(kept.seed)

    @contextmanager
    def offered(self, peer: str, request: GenerationRequest, model: str) -> Iterator[Seed | None]:
        """A seed of a session for this request, that no other thread or process is offered meanwhile; the oldest first.

        model: a digest, or "" for any.
        """
        self.delete_old()
        wanted = request_digest(request)
        with self._readable():
            paths = sorted(self._folder.glob(f"{peer[:32]}-*.json"), key=_made)
        for path in paths:
            with self._readable():
                kept = _read(path)
            if kept is None or (kept.facts.peer, kept.facts.request) != (peer, wanted):
                continue
            if model and kept.facts.model != model:
                continue
            lock = self._lock(path)
            if lock is not None:
                with lock:
                    yield kept
                return
        yield None

    def _lock(self, path: Path) -> IO[bytes] | None:
        """None if somebody else is offered it, or has just used it."""
        with self._readable(), suppress(FileNotFoundError):
            lock = locked(path, create=False)
            if lock is None or path.exists():
                return lock
            lock.close()
        return None

    def delete_old(self) -> None:
        """Those that were not used in time, and what a killed process left half-written."""
        now = time.time()
        with self._readable():
            for path in self._folder.glob("*.json*"):
                limit = self._seconds if _NAME.fullmatch(path.name) else STALE_SECONDS
                if now - _made(path) > limit:
                    path.unlink(missing_ok=True)

    def _path(self, peer: str, session: bytes) -> Path:
        return self._folder / f"{peer[:32]}-{session.hex()}.json"

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(f"the prepared sessions in {self._folder} cannot be read or written: {error}") from None


def _made(path: Path) -> float:
    """Now, if another process has just taken it away."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _read(path: Path) -> Seed | None:
    """None if there is none. A damaged one is deleted. Raises IdentityError if everybody can read it, OSError."""
    try:
        require_private(path)
        return from_wire(Seed, path.read_text(), "the file")
    except FileNotFoundError:
        return None
    except (HandshakeError, ValueError):  # ValueError: not text, or not hexadecimal
        log.warning("deleted %s: it is damaged", path)
        path.unlink(missing_ok=True)
        return None
