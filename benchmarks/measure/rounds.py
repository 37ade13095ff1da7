"""What a round costs two bare links: `python -m mpcache.benchmarks.measure.rounds`, and `--help`.

Two processes on this machine, gRPC with mutual TLS, the links of a session and nothing else: each sends a message and
takes the other's, as in an opening. Straight and in threads (`parties/direct.py`) in turn; medians of each.
"""

from __future__ import annotations

import argparse
import json
import queue
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc

from mpcache.parties import direct
from mpcache.parties.certificates import load_identity, write_development_certificates
from mpcache.parties.link import CONVERSE, ClientLink, Link, last_word
from mpcache.parties.tls import open_server, require_peer, serve_stream

SESSION = bytes(16)
WAYS = ("straight", "in threads")
WARM_UP = 50
MICROSECONDS = 1e6
Figures = dict[str, float]
"""Wall and CPU microseconds a round of one process."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mpcache.benchmarks.measure.rounds", description=__doc__)
    parser.add_argument("--bytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--owner", type=Path, help=argparse.SUPPRESS)  # the folder of certificates
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.owner:
        choose(options.way)
        return owner(options.owner, options.bytes, options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        write_development_certificates(Path(folder))
        found: dict[str, list[tuple[Figures, Figures]]] = {way: [] for way in WAYS}
        for _ in range(options.repeat):
            for way in WAYS:
                found[way].append(measured(Path(folder), way, options.bytes, options.rounds))
    for way, pairs in found.items():
        mine, theirs = map(medians, zip(*pairs, strict=True))
        print(
            f"{way:10}: {mine['wall']:4.0f} us a round; CPU of the client {mine['cpu']:4.0f} us, "
            f"of the owner {theirs['cpu']:4.0f} us"
        )


def medians(figures: Sequence[Figures]) -> Figures:
    return {name: statistics.median(each[name] for each in figures) for name in figures[0]}


_CYGRPC = direct.cygrpc


def choose(way: str) -> None:
    """How this process' next links work."""
    direct.cygrpc = _CYGRPC if way == "straight" else None


def measured(folder: Path, way: str, nbytes: int, rounds: int) -> tuple[Figures, Figures]:
    """The client's and the owner's figures."""
    choose(way)
    options = ["--owner", str(folder), "--way", way, "--bytes", str(nbytes), "--rounds", str(rounds)]
    command = [sys.executable, "-m", "mpcache.benchmarks.measure.rounds", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        link = ClientLink(f"127.0.0.1:{port}", load_identity(folder, "client"), SESSION)
        mine = timed(link, nbytes, rounds)
        theirs = json.loads(process.stdout.readline())
        link.disconnect()
    return mine, theirs


def owner(folder: Path, nbytes: int, rounds: int) -> None:
    links: queue.SimpleQueue[Link] = queue.SimpleQueue()

    def converse(frames: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        require_peer(context, ("client",), insecure=False)
        stream = direct.server_stream(frames, context, last_word("client"), "lost the client", "lost the client")
        links.put(Link("owner", "client", SESSION, 60.0, stream))
        yield from stream.outgoing()

    server, port = open_server("127.0.0.1:0", load_identity(folder, "owner"), workers=4)
    serve_stream(server, CONVERSE, converse)
    server.start()
    print(port, flush=True)
    link = links.get(timeout=60.0)
    print(json.dumps(timed(link, nbytes, rounds)), flush=True)
    link.close()
    server.stop(grace=10.0).wait()


def timed(link: Link, nbytes: int, rounds: int) -> Figures:
    message = bytes(nbytes)

    def exchange(count: int) -> None:
        for _ in range(count):
            link.send(message)
            link.receive(nbytes)

    exchange(WARM_UP)
    wall, cpu = time.perf_counter(), time.process_time()
    exchange(rounds)
    spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return {name: seconds / rounds * MICROSECONDS for name, seconds in spent.items()}


if __name__ == "__main__":
    main()
