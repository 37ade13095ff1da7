"""A network that misbehaves: a TCP proxy that can stop forwarding for a while, or break its connections."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Proxy:
    """Between whoever connects to `address` and `target`.

    hold_after: the bytes from the target after which an outage begins by itself; None: never.
    """

    def __init__(self, target: str, hold_after: int | None = None) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open = threading.Event()
        self._open.set()
        self._connections: list[socket.socket] = []
        self._hold_after, self._forwarded = hold_after, 0
        self.held = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._connections += [near, far]
                for source, sink, count in ((near, far, False), (far, near, True)):
                    threading.Thread(target=self._forward, args=(source, sink, count), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, count: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self._open.wait()
                sink.sendall(data)
                if count:
                    self._count(len(data))
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _count(self, nbytes: int) -> None:
        self._forwarded += nbytes
        if self._hold_after is not None and self._forwarded >= self._hold_after:
            self._hold_after = None
            self.hold()

    def hold(self) -> None:
        """Forward nothing, as in an outage: connections stay, nothing is said."""
        self._open.clear()
        self.held.set()

    def release(self) -> None:
        self._open.set()

    def cut(self) -> None:
        """Break every connection; new ones are forwarded."""
        for end in self._connections:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._connections.clear()

    def close(self) -> None:
        self.release()
        self._listener.close()
        self.cut()


@contextmanager
def proxied(target: str, hold_after: int | None = None) -> Iterator[Proxy]:
    proxy = Proxy(target, hold_after)
    try:
        yield proxy
    finally:
        proxy.close()
