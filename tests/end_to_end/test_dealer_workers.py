"""A dealer that works in several processes: the answer and the bytes are those of one, and a lost process is said."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mpcache.parties.client import Connection, Generation
from mpcache.parties.launcher import launched, write_settings
from mpcache.protocols.errors import PeerLost
from tests.asking import asking
from tests.hostile.servers import PATIENT, serving

pytestmark = pytest.mark.slow

PROMPT = [5, 17, 90, 3, 3, 41, 77, 12, 9, 60]


@contextmanager
def parties(model: Path, folder: Path, **dealer: object) -> Iterator[Connection]:
    """Three real processes; dealer: settings of the dealer's."""
    folder.mkdir()

    def write(role: str, values: dict[str, object]) -> Path:
        own = {"model": model.resolve()} if role == "owner" else dealer
        common = {"listen": "127.0.0.1:0", "timeout_seconds": PATIENT, "planning_seconds": PATIENT}
        return write_settings(folder / f"{role}.toml", {**common, **own, **values})

    with launched(folder, write) as started:
        yield started.connection


def answer(connection: Connection) -> tuple[list[int], int, int]:
    """Tokens, correction bytes and bytes between the parties."""
    generation = Generation(connection, asking(PROMPT, 4))
    tokens = list(generation)
    assert generation.session is not None
    return tokens, generation.session.cost.correction_bytes, generation.session.cost.online_bytes


def test_two_workers_give_the_answer_and_the_bytes_of_one_process(model: Path, tmp_path: Path) -> None:
    with parties(model, tmp_path / "one") as connection:
        alone = answer(connection)
    with parties(model, tmp_path / "two", workers=2, memory_mib=1) as connection:
        assert answer(connection) == answer(connection) == alone


def test_a_lost_worker_ends_its_session_and_the_dealer_serves_on(model: Path, tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    with serving(model, tmp_path, dealer_settings={"workers": 2, "memory_mib": 1}) as servers:
        generation = iter(servers.client(100))
        next(generation)
        for worker in set(multiprocessing.active_children()) - before:
            os.kill(worker.pid or 0, signal.SIGKILL)
        with pytest.raises(PeerLost, match="the dealer lost one of its processes"):
            list(generation)
        assert len(list(servers.client(2))) == 2
    assert set(multiprocessing.active_children()) == before
