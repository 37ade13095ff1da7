"""The dealer's prepared sessions: a file of corrections for each, handed over once or never.

A file is a line that says what it is for, the corrections, and a SHA-256 of both. The corrections are encrypted under a
key of the client's seed (`at_rest`), which the dealer does not keep. A file is there whole or not at all. Before its
first byte is sent it gets another name, which is never offered again: a process that is killed, or a power cut, may
lose a session but does not send one twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from mpcache.files import locked, remove_for_good, rename_for_good, written_whole
from mpcache.generation.request import PROTOCOL_VERSION
from mpcache.parties.chunks import CHUNK_BYTES
from mpcache.parties.generated import dealer_pb2
from mpcache.parties.logs import SessionLog
from mpcache.protocols.errors import Busy, ConfigError, HandshakeError
from mpcache.protocols.randomness import Stream, derive_key
from mpcache.wire import STRICT, from_wire, to_wire

HEAD_BYTES, DIGEST_BYTES = 512, 32
OVERHEAD_BYTES = HEAD_BYTES + DIGEST_BYTES
"""Of a file, beside its corrections."""
THERE, TAKEN, PARTIAL = ".corrections", ".taken", ".partial"
log = logging.getLogger("mpcache.dealer")


class Unprepared(HandshakeError):
    """There is no such prepared session, or it must not be used; nothing of it was sent."""


def at_rest(seed: bytes) -> Callable[[bytes | memoryview], bytes]:
    """Encrypts corrections from their first byte on, or decrypts them. seed: the client's, for this session alone."""
    return Stream(derive_key(seed, "prepared corrections")).encrypt


@dataclass(frozen=True, kw_only=True)
class About:
    """What a prepared session is for. session: its id; asked: of what both parties asked for; owner, client: their
    certificates' fingerprints; made: when, in seconds since 1970, which makes no difference."""

    session: str
    asked: str
    owner: str
    client: str
    made: int = field(default=0, compare=False)

    __pydantic_config__ = STRICT

    @staticmethod
    def of(request: dealer_pb2.DealRequest, certificates: dict[str, str]) -> About:
        """request: either party's."""
        facts = (PROTOCOL_VERSION, request.model, request.request, request.plan_digest)
        asked = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        return About(
            session=request.session.hex(), asked=asked, owner=certificates["owner"], client=certificates["client"]
        )

    def line(self) -> bytes:
        return to_wire(self).encode().ljust(HEAD_BYTES - 1) + b"\n"


@dataclass
class _Entry:
    """A session that takes room on the disk. there: whether it may still be handed over."""

    about: About
    nbytes: int
    there: bool = False


