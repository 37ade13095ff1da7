"""The data owner's process: party 1. Its prompt stays here; it alone learns the generated tokens."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from functools import partial

from mpcache.generation.backends import private_backend
from mpcache.generation.loop import Meter, Program, steps
from mpcache.generation.request import ClientRequest, GenerationRequest
from mpcache.model.config import ModelConfig
from mpcache.model.decoder import Decoder
from mpcache.parties.connection import Connection, Links
from mpcache.parties.handshake import Handshake, Wanted
from mpcache.parties.link import ClientLink
from mpcache.parties.threads import start_thread
from mpcache.protocols.session import Session
from mpcache.protocols.transport import Transport

__all__ = ["Connection", "Generation"]
_JOIN_SECONDS = 10.0
"""How long an iteration that ends waits for its session's thread, which may still be connecting."""
_END = object()


class Generation:
    """One private generation. Iterate for the tokens; `meter` and `waited_for_dealer` tell what it took so far.
    prepared: whether it uses corrections that the dealer had on its disk.

    It runs in a thread of its own, which waits for nobody but its peers: neither a slow consumer nor the decoding of
    text shows in the messages. program, transport: for benchmarks, see `mpcache.generation.loop.Program` and
    `mpcache.protocols.transport.Transport`.
    """

    def __init__(
        self,
        connection: Connection,
        request: ClientRequest,
        on_block: Callable[[int, int], None] = lambda done, total: None,
        program: Program | None = None,
        transport: Transport | None = None,
    ) -> None:
        self._connection, self._request, self._on_block = connection, request, on_block
        self._program, self._transport = program, transport
        self._links = Links(connection)
        self.prepared = False
        self.session: Session | None = None
        self.meter: Meter | None = None
        self.setup_bytes = 0
        self.model: ModelConfig | None = None

    def __iter__(self) -> Iterator[int]:
        """Raises MpcacheError; the other processes are told why."""
        found: queue.SimpleQueue[object] = queue.SimpleQueue()
        done = start_thread("client: a session", self._work, found)
        try:
            while (item := found.get()) is not _END:
                if isinstance(item, Exception):
                    raise item
                assert isinstance(item, int)
                yield item
        finally:
            self.stop()
            done.join(_JOIN_SECONDS)

    @property
    def waited_for_dealer(self) -> float:
        """Seconds for which the session stood still as the dealer was not ahead."""
        return self._links.dealer.waited_seconds if self._links.dealer else 0.0

    def stop(self) -> None:
        """Nobody wants more tokens: the others are told, and the session's thread ends. Any thread may call it."""
        self._links.stop()

    def _work(self, found: queue.SimpleQueue[object]) -> None:
        """The session, from its begin to its end; its tokens, and what went wrong, go into `found`."""
        try:
            for token in self._tokens():
                found.put(token)
        except Exception as error:  # a thread of its own: whatever it was, it is raised where tokens are awaited
            found.put(error)
        else:
            found.put(_END)

    def _tokens(self) -> Iterator[int]:
        with self._links.to_owner() as link:
            yield from self._session(link)

    def _session(self, link: ClientLink) -> Iterator[int]:
        where, asked = self._connection, self._request
        wanted = Wanted(request=asked.public, model_digest=asked.model_digest, least_vocabulary=asked.least_vocabulary)
        welcome = Handshake(where, link, wanted, self._received, self._program).for_session()
        agreement = welcome.agreement
        self.model = agreement.model
        dealt = self._links.party(link).start(agreement, welcome.seed)
        self.prepared = dealt.prepared
        session = self.session = dealt.session(agreement, link, where.max_step_gib, self._transport)
        meter = self.meter = Meter(lambda: session.cost)
        with private_backend(agreement.request.backend, session, masked_weights=welcome.weights) as backend:
            tokens = self._steps(Decoder(agreement.model, backend), agreement.request, meter)
            yield from meter.until_end(tokens, self._request.end_tokens)

    def _received(self, nbytes: int) -> None:
        self.setup_bytes += nbytes

    def _steps(self, decoder: Decoder, request: GenerationRequest, meter: Meter) -> Iterator[int | None]:
        program = self._program or partial(steps, on_pass=meter.drafted)
        return program(decoder, request, self._request.prompt, self._on_block, self._request.stop)
