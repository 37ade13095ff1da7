"""The model owner's process: party 0. It learns lengths and settings, never a token."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import grpc

from mpcache.generation.backends import private_backend
from mpcache.generation.batch import batch_digest, batch_of, longest
from mpcache.generation.loop import Program, steps
from mpcache.generation.plan import constants_digest
from mpcache.generation.request import PROTOCOL_VERSION, GenerationRequest
from mpcache.inspection.implied import check_ranges
from mpcache.model.checkpoint import Checkpoint, load_checkpoint
from mpcache.model.decoder import Decoder
from mpcache.parties.agreement import Agreement, Party, agreements, largest_bytes
from mpcache.parties.calls import Call
from mpcache.parties.certificates import Identity
from mpcache.parties.dealer_link import DealerLink, DealerLinks
from mpcache.parties.generated import owner_pb2, owner_pb2_grpc, purpose_pb2
from mpcache.parties.link import SESSION_BYTES, Frame, Link, printable, told
from mpcache.parties.logs import SessionLog
from mpcache.parties.memory import give_back
from mpcache.parties.places import Places
from mpcache.parties.planning import planning_check
from mpcache.parties.seeds import Facts, KeptSeeds, request_digest
from mpcache.parties.settings import OwnerSettings
from mpcache.parties.threads import start_thread
from mpcache.parties.tls import Peer, on_end, open_server, require_peer
from mpcache.parties.weights import encoded_checkpoint, encoded_digest, masked_weights, weight_key, weights_fingerprint
from mpcache.policies import known_policies
from mpcache.protocols.backends.mpc import weight_bits
from mpcache.protocols.errors import Busy, HandshakeError, MpcacheError
from mpcache.protocols.lanes import Lanes
from mpcache.protocols.ring import pack
from mpcache.protocols.session import Session
from mpcache.protocols.transport import Transport

log = logging.getLogger("mpcache.owner")


WAITING = 32
"""Connections, beyond those of sessions, that may wait for their hello or their refusal."""
LONGEST_REQUEST = 1 << 12
"""Characters of a hello's texts."""
SESSION, PREPARE, PREPARED = purpose_pb2.SESSION, purpose_pb2.PREPARE, purpose_pb2.PREPARED
_BEGINS = {SESSION: "session", PREPARE: "preparation", PREPARED: "prepared session"}
KEPT = b"\x01"
"""The owner's last word of a preparation: it has its seed on disk."""


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
        self._seeds = KeptSeeds(
            settings.state,
            settings.prepared_hours,
            settings.max_prepared_sessions,
            settings.max_prepared_sessions_per_client,
        )
        self._seeds.delete_old()

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
        requests = self._agree(hello)
        request = requests[0]
        at_end.enter_context(self._sessions.taken(client.certificate))
        if hello.purpose == PREPARE:
            self._seeds.check_room(client.certificate, hello.session)
        journal.info(
            "%s of %s begins: %s prompt tokens, at most %d new ones, policy %s, backend %s, %d drafts",
            _BEGINS[hello.purpose], client, " and ".join(str(r.prompt_tokens) for r in requests),
            request.max_new_tokens, request.policy.name, request.backend, request.draft,
        )  # fmt: skip
        key = weight_key(self._settings.state, self._encoded, client.certificate)
        digest, agreed = self._agreements(link, hello.session, requests)
        facts = Facts(
            peer=client.certificate,
            request=request_digest(request),
            model=self._checkpoint.digest,
            plan=digest,
            masked_weights=weights_fingerprint(key),
        )
        seed = self._seeds.take(hello.session, facts) if hello.purpose == PREPARED else None
        if hello.purpose == PREPARED and seed is None:
            journal.warning("there is no seed of this prepared session: an ordinary one takes its place")
        self._welcome(link, longest(requests), facts, key, prepared=seed is not None)
        party = self._party(link, key, at_end)
        if hello.purpose == PREPARE:
            new_seed, _ = party.prepare(agreed[0])
            self._seeds.keep(hello.session, new_seed, facts)
            link.send(KEPT)
            journal.info("prepared")
        else:
            generated = self._generate(link, agreed, party, seed)
            journal.info("session ends: %d %s", generated, "passes" if request.draft else "new tokens")

    def _party(self, link: Link, key: bytes, at_end: ExitStack) -> Party:
        dealers = DealerLinks()
        at_end.callback(dealers.close)

        def watch(dealer: DealerLink) -> None:
            dealers.add(dealer)
            link.check = dealers.check

        return Party(
            role="owner",
            dealer=self._settings.dealer,
            identity=self._identity,
            timeout=self._settings.timeout_seconds,
            watch=watch,
            check_peer=link.check_peer,
            weight_key=key,
        )

    def _generate(self, link: Link, agreed: Sequence[Agreement], party: Party, seed: bytes | None) -> int:
        """The owner's half of the generations. Returns how many tokens they had: with drafts, how many passes."""
        largest = self._settings.max_step_gib
        if len(agreed) == 1:
            session = party.start(agreed[0], seed).session(agreed[0], link, largest, self._transport)
            return self._tokens(agreed[0].request, session, party.weight_key)
        dealt = [party.start(agreement, None) for agreement in agreed]
        channel = self._transport(link) if self._transport else link
        lanes, generated = Lanes(channel, len(agreed), largest_bytes(largest)), [0] * len(agreed)

        def work(lane: int) -> None:
            session = dealt[lane].in_lane(agreed[lane], lanes, lane, largest)
            generated[lane] = self._tokens(agreed[lane].request, session, party.weight_key)

        lanes.run(work)
        return sum(generated)

    def _tokens(self, request: GenerationRequest, session: Session, weight_key: bytes) -> int:
        """Of one generation, which this makes."""
        with private_backend(request.backend, session, weight_key=weight_key) as backend:
            decoder = Decoder(self._checkpoint.config, backend, self._checkpoint.tensors)
            return sum(1 for _ in (self._program or steps)(decoder, request, None))

    def _agreements(
        self, link: Link, session: bytes, requests: Sequence[GenerationRequest]
    ) -> tuple[str, tuple[Agreement, ...]]:
        """(fingerprint of all plans, what is agreed for each prompt)."""
        model = self._checkpoint.config
        check = planning_check(self._settings.planning_seconds, link.check_peer)
        digest, each = batch_digest(model, requests, self._program, check)
        return digest, agreements(session, model, requests, each)

    def _welcome(self, link: Link, longest: GenerationRequest, facts: Facts, key: bytes, *, prepared: bool) -> None:
        """Welcome the client, and send it the masked weights if it asks for them."""
        model = self._checkpoint.config
        welcome = owner_pb2.Welcome(
            model=model.to_json(),
            plan_digest=facts.plan,
            masked_weights=facts.masked_weights,
            model_digest=facts.model,
            constants_digest=constants_digest(model, longest),
            prepared=prepared,
        )
        link.put(Frame(welcome=welcome))
        if link.receive(1) == b"\x01":
            for name, tensor in masked_weights(model, key, self._checkpoint.tensors):
                link.send(pack(tensor, weight_bits(name)))
                link.receive(1)  # the next one is made when this one has arrived: not all of them wait in memory

    def _agree(self, hello: owner_pb2.Hello) -> list[GenerationRequest]:
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
        prompts = 1 + len(hello.further_prompt_tokens)
        if prompts > settings.max_batch:
            raise HandshakeError(f"the owner allows {settings.max_batch} prompts in a batch, not {prompts}")
        if prompts > 1 and hello.purpose != SESSION:
            raise HandshakeError("a batch is not prepared: prepare its prompts one by one, or ask for an ordinary one")
        if hello.purpose == PREPARE and not settings.prepare:
            raise HandshakeError("the owner prepares no sessions: `prepare` is not set in its settings")
        request = GenerationRequest.from_json(hello.request)
        if prompts > 1 and request.backend != "mpc":
            raise HandshakeError(f"only the backend 'mpc' runs a batch, not {request.backend[:40]!r}")
        requests = batch_of(request, hello.further_prompt_tokens)
        bounds = settings.max_prompt_tokens, settings.max_new_tokens, settings.max_prefill_block
        for one in requests:
            one.check("owner", self._checkpoint.config, *bounds)
        self._check_allowed("backend", request.backend, settings.backends)
        self._check_allowed("cache policy", request.policy.name, settings.policies or tuple(known_policies()))
        return requests

    def _check_allowed(self, what: str, name: str, allowed: Sequence[str]) -> None:
        if name not in allowed:
            raise HandshakeError(f"the owner does not allow the {what} {name!r} (allowed: {', '.join(allowed)})")


def _explain(error: grpc.RpcError) -> str:
    return "lost the client: its process ended or the connection broke"


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
        owner_pb2_grpc.add_OwnerServicer_to_server(
            OwnerService(settings, identity, checkpoint, program, transport), self._server
        )
        self._server.start()

    def drain(self, seconds: float) -> threading.Event:
        """Accept no more sessions; running ones may take so long to end. Set when they have."""
        return self._server.stop(grace=seconds)

    def stop(self) -> None:
        self._server.stop(grace=0.5).wait()
