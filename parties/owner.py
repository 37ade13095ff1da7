"""The model owner's process: party 0. It learns lengths and settings, never a token."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import grpc

from mpcache.generation.backends import private_backend
from mpcache.generation.loop import Program, steps
from mpcache.generation.plan import constants_digest, plan_digest
from mpcache.generation.request import PROTOCOL_VERSION, GenerationRequest
from mpcache.inspection.implied import check_ranges
from mpcache.model.checkpoint import Checkpoint, load_checkpoint
from mpcache.model.decoder import Decoder
from mpcache.parties.agreement import Agreement, Party
from mpcache.parties.calls import Call
from mpcache.parties.certificates import Identity
from mpcache.parties.dealer_link import DealerLink
from mpcache.parties.direct import server_stream
from mpcache.parties.generated import owner_pb2, purpose_pb2
from mpcache.parties.link import CONVERSE, SESSION_BYTES, Frame, Link, last_word, printable, told
from mpcache.parties.logs import SessionLog
from mpcache.parties.memory import give_back
from mpcache.parties.places import Places
from mpcache.parties.planning import planning_check
from mpcache.parties.seeds import Facts, KeptSeeds, request_digest
from mpcache.parties.settings import OwnerSettings
from mpcache.parties.threads import start_thread
from mpcache.parties.tls import Peer, on_end, open_server, require_peer, serve_stream
from mpcache.parties.weights import encoded_checkpoint, encoded_digest, masked_weights, weight_key, weights_fingerprint
from mpcache.policies import known_policies
from mpcache.protocols.backends.mpc import weight_bits
from mpcache.protocols.errors import Busy, HandshakeError, MpcacheError
from mpcache.protocols.ring import pack
from mpcache.protocols.transport import Transport

log = logging.getLogger("mpcache.owner")


WAITING = 32
"""Connections, beyond those of sessions, that may wait for their hello or their refusal."""
LONGEST_REQUEST = 1 << 12
"""Characters of a hello's texts."""
PREPARE, PREPARED = purpose_pb2.PREPARE, purpose_pb2.PREPARED
_BEGINS = {purpose_pb2.SESSION: "session", PREPARE: "preparation", PREPARED: "prepared session"}
_CLOSED = "the client closed the connection"
_GONE = "lost the client: its process ended or the connection broke"
KEPT = b"\x01"
"""The owner's last word of a preparation: it has its seed on disk."""


