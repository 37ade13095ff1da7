"""The three processes of a CrypTen case: `python -m mpcache.benchmarks.peers.crypten_roles ROLE FOLDER`.

They are those of a generation (gRPC with mutual TLS, one stream between the parties, the dealer's stream to party 1),
with a program of their own. The folder has the case and the certificates; each role leaves its address there, and at
the end its figures. The client has a step's corrections before the step's clock starts: only the online part is timed.
"""

from __future__ import annotations

import argparse
import json
import queue
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import torch

from mpcache.benchmarks.peers.case import Case
from mpcache.benchmarks.peers.crypten_programs import prepare
from mpcache.parties.certificates import Identity, load_identity
from mpcache.parties.chunks import CHUNK_BYTES
from mpcache.parties.dealer_link import DealerLink
from mpcache.parties.direct import server_stream
from mpcache.parties.generated import dealer_pb2, dealer_pb2_grpc
from mpcache.parties.link import CONVERSE, ClientLink, Link, last_word
from mpcache.parties.tls import open_server, require_peer, serve_stream
from mpcache.protocols.backends.crypten import CryptenBackend
from mpcache.protocols.backends.plain import PlainBackend
from mpcache.protocols.correlation import Dealer, PartyCorrelations
from mpcache.protocols.crypten.dry_run import DryRunSession
from mpcache.protocols.plan import Plan
from mpcache.protocols.randomness import new_key
from mpcache.protocols.session import Session
from mpcache.protocols.transport import Channel

