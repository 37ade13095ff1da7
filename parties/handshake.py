"""A client's half of the handshake: what it asks an owner for, and what it demands of the answer."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mpcache.generation.batch import batch_digest, batch_of, longest
from mpcache.generation.loop import Program
from mpcache.generation.plan import constants_digest
from mpcache.generation.request import PROTOCOL_VERSION, GenerationRequest
from mpcache.model.checkpoint import weight_shapes
from mpcache.model.config import ModelConfig
from mpcache.parties.agreement import Agreement, agreements
from mpcache.parties.connection import Connection
from mpcache.parties.generated import owner_pb2, purpose_pb2
from mpcache.parties.link import ClientLink, Frame
from mpcache.parties.logs import SessionLog
from mpcache.parties.planning import planning_check
from mpcache.parties.seeds import Facts, KeptSeeds, Seed, request_digest
from mpcache.parties.weights import check_size, load_masked_weights, save_masked_weights
from mpcache.protocols.backends.mpc import weight_bits
from mpcache.protocols.errors import HandshakeError
from mpcache.protocols.ring import packed_bytes, stored, unpack

SESSION, PREPARE, PREPARED = purpose_pb2.SESSION, purpose_pb2.PREPARE, purpose_pb2.PREPARED
log = logging.getLogger("mpcache.prepared")
_DIGEST, _FINGERPRINT = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Of an owner. further_prompt_tokens: of a batch, lengths of the prompts after the request's. model_digest: accept
    this model alone; empty: any. least_vocabulary: what it must have room for."""

    request: GenerationRequest
    further_prompt_tokens: tuple[int, ...] = ()
    model_digest: str = ""
    least_vocabulary: int = 1

    def as_read(self) -> GenerationRequest:
        """The request as the owner reads it: a whole number may stand for a fraction."""
        return GenerationRequest.from_json(self.request.to_json())


@dataclass(frozen=True, kw_only=True)
class Welcome:
    """What an owner answered, checked. agreements: of each prompt; seed: of the prepared session that both parties had,
    and have no more."""

    agreements: tuple[Agreement, ...]
    facts: Facts
    weights: dict[str, torch.Tensor]
    seed: bytes | None = None


class Handshake:
    """One client's with one owner. received: is told of the bytes of masked weights that come. program: see
    `mpcache.generation.loop.Program`. Methods raise HandshakeError, ModelError, PeerLost, ConfigError."""

    def __init__(
        self,
        where: Connection,
        link: ClientLink,
        wanted: Wanted,
        received: Callable[[int], None] = lambda nbytes: None,
        program: Program | None = None,
    ) -> None:
        self._where, self._link, self._wanted = where, link, wanted
        self._received, self._program = received, program
        self._seeds = KeptSeeds(where.state, where.prepared_hours)

    def for_session(self) -> Welcome:
        """For a session: a prepared one where there is one for exactly this request. A batch is not prepared."""
        link, wanted = self._link, self._wanted
        if wanted.further_prompt_tokens:
            return self._agree(SESSION)
        with self._seeds.offered(link.certificate, wanted.as_read(), wanted.model_digest) as kept:
            if kept is None:
                return self._agree(SESSION)
            link.session = bytes.fromhex(kept.session)
            return self._agree(PREPARED, kept)

    def for_preparation(self) -> Welcome:
        """To prepare a session."""
        self._seeds.check_room(self._link.certificate, self._link.session)
        return self._agree(PREPARE)

    def keep(self, seed: bytes, facts: Facts) -> None:
        """The seed of a session that owner and dealer have prepared."""
        self._seeds.keep(self._link.session, seed, facts)

    def _agree(self, purpose: purpose_pb2.Purpose, kept: Seed | None = None) -> Welcome:
        """kept: this client's seed of the session, which is deleted as soon as the owner has answered."""
        link, request = self._link, self._wanted.as_read()
        hello = owner_pb2.Hello(
            protocol_version=PROTOCOL_VERSION,
            session=link.session,
            request=request.to_json(),
            model_digest=self._wanted.model_digest,
            purpose=purpose,
            further_prompt_tokens=self._wanted.further_prompt_tokens,
        )
        link.put(Frame(hello=hello))
        frame = link.next_frame()
        if frame.WhichOneof("kind") != "welcome":
            raise HandshakeError("the owner did not answer with a welcome: is it another version of MPCache?")
        welcome = frame.welcome
        seed = None if kept is None else self._seeds.take(link.session, kept.facts)
        model, agreed = self._checked(welcome, batch_of(request, self._wanted.further_prompt_tokens))
        facts = Facts(
            peer=link.certificate,
            request=request_digest(request),
            model=welcome.model_digest,
            plan=welcome.plan_digest,
            masked_weights=welcome.masked_weights,
        )
        if not welcome.prepared:
            if kept is not None:
                journal = SessionLog(log, link.session)
                journal.warning("the owner has no such prepared session: an ordinary one takes its place")
            seed = None
        elif kept is None or seed is None or kept.facts != facts:
            raise HandshakeError("the owner's welcome is for a prepared session that the client did not ask for")
        return Welcome(agreements=agreed, facts=facts, weights=self._weights(model, welcome), seed=seed)

    def _checked(
        self, welcome: owner_pb2.Welcome, requests: Sequence[GenerationRequest]
    ) -> tuple[ModelConfig, tuple[Agreement, ...]]:
        """The owner's model and what is agreed for each prompt, if all that the welcome says is what it must be."""
        wanted = self._wanted.model_digest
        if not (_DIGEST.fullmatch(welcome.model_digest) and _FINGERPRINT.fullmatch(welcome.masked_weights)):
            raise HandshakeError("the owner's welcome names its model by what is no digest")
        if wanted and welcome.model_digest != wanted:
            raise HandshakeError("the owner offers another model than model_digest in the client's settings")
        model = ModelConfig.from_json(welcome.model)
        self._check(model, requests)
        if constants_digest(model, longest(requests)) != welcome.constants_digest:
            raise HandshakeError(
                "the public constants that this machine computes (rotary positions, exponentials) differ from the "
                "owner's: install the same MPCache, numpy and torch on both sides, and report it if that does not help"
            )
        check = planning_check(self._where.timeout, self._link.check_peer)
        digest, each = batch_digest(model, requests, self._program, check)
        if digest != welcome.plan_digest:
            raise HandshakeError(
                "the client's plan differs from the owner's: install the same version of MPCache on both sides"
            )
        return model, agreements(self._link.session, model, requests, each)

    def _check(self, model: ModelConfig, requests: Sequence[GenerationRequest]) -> None:
        """The owner's model must bear the requests, fit this memory, and the tokenizer's tokens whatever the prompt."""
        for request in requests:
            n = request.prompt_tokens
            request.check("client", model, n, request.answered, max(n, request.prefill_block))
        check_size(model, sum(request.cached for request in requests), "client", self._where.max_model_gib)
        if self._wanted.least_vocabulary > model.vocabulary:
            raise HandshakeError(
                f"the tokenizer does not fit the owner's model: it has tokens beyond its vocabulary of "
                f"{model.vocabulary}"
            )

    def _weights(self, model: ModelConfig, welcome: owner_pb2.Welcome) -> dict[str, torch.Tensor]:
        link, state, fingerprint = self._link, self._where.state, welcome.masked_weights
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
            self._received(nbytes)
        save_masked_weights(state, fingerprint, link.certificate, welcome.model_digest, weights)
        return weights
