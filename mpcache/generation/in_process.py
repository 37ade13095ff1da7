"""A private generation in one process, for notebooks and tests.

The owner is a thread; the client is whoever iterates; the dealer's corrections are made when the client asks for them.
They send each other what two companies would, byte by byte. But they share a memory: this protects nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from mpcache.generation.backends import private_backend
from mpcache.generation.loop import Meter, steps
from mpcache.generation.plan import correlations
from mpcache.generation.request import ClientRequest, GenerationRequest
from mpcache.model.checkpoint import Checkpoint, weight_shapes
from mpcache.model.config import ModelConfig
from mpcache.model.decoder import Decoder
from mpcache.protocols.backends.mpc import masked_weight
from mpcache.protocols.correlation import Dealer, PartyCorrelations, corrections
from mpcache.protocols.errors import ConfigError, PeerLost
from mpcache.protocols.randomness import new_key
from mpcache.protocols.session import Session
from mpcache.protocols.transport import QueueChannel, channel_pair


class InProcessGeneration:
    """One private generation. Iterate for the tokens; `meter` tells what they took so far, as the client counts."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        request: ClientRequest,
        on_block: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        if request.public.backend != "mpc":
            raise ConfigError("only the backend 'mpc' runs in one process: others need processes of their own")
        self._checkpoint, self._request, self._on_block = checkpoint, request, on_block
        self._failure: Exception | None = None
        self._channels = channel_pair(threading.TIMEOUT_MAX)
        self._stopped = False
        self.meter: Meter | None = None

    def __iter__(self) -> Iterator[int]:
        """Once. Raises MpcacheError, and whatever else went wrong in the owner's thread."""
        config, request = self._checkpoint.config, self._request
        seeds, key = (new_key(), new_key()), new_key()
        here, there = self._channels
        owner = threading.Thread(target=self._own, args=(there, seeds[0], key), name="mpcache owner", daemon=True)
        read = dealt_in_line(config, request.public, seeds, key)
        session = Session(1, here, PartyCorrelations(1, seeds[1], read))
        session.round_bytes = request.public.round_bytes
        masked = {name: masked_weight(key, name, self._checkpoint.tensors[name]) for name in weight_shapes(config)}
        meter = self.meter = Meter(lambda: session.cost)
        owner.start()
        try:
            with private_backend("mpc", session, masked_weights=masked) as backend:
                decoder = Decoder(config, backend)
                tokens = steps(decoder, request.public, request.prompt, self._on_block, request.stop, meter.drafted)
                yield from meter.until_end(tokens, request.end_tokens)
        except PeerLost:
            if self._stopped:
                raise PeerLost("the client stopped") from None
            raise self._failure or PeerLost("the owner's thread ended") from None
        finally:
            here.close()
            owner.join()

    def stop(self) -> None:
        """Nobody wants more tokens: the owner's thread ends, and so does an iteration. Any thread may call it."""
        self._stopped = True
        for channel in self._channels:
            channel.close()

    def _own(self, channel: QueueChannel, seed: bytes, key: bytes) -> None:
        """The owner's half, which hears no token."""
        session = Session(0, channel, PartyCorrelations(0, seed, no_corrections))
        session.round_bytes = self._request.public.round_bytes
        try:
            with private_backend("mpc", session, weight_key=key) as backend:
                decoder = Decoder(self._checkpoint.config, backend, self._checkpoint.tensors)
                for _ in steps(decoder, self._request.public, None):
                    pass
        except Exception as error:  # a thread of its own: whatever it was, it is raised where tokens are awaited
            self._failure = error
        finally:
            channel.close()


def dealt_in_line(
    config: ModelConfig, request: GenerationRequest, seeds: tuple[bytes, bytes], weight_key: bytes
) -> Callable[[int], bytes]:
    """What reads the corrections of a generation, made when they are asked for."""
    return _Stream(corrections(Dealer(seeds, weight_key), correlations(config, request))).read


def no_corrections(nbytes: int) -> bytes:
    raise AssertionError("party 0 is sent no correction")


class _Stream:
    """Chunks as one stream of bytes."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def read(self, nbytes: int) -> bytes:
        while len(self._rest) < nbytes:
            self._rest += next(self._chunks)
        taken, self._rest = self._rest[:nbytes], self._rest[nbytes:]
        return taken
