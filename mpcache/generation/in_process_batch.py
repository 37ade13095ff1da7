"""Several private generations in the same rounds, in one process: see in_process.py, and protocols/lanes.py."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

from mpcache.generation.backends import private_backend
from mpcache.generation.batch import check_batch
from mpcache.generation.in_process import dealt_in_line, no_corrections
from mpcache.generation.loop import Meter, steps
from mpcache.generation.request import ClientRequest
from mpcache.model.checkpoint import Checkpoint, weight_shapes
from mpcache.model.decoder import Decoder
from mpcache.protocols.backends.mpc import masked_weight
from mpcache.protocols.correlation import PartyCorrelations
from mpcache.protocols.errors import ConfigError, PeerLost
from mpcache.protocols.lanes import Lanes
from mpcache.protocols.randomness import new_key
from mpcache.protocols.transport import channel_pair

_END = object()


class InProcessBatch:
    """Iterate once for (which request, its next token). meters: of each, as the client counts; a round that several
    share is counted by each of them. rounds: those of the batch."""

    def __init__(self, checkpoint: Checkpoint, requests: Sequence[ClientRequest]) -> None:
        """Raises ConfigError if these cannot share their rounds."""
        check_batch(requests)
        if requests[0].public.backend != "mpc":
            raise ConfigError("only the backend 'mpc' runs in one process: others need processes of their own")
        self._checkpoint, self._requests = checkpoint, requests
        self._weight_key = new_key()
        self._seeds = [(new_key(), new_key()) for _ in requests]
        self._channels = channel_pair(threading.TIMEOUT_MAX)
        self._found: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._failure: Exception | None = None
        self._stopped = False
        self.meters: list[Meter | None] = [None] * len(requests)
        self.rounds = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Raises MpcacheError, and whatever else went wrong in a thread of the batch."""
        parties = [
            threading.Thread(target=work, name=f"mpcache {role}: a batch", daemon=True)
            for role, work in (("owner", self._own), ("client", self._ask))
        ]
        for thread in parties:
            thread.start()
        try:
            while (item := self._found.get()) is not _END:
                if isinstance(item, PeerLost):
                    raise PeerLost("the client stopped") if self._stopped else self._failure or item
                if isinstance(item, Exception):
                    raise item
                assert isinstance(item, tuple)
                yield item
        finally:
            self.stop()
            for thread in parties:
                thread.join()

    def stop(self) -> None:
        """Nobody wants more tokens. Any thread may call it."""
        self._stopped = True
        for channel in self._channels:
            channel.close()

    def _ask(self) -> None:
        """The client's half, in a thread of its own."""
        tensors = self._checkpoint.tensors
        masked = {n: masked_weight(self._weight_key, n, tensors[n]) for n in weight_shapes(self._checkpoint.config)}
        lanes = Lanes(self._channels[0], len(self._requests))

        def work(lane: int) -> None:
            request, seeds = self._requests[lane], self._seeds[lane]
            read = dealt_in_line(self._checkpoint.config, request.public, seeds, self._weight_key)
            session = lanes.session(lane, 1, PartyCorrelations(1, seeds[1], read))
            session.round_bytes = request.public.round_bytes
            meter = self.meters[lane] = Meter(lambda: session.cost)
            with private_backend("mpc", session, masked_weights=masked) as backend:
                decoder = Decoder(self._checkpoint.config, backend)
                tokens = steps(decoder, request.public, request.prompt, stop=request.stop, on_pass=meter.drafted)
                for token in meter.until_end(tokens, request.end_tokens):
                    self._found.put((lane, token))

        try:
            lanes.run(work)
            self.rounds = lanes.rounds
            self._found.put(_END)
        except Exception as error:  # whatever it was, it is raised where tokens are awaited
            self._channels[0].close()
            self._found.put(error)

    def _own(self) -> None:
        """The owner's half, which hears no token."""
        channel = self._channels[1]
        lanes = Lanes(channel, len(self._requests))

        def work(lane: int) -> None:
            request = self._requests[lane].public
            session = lanes.session(lane, 0, PartyCorrelations(0, self._seeds[lane][0], no_corrections))
            session.round_bytes = request.round_bytes
            with private_backend("mpc", session, weight_key=self._weight_key) as backend:
                for _ in steps(Decoder(self._checkpoint.config, backend, self._checkpoint.tensors), request, None):
                    pass

        try:
            lanes.run(work)
        except Exception as error:  # raised where tokens are awaited
            self._failure = error
        finally:
            channel.close()