SESSION = b"benchmark" + bytes(7)
WARM_UP = 1
START_SECONDS = 60
POLL_SECONDS = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mpcache.benchmarks.peers.crypten_roles", description=__doc__)
    parser.add_argument("role", choices=("owner", "client", "dealer"))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    raw = json.loads((options.folder / "case.json").read_text())
    signal.alarm(raw["limit_seconds"])  # ends this process should nobody else
    raw.pop("layout")
    run: Callable[[Case, Path, Identity], dict[str, Any]] = {"owner": owner, "client": client, "dealer": deal}[
        options.role
    ]
    figures = run(Case(**raw), options.folder, load_identity(options.folder / "certificates", options.role))
    figures["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    (options.folder / f"{options.role}.json").write_text(json.dumps(figures))


# ---------------------------------------------------------------- the plan


def plans(case: Case) -> tuple[Plan, Plan]:
    """(what is shared before, one step): all steps are equal."""
    session = DryRunSession()
    step = prepare(CryptenBackend(session), case)
    before = session.next_part()
    step()
    return before, session.next_part()


# ---------------------------------------------------------------- addresses


def _announce(folder: Path, role: str, port: int) -> None:
    partial = folder / f"{role}.partial"
    partial.write_text(f"127.0.0.1:{port}")
    partial.replace(folder / f"{role}.address")


def _address(folder: Path, role: str) -> str:
    """Waits until the role listens. Raises TimeoutError."""
    path, deadline = folder / f"{role}.address", time.monotonic() + START_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the {role} did not start within {START_SECONDS} seconds")
        time.sleep(POLL_SECONDS)
    return path.read_text()


# ---------------------------------------------------------------- the dealer


class _Dealing(dealer_pb2_grpc.DealerServicer):
    """One session: waits for both parties' seeds, then streams the client its corrections as it reads them."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._seeds: dict[str, bytes] = {}
        self._complete, self.finished = threading.Event(), threading.Event()
        self.cpu_seconds: list[float] = []

    def Deal(
        self, requests: Iterator[dealer_pb2.DealRequest], context: grpc.ServicerContext
    ) -> Iterator[dealer_pb2.Corrections]:
        request = next(requests)
        role = require_peer(context, (request.role,), insecure=False).role
        self._seeds[role] = request.seed
        if len(self._seeds) == 2:
            self._complete.set()
        self._complete.wait(START_SECONDS)
        yield dealer_pb2.Corrections(started=True)
        if role == "client":
            yield from self._corrections()
            self.finished.set()
        else:
            self.finished.wait()
        yield dealer_pb2.Corrections(finished=True)

    def _corrections(self) -> Iterator[dealer_pb2.Corrections]:
        dealer = Dealer((self._seeds["owner"], self._seeds["client"]))
        before, step = plans(self._case)
        for plan in [before] + [step] * (WARM_UP + self._case.repeat):
            spent = 0.0
            for correlation in plan.correlations:
                begun = time.thread_time()
                data = dealer.correction(correlation)
                spent += time.thread_time() - begun
                for start in range(0, len(data), CHUNK_BYTES):
                    yield dealer_pb2.Corrections(chunk=data[start : start + CHUNK_BYTES])
            self.cpu_seconds.append(spent)


def deal(case: Case, folder: Path, identity: Identity) -> dict[str, Any]:
    server, port = open_server("127.0.0.1:0", identity, workers=4)
    service = _Dealing(case)
    dealer_pb2_grpc.add_DealerServicer_to_server(service, server)
    server.start()
    _announce(folder, "dealer", port)
    service.finished.wait()
    server.stop(grace=START_SECONDS).wait()
    return {"cpu_seconds": service.cpu_seconds[1 + WARM_UP :]}


# ---------------------------------------------------------------- the parties


class _Waiting:
    """Hands over the link of the one client that comes."""

    def __init__(self, timeout: float) -> None:
        self.links: queue.SimpleQueue[Link] = queue.SimpleQueue()
        self._timeout = timeout

    def converse(self, frames: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        require_peer(context, ("client",), insecure=False)
        stream = server_stream(frames, context, last_word("client"), "lost the client", "lost the client")
        self.links.put(Link("owner", "client", SESSION, self._timeout, stream))
        yield from stream.outgoing()


def owner(case: Case, folder: Path, identity: Identity) -> dict[str, Any]:
    server, port = open_server("127.0.0.1:0", identity, workers=4)
    waiting = _Waiting(case.limit_seconds)
    serve_stream(server, CONVERSE, waiting.converse)
    server.start()
    _announce(folder, "owner", port)
    link = waiting.links.get(timeout=START_SECONDS)
    figures = _compute(0, case, folder, identity, link)
    link.close()
    server.stop(grace=START_SECONDS).wait()
    return figures


def client(case: Case, folder: Path, identity: Identity) -> dict[str, Any]:
    link = ClientLink(_address(folder, "owner"), identity, SESSION, case.limit_seconds)
    figures = _compute(1, case, folder, identity, link)
    link.disconnect()
    return figures


class _Counted:
    """A channel that counts the messages sent."""

    def __init__(self, channel: Channel) -> None:
        self._channel, self.messages = channel, 0

    def send(self, payload: bytes) -> None:
        self.messages += 1
        self._channel.send(payload)

    def receive(self, expected: int) -> bytes | bytearray | memoryview:
        return self._channel.receive(expected)


class _Ahead:
    """Corrections, fetched before they are needed."""

    def __init__(self, dealer: DealerLink) -> None:
        self._dealer, self._held = dealer, memoryview(b"")

    def fetch(self, nbytes: int) -> None:
        self._held = memoryview(self._dealer.read(nbytes))

    def read(self, nbytes: int) -> memoryview:
        taken, self._held = self._held[:nbytes], self._held[nbytes:]
        return taken


def _compute(party: int, case: Case, folder: Path, identity: Identity, link: Link) -> dict[str, Any]:
    before, plan = plans(case)
    seed, role = new_key(), ("owner", "client")[party]
    request = dealer_pb2.DealRequest(role=role, session=SESSION, seed=seed)
    dealer = DealerLink(_address(folder, "dealer"), identity, request, case.limit_seconds)
    link.check = dealer.check
    dealer.wait_started()
    ahead, channel = _Ahead(dealer), _Counted(link)
    session = Session(party, channel, PartyCorrelations(party, seed, ahead.read))

    def fetch(part: Plan) -> None:
        if party == 1:
            ahead.fetch(part.cost().correction_bytes)

    fetch(before)
    backend = CryptenBackend(session)
    step = prepare(backend, case)
    times: list[tuple[float, float]] = []
    for _ in range(WARM_UP + case.repeat):
        fetch(plan)
        session.run(session.open(torch.zeros(1, dtype=torch.int64), 8))  # both are ready
        cost, messages = session.cost.copy(), channel.messages
        wall, cpu = time.perf_counter(), time.process_time()
        result = step()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
        spent, messages = session.cost - cost, channel.messages - messages
    error = _error(backend, case, result, party)
    dealer.close()
    return {
        "seconds": [wall for wall, _ in times[WARM_UP:]],
        "cpu_seconds": [cpu for _, cpu in times[WARM_UP:]],
        "sent_bytes": spent.sent_bytes,
        "correlation_bytes": spent.correction_bytes,
        "rounds": spent.rounds,
        "messages": messages,
        "error": error,
    }


def _error(backend: CryptenBackend, case: Case, result: Any, party: int) -> float | None:
    """The client's: the largest error against plaintext, for a token 0 or 1."""
    if not isinstance(result, list | None):
        result = backend.reveal(result, to=1)
    if party == 0:
        return None
    wanted = prepare(PlainBackend(), case)()
    return float((result - wanted).abs().max()) if isinstance(result, torch.Tensor) else float(result != wanted)


if __name__ == "__main__":
    main()
