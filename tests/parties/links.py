"""Both ends of a link in one process, over a real connection."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from mpcache.parties.certificates import Identity
from mpcache.parties.direct import server_stream
from mpcache.parties.link import CONVERSE, ClientLink, Link, last_word
from mpcache.parties.tls import on_end, open_server, require_peer, serve_stream

SESSION = bytes(range(16))


@contextmanager
def linked(identities: dict[str, Identity] | None = None, timeout: float = 600.0) -> Iterator[tuple[Link, ClientLink]]:
    """(the owner's end, the client's). Without identities, without TLS."""
    links: queue.SimpleQueue[Link] = queue.SimpleQueue()

    def converse(frames: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        require_peer(context, ("client",), identities is None)
        stream = server_stream(frames, context, last_word("client"), "the client closed", "lost the client")
        link = Link("owner", "client", SESSION, timeout, stream)
        on_end(context, link.close)
        links.put(link)
        yield from stream.outgoing()

    server, port = open_server("127.0.0.1:0", identities and identities["owner"], 4)
    serve_stream(server, CONVERSE, converse)
    server.start()
    client = ClientLink(f"127.0.0.1:{port}", identities and identities["client"], SESSION, timeout)
    owner = links.get(timeout=600)
    try:
        yield owner, client
    finally:
        owner.close()
        client.disconnect()
        server.stop(0).wait()
