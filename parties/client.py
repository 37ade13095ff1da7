"""The data owner's process: party 1. Its prompt stays here; it alone learns the generated tokens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mpcache.backends import private_backend
from mpcache.checkpoint import weight_shapes
from mpcache.decoder import Decoder
from mpcache.generate import FULL, Meter, Program, steps
from mpcache.network import LOOPBACK
from mpcache.planning import PRECISION, PROTOCOL_VERSION, PublicParameters, plan_digest
from mpcache.policies import PolicySettings
from parties.certificates import Identity
from parties.dealing import DealerLink, left
from parties.generated import dealer_pb2, owner_pb2
from parties.link import ClientLink, Frame
from parties.weights import load_masked_weights, save_masked_weights
from protocols.backends.mpc import weight_bits
from protocols.correlation import PartyCorrelations
from protocols.errors import HandshakeError, MpcacheError, PeerLost
from protocols.randomness import new_key
from protocols.ring import packed_bytes, stored, unpack
from protocols.session import Session
from protocols.transport import Transport

_LAST_WORD = 2.0
"""Seconds that an owner's own reason may come later than the dealer's word that it left."""


@dataclass(frozen=True)
class Connection:
    """Where the others are, and how to reach them."""

    owner: str
    dealer: str
    identity: Identity | None
    state: Path
    timeout: float = 60.0


@dataclass(frozen=True)
class Request:
    """What to generate. model_digest: accept this model alone; empty: any."""

    prompt: Sequence[int]
    max_new_tokens: int
    temperature: float = 0.0
    policy: PolicySettings = FULL
    backend: str = "mpc"
    model_digest: str = ""
    network: str = LOOPBACK.name


class Generation:
    """One private generation. Iterate for the tokens; `meter` and `waited_for_dealer` tell what it took so far.

    program, transport: for benchmarks, see `mpcache.generate.Program` and `protocols.transport.Transport`.
    """

    def __init__(
        self,
        connection: Connection,
        request: Request,
        on_block: Callable[[int, int], None] = lambda done, total: None,
        program: Program | None = None,
        transport: Transport | None = None,
    ) -> None:
        self._connection, self._request, self._on_block = connection, request, on_block
        self._program, self._transport = program, transport
        self.session: Session | None = None
        self.meter: Meter | None = None
        self.setup_bytes = 0
        self.waited_for_dealer = 0.0
        self.parameters: PublicParameters | None = None

    def __iter__(self) -> Iterator[int]:
        """Raises MpcacheError; the other processes are told why."""
        connection, session_id = self._connection, os.urandom(16)
        link = ClientLink(connection.owner, connection.identity, session_id, connection.timeout)
        dealer: DealerLink | None = None
        try:
            parameters, digest, weights = self._handshake(link)
            self.parameters = parameters
            seed = new_key()
            request = dealer_pb2.DealRequest(
                protocol_version=PROTOCOL_VERSION,
                role="client",
                session=session_id,
                public_parameters=parameters.to_json(),
                plan_digest=digest,
                seed=seed,
            )
            dealer = DealerLink(connection.dealer, connection.identity, request, connection.timeout)
            link.check = dealer.check
            dealer.wait_started(link.check_peer)
            channel = self._transport(link) if self._transport else link
            session = self.session = Session(1, channel, PartyCorrelations(1, seed, dealer.read))
            session.round_bytes = parameters.round_bytes
            self.meter = Meter(lambda: session.cost)
            with private_backend(parameters.backend, session, masked_weights=weights) as backend:
                for token in self._steps(Decoder(parameters.model, backend), parameters):
                    self.meter.token()
                    self.waited_for_dealer = dealer.waited_seconds
                    assert token is not None
                    yield token
        except GeneratorExit:
            link.abort("the client stopped")
            raise
        except MpcacheError as error:
            reason = link.reason(_LAST_WORD) if dealer is not None and dealer.told == left("owner") else None
            link.abort(reason or str(error))
            if reason is not None:
                raise PeerLost(reason) from None
            raise
        except BaseException as error:
            link.abort(f"the client failed: {type(error).__name__}")
            raise
        finally:
            link.disconnect()
            if dealer is not None:
                dealer.close()

    def _steps(self, decoder: Decoder, parameters: PublicParameters) -> Iterator[int | None]:
        ends = parameters.model.end_tokens
        program = self._program or steps
        return program(decoder, parameters.generation(), self._request.prompt, self._on_block, lambda t: t in ends)

    def _handshake(self, link: ClientLink) -> tuple[PublicParameters, str, dict[str, torch.Tensor]]:
        wanted = self._request
        link.put(
            Frame(
                hello=owner_pb2.Hello(
                    protocol_version=PROTOCOL_VERSION,
                    session=link.session,
                    model_digest=wanted.model_digest,
                    policy=wanted.policy.to_json(),
                    precision=PRECISION,
                    prompt_tokens=len(wanted.prompt),
                    max_new_tokens=wanted.max_new_tokens,
                    temperature=wanted.temperature,
                    backend=wanted.backend,
                    network=wanted.network,
                )
            )
        )
        frame = link.next_frame()
        if frame.WhichOneof("kind") != "welcome":
            raise HandshakeError("the owner did not answer with a welcome: is it another version of MPCache?")
        welcome = frame.welcome
        parameters = PublicParameters.from_json(welcome.public_parameters)
        self._check(parameters)
        digest = plan_digest(parameters, self._program)
        if digest != welcome.plan_digest:
            raise HandshakeError(
                "the client's plan differs from the owner's: install the same version of MPCache on both sides"
            )
        return parameters, digest, self._weights(link, parameters, welcome.masked_weights)

    def _check(self, offered: PublicParameters) -> None:
        """The owner may only have filled in its model."""
        wanted = PublicParameters(
            offered.model,
            offered.model_digest,
            len(self._request.prompt),
            self._request.max_new_tokens,
            self._request.temperature,
            self._request.backend,
            self._request.policy,
            network=self._request.network,
        )
        if replace(offered) != wanted:
            raise HandshakeError("the owner answered with other lengths or settings than were asked for")
        if self._request.model_digest and offered.model_digest != self._request.model_digest:
            raise HandshakeError("the owner offers another model than model_digest in the client's settings")
        offered.check()
        if max(self._request.prompt) >= offered.model.vocabulary:
            raise HandshakeError("the tokenizer does not fit the owner's model: a token is beyond its vocabulary")

    def _weights(self, link: ClientLink, parameters: PublicParameters, fingerprint: str) -> dict[str, torch.Tensor]:
        state = self._connection.state
        kept, weights = load_masked_weights(state, parameters.model_digest)
        shapes = weight_shapes(parameters.model)
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
        save_masked_weights(state, fingerprint, parameters.model_digest, weights)
        return weights