class PreparedSessions:
    """A folder of them, of this process alone. Threads may share it.

    most_bytes: in all, of one client's certificate; most_seconds: the age at which an unused one is deleted.
    """

    def __init__(self, folder: Path, most_bytes: tuple[int, int], most_seconds: float) -> None:
        """Deletes what a killed process left behind. Raises ConfigError if another process has the folder."""
        self._folder, self._most_bytes, self._most_seconds = folder, most_bytes, most_seconds
        self._entries: dict[str, _Entry] = {}
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._held = locked(folder / "lock")
            if self._held is None:
                raise ConfigError(f"another dealer uses {folder}: stop it, or give this one another `state`")
            self._look()
        except OSError as error:
            raise ConfigError(f"the prepared sessions in {folder} cannot be read or written: {error}") from None
        self.delete_old()

    def close(self) -> None:
        """Let another process have the folder."""
        if self._held is not None:
            self._held.close()

    def summary(self) -> str:
        with self._lock:
            there = [entry.nbytes for entry in self._entries.values() if entry.there]
        return f"{len(there)} prepared sessions, {sum(there) / 1e6:,.1f} MB, in {self._folder}"

    # ------------------------------------------------------------ writing

    def check_room(self, about: About) -> None:
        """Before anything is planned. Raises Busy, HandshakeError."""
        self.delete_old()
        with self._lock:
            if about.session in self._entries:
                raise HandshakeError("the dealer has a prepared session of this id already")
            self._check_bytes(about.client, 1)

    def write(self, about: About, corrections: Iterable[bytes], hear: Callable[[int], None]) -> None:
        """A new file, whole or not at all. corrections: encrypted; hear: is told after each how many bytes there are.

        Raises Busy if there is no room for it, HandshakeError if there is a session of this id.
        """
        about = replace(about, made=int(time.time()))
        with self._lock:
            if about.session in self._entries:
                raise HandshakeError("the dealer has a prepared session of this id already")
            entry = self._entries[about.session] = _Entry(about, OVERHEAD_BYTES)
        try:
            with written_whole(self._path(about), 0o600, durable=True) as partial:
                self._fill(partial, entry, corrections, hear)
            entry.there = True
        except OSError as error:
            log.warning("prepared sessions cannot be written: %s", error)
            reason = os.strerror(error.errno) if error.errno else "it failed"
            raise Busy(f"the dealer's disk takes no more prepared sessions now ({reason}): try again later") from None
        finally:
            if not entry.there:
                self._forget(about)

    def _fill(self, path: Path, entry: _Entry, corrections: Iterable[bytes], hear: Callable[[int], None]) -> None:
        digest = hashlib.sha256()
        with path.open("wb", buffering=CHUNK_BYTES) as file:
            head = entry.about.line()
            for data in chain([head], corrections):
                if data is not head:
                    self._grow(entry, len(data))
                    hear(entry.nbytes)
                digest.update(data)
                file.write(data)
            file.write(digest.digest())

    def _grow(self, entry: _Entry, nbytes: int) -> None:
        with self._lock:
            self._check_bytes(entry.about.client, nbytes)
            entry.nbytes += nbytes

    def _check_bytes(self, client: str, more: int) -> None:
        """Raises Busy if so many do not fit. Call it with the lock held."""
        entries, (most_of_all, most_of_one) = self._entries.values(), self._most_bytes
        of_all = sum(entry.nbytes for entry in entries)
        of_one = sum(entry.nbytes for entry in entries if entry.about.client == client)
        for what, used, most in (("in all", of_all, most_of_all), ("for a client", of_one, most_of_one)):
            if used + more > most:
                raise Busy(
                    f"the dealer keeps at most {most / 2**30:g} GiB of prepared sessions {what}, and this one does not "
                    "fit beside those that are there: use some of them, or ask for shorter ones"
                )

    # ------------------------------------------------------------ handing over

    @contextmanager
    def taken(self, wanted: About, hear: Callable[[int], None]) -> Iterator[Iterator[bytes]]:
        """The corrections of a session, encrypted, in parts; it is there no more from now on.

        hear: is told how many bytes of the file were checked so far. Raises Unprepared, before the block begins.
        """
        file = self._take(wanted, hear)
        try:
            yield _parts(file)
        finally:
            file.close()
            self._path(wanted, TAKEN).unlink(missing_ok=True)
            self._forget(wanted)

    def _take(self, wanted: About, hear: Callable[[int], None]) -> BinaryIO:
        """The file, whole, under a name by which it is never offered again. Raises Unprepared."""
        journal = SessionLog(log, bytes.fromhex(wanted.session))
        with ExitStack() as on_failure:
            try:
                file = on_failure.enter_context(self._path(wanted).open("rb", buffering=0))
                self._check(_head(file), wanted)
                if not _whole(file, hear):
                    remove_for_good(self._path(wanted))
                    self._forget(wanted)
                    raise Unprepared("its file is damaged, and deleted")
                rename_for_good(self._path(wanted), self._path(wanted, TAKEN))
            except FileNotFoundError:
                self._forget_missing(wanted)
                journal.warning("not handed over from disk: there is no file of it")
                raise Unprepared("the dealer has no such prepared session") from None
            except Unprepared as error:
                journal.warning("not handed over from disk: %s", error)
                raise Unprepared("the dealer has no such prepared session") from None
            self._mark_taken(wanted)
            journal.info("handed over from disk; now %s", self.summary())
            on_failure.pop_all()
            return file
        raise AssertionError("what is entered here hides no error")

    def _check(self, about: About, wanted: About) -> None:
        if about != wanted:
            raise Unprepared("it was made for another model, request, owner or client")
        if self._is_old(about):
            raise Unprepared("it is too old")

    def _mark_taken(self, about: About) -> None:
        with self._lock:
            if about.session in self._entries:
                self._entries[about.session].there = False

    # ------------------------------------------------------------ the folder

    def delete_old(self) -> None:
        """Those that nobody used in time."""
        with self._lock:
            old = [entry.about for entry in self._entries.values() if entry.there and self._is_old(entry.about)]
        for about in old:
            self._path(about).unlink(missing_ok=True)
            self._forget(about)
            SessionLog(log, bytes.fromhex(about.session)).info("deleted: a prepared session that nobody used in time")

    def _is_old(self, about: About) -> bool:
        return time.time() - about.made > self._most_seconds

    def _forget(self, about: About) -> None:
        with self._lock:
            self._entries.pop(about.session, None)

    def _forget_missing(self, about: About) -> None:
        """Somebody deleted the file."""
        with self._lock:
            if about.session in self._entries and self._entries[about.session].there:
                del self._entries[about.session]

    def _path(self, about: About, suffix: str = THERE) -> Path:
        return self._folder / f"{about.session}{suffix}"

    def _look(self) -> None:
        """What is there, at the start."""
        for path in sorted(self._folder.iterdir()):
            if path.suffix in (TAKEN, PARTIAL):
                path.unlink()
            elif path.suffix == THERE:
                try:
                    with path.open("rb") as file:
                        about = _head(file)
                    if path != self._path(about):
                        raise Unprepared("its name is not that of its session")
                except Unprepared as error:
                    log.warning("deleted %s: %s", path, error)
                    path.unlink()
                else:
                    self._entries[about.session] = _Entry(about, path.stat().st_size, there=True)


def _head(file: BinaryIO) -> About:
    """Raises Unprepared."""
    try:
        return from_wire(About, file.read(HEAD_BYTES).decode(), "the file")
    except (HandshakeError, UnicodeDecodeError):
        raise Unprepared("the file does not say what it is for") from None


def _whole(file: BinaryIO, hear: Callable[[int], None]) -> bool:
    """Whether a file is as it was written."""
    size = file.seek(0, os.SEEK_END)
    digest = hashlib.sha256()
    for done, part in _read(file, 0, size - DIGEST_BYTES):
        digest.update(part)
        hear(done)
    return size >= OVERHEAD_BYTES and file.read(DIGEST_BYTES) == digest.digest()


def _parts(file: BinaryIO) -> Iterator[bytes]:
    for _, part in _read(file, HEAD_BYTES, file.seek(0, os.SEEK_END) - DIGEST_BYTES):
        yield part


def _read(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """(bytes read so far, the next ones), of a file from `start` to `end`. Raises OSError if it ends before."""
    file.seek(start)
    while start < end:
        part = file.read(min(CHUNK_BYTES, end - start))
        if not part:
            raise OSError("a file of prepared corrections became shorter")
        start += len(part)
        yield start, part