class OwnerService:
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
        self._seeds = KeptSeeds(
            settings.state,
            settings.prepared_hours,
            settings.max_prepared_sessions,
            settings.max_prepared_sessions_per_client,
        )
        self._seeds.delete_old()

    def converse(self, frames: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        client = require_peer(context, ("client",), self._identity is None)
        try:
            self._connections.take(client.certificate)
        except Busy as error:  # told by the call's status, which needs nobody to take it
            log.warning("refused %s: %s", client, error)
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        on_end(context, lambda: self._connections.free(client.certificate))
        stream, call = server_stream(frames, context, last_word("client"), _CLOSED, _GONE), Call("owner", context)
        link = Link("owner", "client", b"", self._settings.timeout_seconds, stream)
        on_end(context, link.close)  # nobody takes frames any more, whatever the session still waits for
        start_thread("owner: a session", self._serve, link, call, client)
        yield from stream.outgoing()

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
            finally:
                give_back()
            call.finish()

    def _hello(self, link: Link) -> owner_pb2.Hello:
        """The client's first message, which must come soon and be small. Raises HandshakeError, PeerLost."""
        frame = link.next_frame(min(self._settings.hello_seconds, self._settings.timeout_seconds))
        hello = frame.hello
        if frame.WhichOneof("kind") != "hello" or len(hello.session) != SESSION_BYTES:
            raise HandshakeError("a session begins with a hello")
        if max(len(hello.request), len(hello.model_digest)) > LONGEST_REQUEST:
            raise HandshakeError(f"a hello's request and digest have at most {LONGEST_REQUEST} characters each")
        link.session = hello.session
        return hello

    def _session(
        self, link: Link, hello: owner_pb2.Hello, client: Peer, journal: SessionLog, at_end: ExitStack
    ) -> None:
        request = self._agree(hello)
        at_end.enter_context(self._sessions.taken(client.certificate))
        if hello.purpose == PREPARE:
            self._seeds.check_room(client.certificate, hello.session)
        journal.info(
            "%s of %s begins: %d prompt tokens, at most %d new ones, policy %s, backend %s",
            _BEGINS[hello.purpose], client, request.prompt_tokens, request.max_new_tokens, request.policy.name,
            request.backend,
        )  # fmt: skip
        key = weight_key(self._settings.state, self._encoded, client.certificate)
        agreement = self._agreement(link, hello.session, request)
        facts = Facts(
            peer=client.certificate,
            request=request_digest(request),
            model=self._checkpoint.digest,
            plan=agreement.plan_digest,
            masked_weights=weights_fingerprint(key),
        )
        seed = self._seeds.take(hello.session, facts) if hello.purpose == PREPARED else None
        if hello.purpose == PREPARED and seed is None:
            journal.warning("there is no seed of this prepared session: an ordinary one takes its place")
        self._welcome(link, agreement, facts, key, prepared=seed is not None)
        party = self._party(link, key, at_end)
        if hello.purpose == PREPARE:
            new_seed, _ = party.prepare(agreement)
            self._seeds.keep(hello.session, new_seed, facts)
            link.send(KEPT)
            journal.info("prepared")
        else:
            generated = self._generate(link, agreement, party, seed)
            journal.info("session ends: %d new tokens", generated)

    def _party(self, link: Link, key: bytes, at_end: ExitStack) -> Party:
        def watch(dealer: DealerLink) -> None:
            at_end.callback(dealer.close)
            link.check = dealer.check

        return Party(
            role="owner",
            dealer=self._settings.dealer,
            identity=self._identity,
            timeout=self._settings.timeout_seconds,
            watch=watch,
            check_peer=link.check_peer,
            weight_key=key,
        )

    def _generate(self, link: Link, agreement: Agreement, party: Party, seed: bytes | None) -> int:
        """The owner's half of a generation. Returns how many tokens it had."""
        dealt, request = party.start(agreement, seed), agreement.request
        session = dealt.session(agreement, link, self._settings.max_step_gib, self._transport)
        with private_backend(request.backend, session, weight_key=party.weight_key) as backend:
            decoder = Decoder(self._checkpoint.config, backend, self._checkpoint.tensors)
            return sum(1 for _ in (self._program or steps)(decoder, request, None))

    def _agreement(self, link: Link, session: bytes, request: GenerationRequest) -> Agreement:
        model = self._checkpoint.config
        check = planning_check(self._settings.planning_seconds, link.check_peer)
        digest = plan_digest(model, request, self._program, check)
        return Agreement(session=session, model=model, request=request, plan_digest=digest)

    def _welcome(self, link: Link, agreement: Agreement, facts: Facts, key: bytes, *, prepared: bool) -> None:
        """Welcome the client, and send it the masked weights if it asks for them."""
        model = agreement.model
        welcome = owner_pb2.Welcome(
            model=model.to_json(),
            plan_digest=facts.plan,
            masked_weights=facts.masked_weights,
            model_digest=facts.model,
            constants_digest=constants_digest(model, agreement.request),
            prepared=prepared,
        )
        link.put(Frame(welcome=welcome))
        if link.receive(1) == b"\x01":
            for name, tensor in masked_weights(model, key, self._checkpoint.tensors):
                link.send(pack(tensor, weight_bits(name)))
                link.receive(1)  # the next one is made when this one has arrived: not all of them wait in memory

    def _agree(self, hello: owner_pb2.Hello) -> GenerationRequest:
        """What the client asks for, checked; or a HandshakeError that says what to change."""
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
        settings = self._settings
        if hello.purpose not in _BEGINS:
            raise HandshakeError("a hello is for a purpose that there is not")
        if hello.purpose == PREPARE and not settings.prepare:
            raise HandshakeError("the owner prepares no sessions: `prepare` is not set in its settings")
        request = GenerationRequest.from_json(hello.request)
        request.check("owner", self._checkpoint.config, settings.max_prompt_tokens, settings.max_new_tokens)
        self._check_allowed("backend", request.backend, settings.backends)
        self._check_allowed("cache policy", request.policy.name, settings.policies or tuple(known_policies()))
        return request

    def _check_allowed(self, what: str, name: str, allowed: Sequence[str]) -> None:
        if name not in allowed:
            raise HandshakeError(f"the owner does not allow the {what} {name!r} (allowed: {', '.join(allowed)})")


class OwnerServer:
    """The owner's process: serves until stopped.

    checkpoint: the model, if it is not to be read, and its ranges checked, from the settings' folder. program,
    transport: for benchmarks, see `mpcache.generation.loop.Program` and `mpcache.protocols.transport.Transport`.
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
        service = OwnerService(settings, identity, checkpoint, program, transport)
        serve_stream(self._server, CONVERSE, service.converse)
        self._server.start()

    def drain(self, seconds: float) -> threading.Event:
        """Accept no more sessions; running ones may take so long to end. Set when they have."""
        return self._server.stop(grace=seconds)

    def stop(self) -> None:
        self._server.stop(grace=0.5).wait()
