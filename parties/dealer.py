"""The dealer's service: corrections stream ahead of the parties, with bounded memory; or by way of the disk."""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator, Iterator
from contextlib import closing

import grpc

from mpcache.generation.loop import Program
from mpcache.generation.plan import correlations, plan_digest
from mpcache.generation.request import PROTOCOL_VERSION, GenerationRequest
from mpcache.model.config import ModelConfig
from mpcache.parties.calls import Call, first_of
from mpcache.parties.certificates import Identity
from mpcache.parties.chunks import CHUNK_BYTES, BoundedChunks
from mpcache.parties.generated import dealer_pb2, dealer_pb2_grpc, purpose_pb2
from mpcache.parties.link import PARTIES, SESSION_BYTES, printable, told
from mpcache.parties.logs import SessionLog
from mpcache.parties.making import Maker, Secrets
from mpcache.parties.memory import give_back
from mpcache.parties.pairing import Pairing, disagreement
from mpcache.parties.places import Places
from mpcache.parties.planning import planning_check
from mpcache.parties.prepared import About, PreparedSessions, Unprepared, at_rest
from mpcache.parties.settings import DealerSettings
from mpcache.parties.threads import start_thread
from mpcache.parties.tls import REQUEST_BYTES, Peer, on_end, open_server, require_peer
from mpcache.parties.weights import check_size
from mpcache.parties.workers.choice import chosen_pool
from mpcache.protocols.errors import Busy, HandshakeError, MpcacheError
from mpcache.protocols.randomness import KEY_BYTES

Corrections, Failure = dealer_pb2.Corrections, dealer_pb2.Failure
SESSION, PREPARE, PREPARED = purpose_pb2.SESSION, purpose_pb2.PREPARE, purpose_pb2.PREPARED
PATIENCE = 10
"""Time-outs for which a client may take no corrections, or not the last of them: on a slow network a large message
holds them up."""
WAITING = 32
"""Calls, beyond those of sessions, that may wait for their session's other party or their refusal."""
DELETE_SECONDS = 600.0
"""From one look for prepared sessions that are too old to the next."""
SIGN_SECONDS = 1.0
"""From one sign of life to the next, while parties wait for the disk."""
log = logging.getLogger("mpcache.dealer")


