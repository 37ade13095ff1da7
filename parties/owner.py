"""The model owner's process: party 0. It learns lengths and settings, never a token."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import grpc

from mpcache.backends import private_backend
from mpcache.checkpoint import Checkpoint, load_checkpoint
from mpcache.decoder import Decoder
from mpcache.generate import Program, steps
from mpcache.planning import PRECISION, PROTOCOL_VERSION, PublicParameters, plan_digest
from mpcache.policies import PolicySettings
from parties.certificates import Identity, fingerprint
from parties.dealing import DealerLink
from parties.generated import dealer_pb2, owner_pb2, owner_pb2_grpc
from parties.link import Frame, Link
from parties.settings import OwnerSettings
from parties.threads import start_thread
from parties.tls import on_end, open_server, require_role
from parties.weights import encoded_checkpoint, encoded_digest, masked_weights, weight_key, weights_fingerprint
from protocols.backends.mpc import weight_bits
from protocols.correlation import PartyCorrelations
from protocols.errors import HandshakeError, MpcacheError
from protocols.randomness import new_key
from protocols.ring import pack
from protocols.session import Session
from protocols.transport import Transport

log = logging.getLogger("mpcache.owner")


class OwnerService(owner_pb2_grpc.OwnerServicer):
    """Serves sessions, each in a thread of its own."""

    def __init__(
        self,
        settings: OwnerSettings,
        identity: Identity | None,
        checkpoint: Checkpoint,
        program: Program | None = None,
        transport: Transport | None = None,
    ) -> None:
        self._settings, self._identity, self._checkpoint = settings, identity, encoded_checkpoint(checkpoint)
        self._program, self._transport = program, transport
        self._encoded = encoded_digest(checkpoint.config, self._checkpoint.tensors)
        self._places = threading.BoundedSemaphore(settings.max_sessions)

    def Converse(self, frames: Iterator[Frame], context: grpc.ServicerContext) -> Iterator[Frame]:
        require_role(context, ("client",), self._identity is None)
        certificate = context.auth_context().get("x509_pem_cert", [b""])[0]
        client = fingerprint(bytes(certificate)) if certificate else "plaintext"
        link = Link("owner", "client", b"", self._settings.timeout_seconds)
        on_end(context, lambda: link.lost("lost the client: its process ended or the connection broke"))
        start_thread("owner: frames from a client", link.feed, frames, _explain)
        start_thread("owner: a session", self._serve, link, client)
        yield from link.outgoing()

    def _serve(self, link: Link, client: str) -> None:
        if not self._places.acquire(blocking=False):
            link.abort(f"the owner serves {self._settings.max_sessions} sessions already: try again later")
            return
        with ExitStack() as at_end:  # the client is told why before the dealer hears that the owner left
            at_end.callback(self._places.release)
            try:
                self._session(link, client, at_end)
                link.close()
            except MpcacheError as error:
                log.warning("session ended: %s", error)
                link.abort(str(error))
            except Exception as error:  # a thread of its own: the client must not be left waiting
                log.exception("session failed")
                link.abort(f"the owner failed: {type(error).__name__}")

    def _session(self, link: Link, client: str, at_end: ExitStack) -> None:
        frame = link.next_frame()
        if frame.WhichOneof("kind") != "hello" or len(frame.hello.session) != 16:
            raise HandshakeError("a session begins with a hello")
        hello = frame.hello
        link.session = hello.session
        parameters = self._agree(hello)
        key = weight_key(self._settings.state, self._encoded, client)
        digest = plan_digest(parameters, self._program)
        link.put(
            Frame(
                welcome=owner_pb2.Welcome(
                    public_parameters=parameters.to_json(), plan_digest=digest, masked_weights=weights_fingerprint(key)
                )
            )
        )
        if link.receive(1) == b"\x01":
            for name, tensor in masked_weights(self._checkpoint.config, key, self._checkpoint.tensors):
                link.send(pack(tensor, weight_bits(name)))
                link.receive(1)  # the next one is made when this one has arrived: not all of them wait in memory
        seed = new_key()
        request = dealer_pb2.DealRequest(
            protocol_version=PROTOCOL_VERSION,
            role="owner",
            session=hello.session,
            public_parameters=parameters.to_json(),
            plan_digest=digest,
            seed=seed,
            weight_key=key,
        )
        dealer = DealerLink(self._settings.dealer, self._identity, request, self._settings.timeout_seconds)
        at_end.callback(dealer.close)
        link.check = dealer.check
        dealer.wait_started(link.check_peer)
        channel = self._transport(link) if self._transport else link
        session = Session(0, channel, PartyCorrelations(0, seed, dealer.read))
        session.round_bytes = parameters.round_bytes
        with private_backend(parameters.backend, session, weight_key=key) as backend:
            decoder = Decoder(self._checkpoint.config, backend, self._checkpoint.tensors)
            generated = sum(1 for _ in (self._program or steps)(decoder, parameters.generation(), None))
        log.info("session done: %d prompt tokens, %d new tokens", parameters.prompt_tokens, generated)

    def _agree(self, hello: owner_pb2.Hello) -> PublicParameters:
        """The session's public parameters, or a HandshakeError that says what to change."""
        if hello.protocol_version != PROTOCOL_VERSION:
            raise HandshakeError(
                f"the owner speaks protocol version {PROTOCOL_VERSION}, the client {hello.protocol_version}: "
                "install the same MPCache on both sides"
            )
        if hello.model_digest and hello.model_digest != self._checkpoint.digest:
            raise HandshakeError(
                f"the owner's model is {self._checkpoint.digest[:16]}..., "
                f"the client wants {hello.model_digest[:16]}...: "
                "change model_digest in the client's settings, or ask the owner for that model"
            )
        if hello.precision != PRECISION:
            raise HandshakeError(f"the owner computes with {PRECISION}, the client with {hello.precision[:60]}")
        if hello.prompt_tokens > self._settings.max_prompt_tokens:
            raise HandshakeError(
                f"the owner allows {self._settings.max_prompt_tokens} prompt tokens, not {hello.prompt_tokens}"
            )
        if hello.max_new_tokens > self._settings.max_new_tokens:
            raise HandshakeError(
                f"the owner allows {self._settings.max_new_tokens} new tokens, not {hello.max_new_tokens}: "
                "lower max_new_tokens"
            )
        if not 0 <= hello.temperature <= 100:
            raise HandshakeError("the temperature must be between 0 and 100")
        parameters = PublicParameters(
            model=self._checkpoint.config,
            model_digest=self._checkpoint.digest,
            prompt_tokens=hello.prompt_tokens,
            max_new_tokens=hello.max_new_tokens,
            temperature=hello.temperature,
            backend=hello.backend,
            network=hello.network,
            policy=PolicySettings.from_json(hello.policy),
        )
        parameters.check()
        return parameters


def _explain(error: grpc.RpcError) -> str:
    return "lost the client: its process ended or the connection broke"


class OwnerServer:
    """The owner's process: serves until stopped.

    checkpoint: the model, if it is not to be read from the settings' folder. program, transport: for benchmarks, see
    `mpcache.generate.Program` and `protocols.transport.Transport`.
    """

    def __init__(
        self,
        settings: OwnerSettings,
        identity: Identity | None,
        checkpoint: Checkpoint | None = None,
        program: Program | None = None,
        transport: Transport | None = None,
    ) -> None:
        checkpoint = checkpoint or load_checkpoint(settings.model)
        self.model_digest = checkpoint.digest
        self._server, self.port = open_server(settings.listen, identity, workers=settings.max_sessions + 4)
        owner_pb2_grpc.add_OwnerServicer_to_server(
            OwnerService(settings, identity, checkpoint, program, transport), self._server
        )
        self._server.start()

    def wait(self) -> None:
        self._server.wait_for_termination()

    def stop(self) -> None:
        self._server.stop(grace=0.5).wait()
