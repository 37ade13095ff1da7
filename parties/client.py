"""The data owner's process: party 1. Its prompt stays here; it alone learns the generated tokens."""

from __future__ import annotations

import os
import queue
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from mpcache.generation.backends import private_backend
from mpcache.generation.loop import Meter, Program, steps
from mpcache.generation.plan import constants_digest, plan_digest
from mpcache.generation.request import PROTOCOL_VERSION, ClientRequest, GenerationRequest
from mpcache.model.checkpoint import weight_shapes
from mpcache.model.config import ModelConfig
from mpcache.model.decoder import Decoder
from mpcache.parties.agreement import Agreement, ask_dealer
from mpcache.parties.certificates import Identity
from mpcache.parties.dealer_link import DealerLink
from mpcache.parties.generated import owner_pb2
from mpcache.parties.link import SESSION_BYTES, ClientLink, Frame, told
from mpcache.parties.planning import planning_check
from mpcache.parties.threads import start_thread
from mpcache.parties.tls import DEFAULT_TIMEOUT
from mpcache.parties.weights import check_size, load_masked_weights, save_masked_weights
from mpcache.protocols.backends.mpc import weight_bits
from mpcache.protocols.errors import HandshakeError, MpcacheError, PeerLost
from mpcache.protocols.ring import packed_bytes, stored, unpack
from mpcache.protocols.session import Session
from mpcache.protocols.transport import Transport

_DIGEST, _FINGERPRINT = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{32}")
_JOIN_SECONDS = 10.0
"""How long an iteration that ends waits for its session's thread, which may still be connecting."""
_LAST_WORD = 2.0
"""Seconds that an owner's own reason may come later than the dealer's word that it left."""


@dataclass(frozen=True)
class Connection:
    """Where the others are, and how to reach them. max_model_gib: of masked weights and cache that are
    accepted; max_step_gib: of one correlation or message."""

    owner: str
    dealer: str
    identity: Identity | None
    state: Path
    timeout: float = DEFAULT_TIMEOUT
    max_model_gib: float = 16.0
    max_step_gib: float = 2.0


_END = object()