class DealerService(dealer_pb2_grpc.DealerServicer):
    """Pairs the two parties of a session and streams party 1 its corrections; party 0 hears only how it goes.

    The settings' memory_mib bounds what is made ahead of the client, but for what is made together (`corrections` in
    protocols/correlation.py): up to 50 MiB. The dealer learns public parameters and the two seeds. store: where it
    keeps prepared sessions, if it has any to do with them.
    """

    def __init__(
        self,
        settings: DealerSettings,
        insecure: bool,
        maker: Maker,
        program: Program | None = None,
        store: PreparedSessions | None = None,
        only_prepare: bool = False,
    ) -> None:
        self._settings, self._insecure, self._program = settings, insecure, program
        self._maker = maker
        self._store, self._only_prepare = store, only_prepare
        self._pairings: dict[tuple[bytes, int], Pairing] = {}
        self._lock = threading.Lock()
        total = settings.max_sessions
        self._sessions = Places("dealer", "sessions", total, total)
        self._calls = Places("dealer", "calls", 2 * total + WAITING, settings.max_calls_per_certificate)

    def Deal(
        self, requests: Iterator[dealer_pb2.DealRequest], context: grpc.ServicerContext
    ) -> Iterator[dealer_pb2.Corrections]:
        """What a stranger is refused for is told by the call's status, which needs nobody to take it."""
        peer, call = require_peer(context, PARTIES, self._insecure), Call("dealer", context)
        journal = SessionLog(log, b"")
        try:
            self._calls.take(peer.certificate)
            on_end(context, lambda: self._calls.free(peer.certificate))
            request = first_of("dealer", requests, min(self._settings.hello_seconds, self._settings.timeout_seconds))
            journal = SessionLog(log, request.session[:SESSION_BYTES])
            if self._insecure:
                peer = Peer(request.role, peer.certificate)
            _check_request(peer.role, request)
            self._check_purpose(request.purpose)
        except Busy as error:
            journal.warning("refused %s: %s", peer, error)
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        except HandshakeError as error:
            journal.warning("refused %s: %s", peer, error)
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        yield from self._serve(peer, request, call, context, journal)

    def _serve(
        self,
        peer: Peer,
        request: dealer_pb2.DealRequest,
        call: Call,
        context: grpc.ServicerContext,
        journal: SessionLog,
    ) -> Iterator[dealer_pb2.Corrections]:
        pairing = self._join(peer, request, call, journal)
        journal.info("%s has come", peer)
        other = next(p for p in PARTIES if p != peer.role)
        on_end(context, lambda: pairing.left(peer.role))
        try:
            if not pairing.complete.wait(self._settings.timeout_seconds):
                pairing.fail(f"the {other} did not come within {self._settings.timeout_seconds:g} seconds")
            if pairing.failure is None:
                if peer.role == "client":  # at once, so that a client that takes not even a beginning is given up
                    start_thread("dealer: corrections", self._make, pairing)
                yield from _signs_of_life(pairing, pairing.started)
            if pairing.failure is None:
                yield Corrections(started=True)
                if request.purpose == PREPARE:
                    yield from _signs_of_life(pairing, pairing.ended)
                    yield Corrections(progress=pairing.progress)
                elif peer.role == "client":
                    while (chunk := pairing.ahead.get()) is not None:
                        yield Corrections(chunk=chunk)
                pairing.ended.wait()
            if pairing.failure is None:
                yield Corrections(finished=True)
            else:
                call.finish()  # it may have come when all had ended
                yield Corrections(failure=pairing.failure)
        finally:
            pairing.left(peer.role)
            with self._lock:
                if self._pairings.get(_place(request)) is pairing:
                    del self._pairings[_place(request)]

    def _join(self, peer: Peer, request: dealer_pb2.DealRequest, call: Call, journal: SessionLog) -> Pairing:
        with self._lock:
            place, role = _place(request), peer.role
            if place not in self._pairings:
                self._pairings[place] = Pairing(
                    journal, BoundedChunks(self._settings.memory_mib << 20), PATIENCE * self._settings.timeout_seconds
                )
            pairing = self._pairings[place]
            pairing.calls.append(call)
            if role in pairing.requests:
                pairing.fail(f"two processes came as the {role}")
                return pairing
            pairing.requests[role], pairing.certificates[role] = request, peer.certificate
            if len(pairing.requests) == 2:
                failure = disagreement(pairing.requests)
                if failure:
                    pairing.fail(failure)
                pairing.complete.set()
        return pairing

    def _make(self, pairing: Pairing) -> None:
        """What the two parties came for; ends it when all is taken, or written."""
        work = {SESSION: self._deal, PREPARE: self._prepare, PREPARED: self._hand_over}
        try:
            with self._sessions.taken("any"):
                work[pairing.requests["owner"].purpose](pairing)
            pairing.end()
        except Unprepared as error:
            pairing.end(Failure(kind=Failure.UNPREPARED, text=str(error)))
        except Exception as error:  # a thread of its own: whatever it was, the parties must hear of it
            if not isinstance(error, MpcacheError):
                pairing.journal.exception("the dealer failed")
            pairing.fail(told(error, "dealer"))
        finally:
            give_back()

    def _planned(self, pairing: Pairing) -> tuple[ModelConfig, GenerationRequest]:
        """What is to be dealt for, once its plan is known to be the parties'. Raises HandshakeError, ModelError."""
        owner = pairing.requests["owner"]
        model, request = self._asked(pairing)
        check = planning_check(self._settings.planning_seconds, pairing.check)
        if plan_digest(model, request, self._program, check) != owner.plan_digest:
            raise HandshakeError("the dealer's plan differs from the parties': use the same MPCache everywhere")
        return model, request

    def _corrections(self, pairing: Pairing) -> Generator[bytes, None, None]:
        """Every correction of a session, as it is made. Raises HandshakeError, ModelError, PeerLost, TooLarge."""
        owner, client = pairing.requests["owner"], pairing.requests["client"]
        model, request = self._planned(pairing)
        largest_bytes = int(self._settings.max_step_gib * 2**30)
        secrets = Secrets((owner.seed, client.seed), owner.weight_key, largest_bytes)
        plan = correlations(model, request, self._program, pairing.check)
        return self._maker.corrections(secrets, plan, pairing.check, lambda: pairing.ahead.held)

    def _deal(self, pairing: Pairing) -> None:
        """Every correction, ahead of the client, until nobody wants them any more."""
        pairing.started.set()
        with closing(self._corrections(pairing)) as made:
            for data in made:
                for start in range(0, len(data), CHUNK_BYTES):
                    if not pairing.ahead.put(data[start : start + CHUNK_BYTES], pairing.patience):
                        return
        pairing.ahead.finish(pairing.patience)

    def _prepare(self, pairing: Pairing) -> None:
        """Every correction to the disk, for a session that will be. Neither seed is kept, nor the weight key."""
        assert self._store is not None, "the purpose was checked"
        about = About.of(pairing.requests["owner"], pairing.certificates)
        self._store.check_room(about)
        pairing.started.set()
        encrypt = at_rest(pairing.requests["client"].seed)
        with closing(self._corrections(pairing)) as made:
            self._store.write(about, map(encrypt, made), pairing.hear)
        pairing.journal.info("prepared; now %s", self._store.summary())

    def _hand_over(self, pairing: Pairing) -> None:
        """What is on the disk, as fast as the client takes it; nothing is planned or made."""
        if self._store is None:
            raise Unprepared("the dealer has no prepared sessions")
        about = About.of(pairing.requests["owner"], pairing.certificates)
        self._asked(pairing)
        with self._store.taken(about, pairing.hear) as parts:
            pairing.started.set()
            for part in parts:
                if not pairing.ahead.put(part, pairing.patience):
                    return
            pairing.ahead.finish(pairing.patience)

    def _check_purpose(self, purpose: int) -> None:
        """Raises HandshakeError."""
        if purpose not in (SESSION, PREPARE, PREPARED):
            raise HandshakeError("a request is for a purpose that there is not")
        if purpose == PREPARE and self._store is None:
            raise HandshakeError("the dealer prepares no sessions: `prepare` is not set in its settings")
        if purpose != PREPARE and self._only_prepare:
            raise HandshakeError("this dealer only prepares sessions (mpcache dealer prepare)")

    def _asked(self, pairing: Pairing) -> tuple[ModelConfig, GenerationRequest]:
        """What both parties sent, checked before anything is planned. Raises HandshakeError, ModelError."""
        s, wanted = self._settings, pairing.requests["owner"]
        model, request = ModelConfig.from_json(wanted.model), GenerationRequest.from_json(wanted.request)
        request.check("dealer", model, s.max_prompt_tokens, s.max_new_tokens, s.max_prefill_block)
        if request.backend not in s.backends:
            allowed = ", ".join(s.backends)
            raise HandshakeError(f"the dealer does not allow the backend {request.backend!r} (allowed: {allowed})")
        if s.policies and request.policy.name not in s.policies:
            allowed = ", ".join(s.policies)
            raise HandshakeError(f"the dealer does not allow the policy {request.policy.name!r} (allowed: {allowed})")
        check_size(model, request.cached, "dealer", s.max_model_gib)
        pairing.journal.info(
            "%s begins: %d prompt tokens, at most %d new ones, policy %s, backend %s",
            _BEGINS[wanted.purpose], request.prompt_tokens, request.max_new_tokens, request.policy.name,
            request.backend,
        )  # fmt: skip
        return model, request


