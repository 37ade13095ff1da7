"""The model owner's process: party 0. It learns lengths and settings, never a token."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import grpc

from mpcache.backends import private_backend
from mpcache.checkpoint import Checkpoint, load_checkpoint
from mpcache.decoder import Decoder
from mpcache.generate import Program, steps
from mpcache.planning import PRECISION, PROTOCOL_VERSION, PublicParameters, constants_digest, plan_digest
from mpcache.policies import PolicySettings, policies
from mpcache.ranges import check_ranges
from parties.calls import Call
from parties.certificates import Identity
from parties.dealing import DealerLink
from parties.generated import dealer_pb2, owner_pb2, owner_pb2_grpc
from parties.link import SESSION_BYTES, Frame, Link, printable, told
from parties.logs import SessionLog
from parties.places import Places
from parties.planning import planning_check
from parties.settings import OwnerSettings
from parties.threads import start_thread
from parties.tls import Peer, on_end, open_server, require_peer
from parties.weights import encoded_checkpoint, encoded_digest, masked_weights, weight_key, weights_fingerprint
from protocols.backends.mpc import weight_bits
from protocols.correlation import PartyCorrelations
from protocols.errors import Busy, ConfigError, HandshakeError, MpcacheError
from protocols.randomness import new_key
from protocols.ring import pack
from protocols.session import Session
from protocols.transport import Transport

log = logging.getLogger("mpcache.owner")


WAITING = 32
"""Connections, beyond those of sessions, that may wait for their hello or their refusal."""
LONGEST_SETTINGS = 1 << 12
"""Characters of a hello's settings."""


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
        total, each = settings.max_sessions, settings.max_sessions_per_client
        self._sessions = Places("owner", "sessions", total, each)
        self._connections = Places("owner", "connections", total + WAITING, each + 2)

    def Converse(self, frames: Iterator[Frame], context: grpc.ServicerContext) -> Iterator[Frame]:
        client = require_peer(context, ("client",), self._identity is None)
        try:
            self._connections.take(client.certificate)
        except Busy as error:  # told by the call's status, which needs nobody to take it
            log.warning("refused %s: %s", client, error)
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        on_end(context, lambda: self._connections.free(client.certificate))
        link, call = Link("owner", "client", b"", self._settings.timeout_seconds), Call("owner", context)
        on_end(context, lambda: link.lost("lost the client: its process ended or the connection broke"))
        on_end(context, link.close)  # nobody takes frames any more, whatever the session still waits for
        start_thread("owner: frames from a client", link.feed, frames, _explain)
        start_thread("owner: a session", self._serve, link, call, client)
        yield from link.outgoing()

    def _serve(self, link: Link, call: Call, client: Peer) -> None:
        journal = SessionLog(log, b"")
        with ExitStack() as at_end:  # the client is told why before the dealer hears that the owner left
            try:
                hello = self._hello(link)
                journal = SessionLog(log, hello.session)
                self._session(link, hello, client, journal, at_end)
                link.close()
                return call.finish(self._settings.timeout_seconds)
            except (HandshakeError, Busy) as error:
                journal.warning("refused %s: %s", client, error)
                link.abort(told(error, "owner"))
            except MpcacheError as error:
                journal.warning("session of %s failed: %s", client, error)
                link.abort(told(error, "owner"))
            except Exception as error:  # a thread of its own: the client must not be left waiting
                journal.exception("session of %s failed", client)
                link.abort(told(error, "owner"))
            call.finish()

    def _hello(self, link: Link) -> owner_pb2.Hello:
        """The client's first message, which must come soon and be small. Raises HandshakeError, PeerLost."""
        frame = link.next_frame(min(self._settings.hello_seconds, self._settings.timeout_seconds))
        hello = frame.hello
        if frame.WhichOneof("kind") != "hello" or len(hello.session) != SESSION_BYTES:
            raise HandshakeError("a session begins with a hello")
        texts = (hello.model_digest, hello.policy, hello.precision, hello.backend, hello.network)
        if max(map(len, texts)) > LONGEST_SETTINGS:
            raise HandshakeError(f"a hello's settings have at most {LONGEST_SETTINGS} characters each")
        link.session = hello.session
        return hello

    def _session(
        self, link: Link, hello: owner_pb2.Hello, client: Peer, journal: SessionLog, at_end: ExitStack
    ) -> None:
        parameters = self._agree(hello)
        at_end.enter_context(self._sessions.taken(client.certificate))
        journal.info(
            "session of %s begins: %d prompt tokens, at most %d new ones, policy %s, backend %s",
            client, parameters.prompt_tokens, parameters.max_new_tokens, parameters.policy.name, parameters.backend,
        )  # fmt: skip
        key = weight_key(self._settings.state, self._encoded, client.certificate)
        check = planning_check(self._settings.planning_seconds, link.check_peer)
        digest = plan_digest(parameters, self._program, check)
        link.put(
            Frame(
                welcome=owner_pb2.Welcome(
                    public_parameters=parameters.to_json(),
                    plan_digest=digest,
                    masked_weights=weights_fingerprint(key),
                    model_digest=self._checkpoint.digest,
                    constants_digest=constants_digest(parameters),
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
        largest = int(self._settings.max_step_gib * 2**30)
        session = Session(0, channel, PartyCorrelations(0, seed, dealer.read, largest))
        session.largest_bytes = largest
        session.round_bytes = parameters.round_bytes
        with private_backend(parameters.backend, session, weight_key=key) as backend:
            decoder = Decoder(self._checkpoint.config, backend, self._checkpoint.tensors)
            generated = sum(1 for _ in (self._program or steps)(decoder, parameters.generation(), None))
        journal.info("session ends: %d new tokens", generated)

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
                f"the client wants {printable(hello.model_digest[:16])}...: "
                "change model_digest in the client's settings, or ask the owner for that model"
            )
        if hello.precision != PRECISION:
            theirs = printable(hello.precision[:60])
            raise HandshakeError(f"the owner computes with {PRECISION}, the client with {theirs}")
        try:
            policy = PolicySettings.from_json(hello.policy)
        except ConfigError as error:
            raise HandshakeError(str(error)) from None
        parameters = PublicParameters(
            model=self._checkpoint.config,
            prompt_tokens=hello.prompt_tokens,
            max_new_tokens=hello.max_new_tokens,
            temperature=hello.temperature,
            backend=hello.backend,
            network=hello.network,
            policy=policy,
        )
        parameters.check("owner", self._settings.max_prompt_tokens, self._settings.max_new_tokens)
        self._check_allowed("backend", parameters.backend, self._settings.backends)
        self._check_allowed("cache policy", parameters.policy.name, self._settings.policies or tuple(policies()))
        return parameters

    def _check_allowed(self, what: str, name: str, allowed: Sequence[str]) -> None:
        if name not in allowed:
            raise HandshakeError(f"the owner does not allow the {what} {name!r} (allowed: {', '.join(allowed)})")


def _explain(error: grpc.RpcError) -> str:
    return "lost the client: its process ended or the connection broke"


class OwnerServer:
    """The owner's process: serves until stopped.

    checkpoint: the model, if it is not to be read, and its ranges checked, from the settings' folder. program,
    transport: for benchmarks, see `mpcache.generate.Program` and `protocols.transport.Transport`.
    """

    def __init__(
        self,
        settings: OwnerSettings,
        identity: Identity | None,
        checkpoint: Checkpoint | None = None,
        program: Program | None = None,
        transport: Transport | None = None,
    ) -> None:
        if checkpoint is None:
            checkpoint = load_checkpoint(settings.model)
            open_places = check_ranges(checkpoint)
            log.info(
                "model %s...: the weights alone do not exclude that values leave their range at %d places: "
                "see mpcache inspect %s",
                checkpoint.digest[:16], len(open_places), settings.model,
            )  # fmt: skip
        self.model_digest = checkpoint.digest
        workers = settings.max_sessions + WAITING
        self._server, self.port = open_server(settings.listen, identity, workers, settings.timeout_seconds)
        owner_pb2_grpc.add_OwnerServicer_to_server(
            OwnerService(settings, identity, checkpoint, program, transport), self._server
        )
        self._server.start()

    def drain(self, seconds: float) -> threading.Event:
        """Accept no more sessions; running ones may take so long to end. Set when they have."""
        return self._server.stop(grace=seconds)

    def stop(self) -> None:
        self._server.stop(grace=0.5).wait()
