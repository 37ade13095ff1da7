"""A client's batch: the generations of several prompts, in the same rounds of one session with the owner.

The owner hears the prompts' lengths, and of each answer when it ends. For the dealer each prompt is a session, with
seeds of its own. See protocols/lanes.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from mpcache.generation.backends import private_backend
from mpcache.generation.batch import check_batch
from mpcache.generation.loop import Meter, steps
from mpcache.generation.request import ClientRequest
from mpcache.model.decoder import Decoder
from mpcache.parties.agreement import largest_bytes
from mpcache.parties.connection import Connection
from mpcache.parties.handshake import Handshake, Wanted
from mpcache.parties.link import ClientLink
from mpcache.parties.running import Running
from mpcache.protocols.lanes import Lanes
from mpcache.protocols.transport import Transport


class Batch(Running[tuple[int, int]]):
    """Iterate for (which request, its next token). meters: of each request; a round that several share is counted by
    each of them. rounds: those of the batch, when it has ended."""

    def __init__(
        self, connection: Connection, requests: Sequence[ClientRequest], transport: Transport | None = None
    ) -> None:
        """Raises ConfigError if these cannot share their rounds."""
        check_batch(requests)
        super().__init__(connection)
        self._requests, self._transport = requests, transport
        self.meters: list[Meter | None] = [None] * len(requests)
        self.rounds = 0

    def _session(self, link: ClientLink) -> None:
        where, first = self._connection, self._requests[0]
        wanted = Wanted(
            request=first.public,
            further_prompt_tokens=tuple(request.public.prompt_tokens for request in self._requests[1:]),
            model_digest=first.model_digest,
            least_vocabulary=max(request.least_vocabulary for request in self._requests),
        )
        welcome = Handshake(where, link, wanted, self._received).for_session()
        agreed, largest = welcome.agreements, where.max_step_gib
        party = self._links.party(link, len(agreed))
        dealt = [party.start(agreement, welcome.seed) for agreement in agreed]
        channel = self._transport(link) if self._transport else link
        lanes = Lanes(channel, len(agreed), largest_bytes(largest))

        def work(lane: int) -> None:
            agreement, request = agreed[lane], self._requests[lane]
            session = dealt[lane].in_lane(agreement, lanes, lane, largest)
            meter = self.meters[lane] = Meter(lambda: session.cost)
            with private_backend(agreement.request.backend, session, masked_weights=welcome.weights) as backend:
                decoder = Decoder(agreement.model, backend)
                tokens = steps(decoder, agreement.request, request.prompt, stop=request.stop, on_pass=meter.drafted)
                for token in meter.until_end(tokens, request.end_tokens):
                    self._give((lane, token))

        lanes.run(work)
        self.rounds = lanes.rounds