_BEGINS = {SESSION: "session", PREPARE: "preparation", PREPARED: "prepared session"}


def _place(request: dealer_pb2.DealRequest) -> tuple[bytes, int]:
    """Whom a party is paired with. What a session could not be handed over for, it may ask for anew under its id."""
    return request.session, request.purpose


def _signs_of_life(pairing: Pairing, awaited: threading.Event) -> Iterator[dealer_pb2.Corrections]:
    """Again and again, until it is set."""
    while not awaited.wait(SIGN_SECONDS):
        yield Corrections(progress=pairing.progress)


def _check_request(role: str, request: dealer_pb2.DealRequest) -> None:
    """Raises HandshakeError."""
    if request.role != role or role not in PARTIES:
        raise HandshakeError(f"your certificate is not of the role {printable(request.role[:20])}")
    if request.protocol_version != PROTOCOL_VERSION:
        raise HandshakeError(
            f"the dealer speaks protocol version {PROTOCOL_VERSION}, the {role} {request.protocol_version}: "
            "install the same MPCache everywhere"
        )
    seed_bytes = 0 if request.purpose == PREPARED else KEY_BYTES
    key_bytes = seed_bytes if role == "owner" else 0
    sizes = len(request.session), len(request.seed), len(request.weight_key)
    if sizes != (SESSION_BYTES, seed_bytes, key_bytes):
        raise HandshakeError("a request's session, seed or weight key is not of its length")


class DealerServer:
    """The dealer's process: serves until stopped.

    program: see `mpcache.generation.loop.Program`. only_prepare: serve no session, whatever the settings say.
    Raises ConfigError if there are no such workers as the settings ask for.
    """

    def __init__(
        self,
        settings: DealerSettings,
        identity: Identity | None,
        program: Program | None = None,
        only_prepare: bool = False,
    ) -> None:
        self._ended = threading.Event()
        calls = 2 * settings.max_sessions + WAITING
        self._server, self.port = open_server(settings.listen, identity, calls, settings.timeout_seconds, REQUEST_BYTES)
        self._store = _store(settings) if settings.prepare or only_prepare else None
        self._maker = Maker(chosen_pool(settings.workers, settings.ray), settings.memory_mib << 20)
        service = DealerService(settings, identity is None, self._maker, program, self._store, only_prepare)
        dealer_pb2_grpc.add_DealerServicer_to_server(service, self._server)
        self._server.start()
        if self._store is not None:
            log.info("%s", self._store.summary())
            start_thread("dealer: old prepared sessions", self._delete_old, self._store)

    def drain(self, seconds: float) -> threading.Event:
        """Accept no more sessions; running ones may take so long to end. Set when they have."""
        return self._server.stop(grace=seconds)

    def stop(self) -> None:
        self._server.stop(grace=0.5).wait()
        self._ended.set()
        self._maker.close()
        if self._store is not None:
            self._store.close()

    def _delete_old(self, store: PreparedSessions) -> None:
        while not self._ended.wait(DELETE_SECONDS):
            store.delete_old()


def _store(settings: DealerSettings) -> PreparedSessions:
    most = int(settings.max_prepared_gib * 2**30), int(settings.max_prepared_gib_per_client * 2**30)
    return PreparedSessions(settings.state / "prepared", most, 3600 * settings.prepared_hours)
