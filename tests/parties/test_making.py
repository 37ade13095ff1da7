"""A session's corrections by several workers: the same bytes, bounded ahead, and no trace when it is over."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from mpcache.generation.plan import correlations
from mpcache.model.config import ModelConfig
from mpcache.parties.making import Maker, Secrets
from mpcache.parties.workers.pool import InProcess, Pool
from mpcache.parties.workers.processes import LocalProcess
from mpcache.protocols.correlation import Correlation
from mpcache.protocols.errors import PeerLost, TooLarge
from tests.asking import asked
from tests.mpcache.policies.matrix import small

MODEL = ModelConfig("gpt2", 64, 16, 32, 3, 4, 4, 4, 128, 1e-5, "gelu_tanh")
SECRETS = Secrets((b"the first secret", b"the other secret"), b"the third secret", 1 << 30)
LARGE = 1 << 30


def plan(policy: str = "mpcache") -> list[Correlation]:
    return list(correlations(MODEL, asked(37, 3, policy=small(policy))))


@pytest.mark.parametrize("host", [InProcess, LocalProcess])
@pytest.mark.parametrize("ahead", [50_000, 1 << 20, LARGE])
def test_several_workers_make_what_one_process_makes(host: Callable[[], InProcess], ahead: int) -> None:
    maker = Maker(Pool(host, 2), ahead)
    try:
        alone = b"".join(Maker(None, LARGE).corrections(SECRETS, plan()))
        sessions = [maker.corrections(SECRETS, plan()), maker.corrections(SECRETS, plan())]
        made = list(itertools.zip_longest(*sessions, fillvalue=b""))  # side by side
        assert [b"".join(parts) for parts in zip(*made, strict=True)] == [alone, alone]
    finally:
        maker.close()


class Counting(InProcess):
    """Notes how much each call gives, and what is left of sessions."""

    made = 0
    hosts: list[Counting] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        Counting.hosts.append(self)

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Future[Any]:
        future = super().call(function, arguments)
        Counting.made += len(future.result() or b"")
        return future

    @property
    def sessions(self) -> int:
        return len(self._state)


@pytest.fixture
def counting() -> type[Counting]:
    Counting.made, Counting.hosts = 0, []
    return Counting


@pytest.mark.parametrize("waiting", [0, 150_000])
def test_no_more_is_made_ahead_than_may_be(counting: type[Counting], waiting: int) -> None:
    """One stretch is always made; what waits elsewhere to be taken counts as well."""
    ahead, taken = 200_000, 0
    maker = Maker(Pool(counting, 2), ahead)
    largest = max(correlation.correction_bytes() for correlation in plan())
    for data in maker.corrections(SECRETS, plan(), held=lambda: waiting):
        assert counting.made - taken <= max(ahead - waiting, largest + ahead // 8)
        taken += len(data)
    assert counting.made == taken > 2 * ahead


def test_a_session_that_ends_early_leaves_nothing_with_the_workers(counting: type[Counting]) -> None:
    maker = Maker(Pool(counting, 3), LARGE)
    made = maker.corrections(SECRETS, plan())
    next(made)
    assert sum(host.sessions for host in counting.hosts) > 0
    made.close()
    assert sum(host.sessions for host in counting.hosts) == 0


def test_who_waits_for_a_worker_hears_that_the_session_is_over() -> None:
    class Never(InProcess):
        def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Future[Any]:
            return Future()

    def over() -> None:
        raise PeerLost("the client left")

    with pytest.raises(PeerLost, match="the client left"):
        list(Maker(Pool(Never, 2), LARGE).corrections(SECRETS, plan(), over))


def test_a_lost_worker_and_a_step_that_is_too_large_end_the_session() -> None:
    class Lost(InProcess):
        def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(PeerLost("a worker process was ended"))
            return future

    with pytest.raises(PeerLost, match="a worker process was ended"):
        list(Maker(Pool(Lost, 2), LARGE).corrections(SECRETS, plan()))
    narrow = Secrets(SECRETS.seeds, SECRETS.weight_key, 1000)
    maker = Maker(Pool(LocalProcess, 2), LARGE)
    try:
        with pytest.raises(TooLarge, match="raise max_step_gib"):
            list(maker.corrections(narrow, plan()))
        assert list(maker.corrections(SECRETS, plan()))
    finally:
        maker.close()


def test_secrets_are_shown_nowhere() -> None:
    assert "secret" not in repr(SECRETS)
