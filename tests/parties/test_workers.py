"""Workers keep what they are told, answer in order, and end with whoever started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from mpcache.parties.workers.choice import chosen_pool
from mpcache.parties.workers.pool import Host, InProcess, Pool, State, Worker
from mpcache.parties.workers.processes import LocalProcess
from mpcache.protocols.errors import ConfigError, PeerLost, TooLarge

PATIENT = 600.0


def counted(state: State, count: int) -> tuple[int, bytes]:
    state["calls"] = state.get("calls", 0) + 1
    return state["calls"], bytes(count)


def zeros(state: State, count: int) -> bytes:
    return bytes(count)


def refused(state: State, kind: type[Exception]) -> None:
    raise kind("seven")


def killed(state: State) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def busy(state: State) -> None:
    """For ever."""
    print("busy", flush=True)
    threading.Event().wait()


@pytest.fixture(scope="module", params=[InProcess, LocalProcess])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    pool = Pool(request.param, 2)
    yield pool
    pool.close()


def test_each_worker_has_its_own_state_and_answers_in_order(pool: Pool) -> None:
    for worker in pool.workers():
        calls = [worker.submit(counted, size) for size in range(5)]
        assert [call.result(PATIENT) for call in calls] == [(size + 1, bytes(size)) for size in range(5)]
        assert worker.load == 0


@pytest.mark.parametrize("count", [0, 1, 3_000_001])
def test_bytes_come_as_they_are(pool: Pool, count: int) -> None:
    assert pool.workers()[0].submit(zeros, count).result(PATIENT) == bytes(count)


@pytest.mark.parametrize(("kind", "expected"), [(TooLarge, TooLarge), (KeyError, Exception)])
def test_what_a_call_raises_is_its_own(pool: Pool, kind: type[Exception], expected: type[Exception]) -> None:
    worker = pool.workers()[0]
    with pytest.raises(expected, match="seven"):
        worker.submit(refused, kind).result(PATIENT)
    assert worker.submit(zeros, 1).result(PATIENT) == b"\0" and not worker.lost


def test_a_call_that_waits_can_be_cancelled() -> None:
    class Held:
        """A host whose calls end when the test says so."""

        lost = False

        def __init__(self) -> None:
            self.calls: list[Future[Any]] = []

        def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Future[Any]:
            self.calls.append(Future())
            return self.calls[-1]

        def stop(self) -> None:
            pass

    host = Held()
    worker = Worker(host)
    calls = [worker.submit(zeros, 1) for _ in range(4)]
    assert [call.cancel() for call in calls] == [False, False, True, True]
    for held in host.calls:
        held.set_result(b"")
    assert len(host.calls) == 2 and worker.load == 0


def test_a_worker_that_is_killed_fails_its_calls_and_another_takes_its_place() -> None:
    before = multiprocessing.active_children()
    pool = Pool(LocalProcess, 2)
    try:
        victim, other = pool.workers()
        other.submit(counted, 1).result(PATIENT)
        calls = [victim.submit(killed), *(victim.submit(zeros, 1) for _ in range(5))]
        for call in calls:
            with pytest.raises(PeerLost, match=r"ended by SIGKILL.*may lack memory"):
                call.result(PATIENT)
        with pytest.raises(PeerLost):
            victim.submit(zeros, 1).result(PATIENT)
        replaced, same = pool.workers()
        assert same is other and other.submit(counted, 1).result(PATIENT)[0] == 2
        assert replaced is not victim and replaced.submit(counted, 1).result(PATIENT)[0] == 1
    finally:
        pool.close()
    assert set(multiprocessing.active_children()) <= set(before)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_the_process_that_started_it(how: signal.Signals) -> None:
    """Not even in the middle of a call, and however that process ends. What it prints ends when the last one has."""
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # in the background it is ignored
        "from mpcache.parties.workers.pool import Pool; from mpcache.parties.workers.processes import LocalProcess\n"
        "from tests.parties.test_workers import busy\n"
        "for worker in Pool(LocalProcess, 2).workers(): call = worker.submit(busy)\n"
        "call.result()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == process.stdout.readline() == b"busy\n"
        process.send_signal(how)
        assert process.stdout.read() == b""
        assert process.wait(PATIENT) != 0


def test_a_host_that_does_not_start_stops_the_others() -> None:
    stopped = []

    class Started(InProcess):
        def stop(self) -> None:
            stopped.append(self)

    hosts: Iterator[Callable[[], Host]] = iter([Started, Started])

    def start() -> Host:
        for host in hosts:
            return host()
        raise PeerLost("it did not start")

    with pytest.raises(PeerLost):
        Pool(start, 3)
    assert len(stopped) == 2


def test_one_worker_is_this_process() -> None:
    assert chosen_pool(1) is None


def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'mpcache\[ray\]'"):
        chosen_pool(1, "127.0.0.1:6379")
    with pytest.raises(ConfigError, match="run `ray start --address"):
        chosen_pool(1, "ray://127.0.0.1:10001")


def test_nothing_imports_ray_unless_it_is_asked_for() -> None:
    code = "import sys; import mpcache.parties.dealer, mpcache.benchmarks.run.commands; sys.exit('ray' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=PATIENT, check=False).returncode == 0