class Generation:
    """One private generation. Iterate for the tokens; `meter` and `waited_for_dealer` tell what it took so far.

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
        self._link: ClientLink | None = None
        self._dealer: DealerLink | None = None
        self._stopped = False
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
        return self._dealer.waited_seconds if self._dealer else 0.0

    def stop(self) -> None:
        """Nobody wants more tokens: the others are told, and the session's thread ends. Any thread may call it."""
        self._stopped = True
        if self._link is not None:
            self._link.abort("the client stopped")
        if self._dealer is not None:
            self._dealer.close()

    def _check_wanted(self) -> None:
        """After each link was made, as `stop` ends only those that it finds."""
        if self._stopped:
            raise PeerLost("the client stopped")

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
        where = self._connection
        link = self._link = ClientLink(where.owner, where.identity, os.urandom(SESSION_BYTES), where.timeout)
        try:
            self._check_wanted()
            yield from self._session(link)
        except MpcacheError as error:
            dealer = self._dealer
            owner_left = dealer is not None and dealer.ending is not None and dealer.ending.other_left
            reason = link.reason(_LAST_WORD) if owner_left else None
            link.abort(reason or told(error, "client"))
            if reason is not None:
                raise PeerLost(reason) from None
            raise
        except Exception as error:
            link.abort(told(error, "client"))
            raise
        finally:
            link.disconnect()
            if self._dealer is not None:
                self._dealer.close()

    def _session(self, link: ClientLink) -> Iterator[int]:
        where = self._connection
        agreement, weights = self._handshake(link)
        self.model = agreement.model
        dealt = ask_dealer("client", agreement, where.dealer, where.identity, where.timeout)
        dealer = self._dealer = dealt.link
        self._check_wanted()
        link.check = dealer.check
        dealer.wait_started(link.check_peer)
        session = self.session = dealt.session(agreement, link, where.max_step_gib, self._transport)
        meter = self.meter = Meter(lambda: session.cost)
        with private_backend(agreement.request.backend, session, masked_weights=weights) as backend:
            tokens = self._steps(Decoder(agreement.model, backend), agreement.request)
            yield from meter.until_end(tokens, self._request.end_tokens)

    def _steps(self, decoder: Decoder, request: GenerationRequest) -> Iterator[int | None]:
        ends, program = self._request.stop_tokens, self._program or steps
        return program(decoder, request, self._request.prompt, self._on_block, lambda token: token in ends)

    def _handshake(self, link: ClientLink) -> tuple[Agreement, dict[str, torch.Tensor]]:
        """What both agree on, and the masked weights. Raises HandshakeError, ModelError."""
        wanted = self._request.model_digest
        text = self._request.public.to_json()
        request = GenerationRequest.from_json(text)  # as the owner reads it: a whole number may stand for a fraction
        hello = owner_pb2.Hello(
            protocol_version=PROTOCOL_VERSION, session=link.session, request=text, model_digest=wanted
        )
        link.put(Frame(hello=hello))
        frame = link.next_frame()
        if frame.WhichOneof("kind") != "welcome":
            raise HandshakeError("the owner did not answer with a welcome: is it another version of MPCache?")
        welcome = frame.welcome
        if not (_DIGEST.fullmatch(welcome.model_digest) and _FINGERPRINT.fullmatch(welcome.masked_weights)):
            raise HandshakeError("the owner's welcome names its model by what is no digest")
        if wanted and welcome.model_digest != wanted:
            raise HandshakeError("the owner offers another model than model_digest in the client's settings")
        model = ModelConfig.from_json(welcome.model)
        self._check(model, request)
        if constants_digest(model, request) != welcome.constants_digest:
            raise HandshakeError(
                "the public constants that this machine computes (rotary positions, exponentials) differ from the "
                "owner's: install the same MPCache, numpy and torch on both sides, and report it if that does not help"
            )
        digest = plan_digest(model, request, self._program, planning_check(self._connection.timeout, link.check_peer))
        if digest != welcome.plan_digest:
            raise HandshakeError(
                "the client's plan differs from the owner's: install the same version of MPCache on both sides"
            )
        agreement = Agreement(session=link.session, model=model, request=request, plan_digest=digest)
        return agreement, self._weights(link, model, welcome)

    def _check(self, model: ModelConfig, request: GenerationRequest) -> None:
        """The owner's model must bear the request, fit this memory, and the tokenizer's tokens whatever the prompt."""
        request.check("client", model, request.prompt_tokens, request.max_new_tokens)
        check_size(model, request.tokens, "client", self._connection.max_model_gib)
        if self._request.least_vocabulary > model.vocabulary:
            raise HandshakeError(
                f"the tokenizer does not fit the owner's model: it has tokens beyond its vocabulary of "
                f"{model.vocabulary}"
            )

    def _weights(self, link: ClientLink, model: ModelConfig, welcome: owner_pb2.Welcome) -> dict[str, torch.Tensor]:
        state, fingerprint = self._connection.state, welcome.masked_weights
        kept, weights = load_masked_weights(state, link.certificate, welcome.model_digest)
        shapes = weight_shapes(model)
        wanted = {n: (shape, stored(torch.empty(0), weight_bits(n)).dtype) for n, shape in shapes.items()}
        complete = kept == fingerprint and {n: (tuple(w.shape), w.dtype) for n, w in weights.items()} == wanted
        link.send(b"\x00" if complete else b"\x01")
        if complete:
            return weights
        weights = {}
        for name, shape in shapes.items():
            bits = weight_bits(name)
            nbytes = packed_bytes(shape[0] * shape[1], bits)
            weights[name] = stored(unpack(link.receive(nbytes), shape, bits), bits)
            link.send(b"\x01")
            self.setup_bytes += nbytes
        save_masked_weights(state, fingerprint, link.certificate, welcome.model_digest, weights)
        return weights
