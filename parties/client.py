"""The data owner's process: party 1. Its prompt stays here; it alone learns the generated tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from mpcache.generation.backends import private_backend
from mpcache.generation.loop import Meter, Program, steps
from mpcache.generation.request import ClientRequest, GenerationRequest
from mpcache.model.config import ModelConfig
from mpcache.model.decoder import Decoder
from mpcache.parties.connection import Connection
from mpcache.parties.handshake import Handshake, Wanted
from mpcache.parties.link import ClientLink
from mpcache.parties.running import Running
from mpcache.protocols.session import Session
from mpcache.protocols.transport import Transport

__all__ = ["Connection", "Generation"]


class Generation(Running[int]):
    """One private generation. Iterate for the tokens; `meter` and `waited_for_dealer` tell what it took so far.
    prepared: whether it uses corrections that the dealer had on its disk.

    program, transport: for benchmarks, see `mpcache.generation.loop.Program` and
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
        super().__init__(connection)
        self._request, self._on_block = request, on_block
        self._program, self._transport = program, transport
        self.prepared = False
        self.session: Session | None = None
        self.meter: Meter | None = None
        self.model: ModelConfig | None = None

    def _session(self, link: ClientLink) -> None:
        where, asked = self._connection, self._request
        wanted = Wanted(request=asked.public, model_digest=asked.model_digest, least_vocabulary=asked.least_vocabulary)
        welcome = Handshake(where, link, wanted, self._received, self._program).for_session()
        (agreement,) = welcome.agreements
        self.model = agreement.model
        dealt = self._links.party(link).start(agreement, welcome.seed)
        self.prepared = dealt.prepared
        session = self.session = dealt.session(agreement, link, where.max_step_gib, self._transport)
        meter = self.meter = Meter(lambda: session.cost)
        with private_backend(agreement.request.backend, session, masked_weights=welcome.weights) as backend:
            tokens = self._steps(Decoder(agreement.model, backend), agreement.request, meter)
            for token in meter.until_end(tokens, self._request.end_tokens):
                self._give(token)

    def _steps(self, decoder: Decoder, request: GenerationRequest, meter: Meter) -> Iterator[int | None]:
        program = self._program or partial(steps, on_pass=meter.drafted)
        return program(decoder, request, self._request.prompt, self._on_block, self._request.stop)
