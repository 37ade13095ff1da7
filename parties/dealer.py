"""The dealer's service: corrections stream ahead of the parties, with bounded memory."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import closing

import grpc

from mpcache.generation.loop import Program
from mpcache.generation.plan import correlations, plan_digest
from mpcache.generation.request import PROTOCOL_VERSION, GenerationRequest
from mpcache.model.config import ModelConfig
from mpcache.parties.calls import Call, first_of
from mpcache.parties.certificates import Identity
from mpcache.parties.chunks import CHUNK_BYTES, BoundedChunks
from mpcache.parties.generated import dealer_pb2, dealer_pb2_grpc
from mpcache.parties.link import PARTIES, SESSION_BYTES, printable, told
from mpcache.parties.logs import SessionLog
from mpcache.parties.making import Maker, Secrets
from mpcache.parties.pairing import Pairing, disagreement
from mpcache.parties.places import Places
from mpcache.parties.planning import planning_check
from mpcache.parties.settings import DealerSettings
from mpcache.parties.threads import start_thread
from mpcache.parties.tls import REQUEST_BYTES, Peer, on_end, open_server, require_peer
from mpcache.parties.weights import check_size
from mpcache.parties.workers.choice import chosen_pool
from mpcache.protocols.errors import Busy, HandshakeError, MpcacheError
from mpcache.protocols.randomness import KEY_BYTES

Corrections = dealer_pb2.Corrections
PATIENCE = 10
"""Time-outs for which a client may take no corrections, or not the last of them: on a slow network a large message
holds them up."""
WAITING = 32
"""Calls, beyond those of sessions, that may wait for their session's other party or their refusal."""
log = logging.getLogger("mpcache.dealer")


class DealerService(dealer_pb2_grpc.DealerServicer):
    """Pairs the two parties of a session and streams party 1 its corrections; party 0 hears only how it goes.

    The settings' memory_mib bounds what is made ahead of the client. The dealer learns public parameters and the two
    seeds.
    """

    def __init__(self, settings: DealerSettings, insecure: bool, maker: Maker, program: Program | None = None) -> None:
        self._settings, self._insecure, self._program = settings, insecure, program
        self._maker = maker
        self._pairings: dict[bytes, Pairing] = {}
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
        pairing = self._join(peer.role, request, call, journal)
        journal.info("%s has come", peer)
        other = next(p for p in PARTIES if p != peer.role)
        on_end(context, lambda: pairing.left(peer.role))
        try:
            if not pairing.complete.wait(self._settings.timeout_seconds):
                pairing.fail(f"the {other} did not come within {self._settings.timeout_seconds:g} seconds")
            if pairing.failure is None:
                if peer.role == "client":  # at once, so that a client that takes not even a beginning is given up
                    start_thread("dealer: corrections", self._make, pairing)
                yield Corrections(started=True)
                if peer.role == "client":
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
                if self._pairings.get(request.session) is pairing:
                    del self._pairings[request.session]

    def _join(self, role: str, request: dealer_pb2.DealRequest, call: Call, journal: SessionLog) -> Pairing:
        with self._lock:
            if request.session not in self._pairings:
                self._pairings[request.session] = Pairing(
                    journal, BoundedChunks(self._settings.memory_mib << 20), PATIENCE * self._settings.timeout_seconds
                )
            pairing = self._pairings[request.session]
            pairing.calls.append(call)
            if role in pairing.requests:
                pairing.fail(f"two processes came as the {role}")
                return pairing
            pairing.requests[role] = request
            if len(pairing.requests) == 2:
                failure = disagreement(pairing.requests)
                if failure:
                    pairing.fail(failure)
                pairing.complete.set()
        return pairing

    def _make(self, pairing: Pairing) -> None:
        """A session's corrections; ends it when all are taken."""
        try:
            with self._sessions.taken("any"):
                self._deal(pairing, *self._planned(pairing))
            pairing.end()
        except Exception as error:  # a thread of its own: whatever it was, the parties must hear of it
            if not isinstance(error, MpcacheError):
                pairing.journal.exception("the dealer failed")
            pairing.fail(told(error, "dealer"))

    def _planned(self, pairing: Pairing) -> tuple[ModelConfig, GenerationRequest]:
        """What is to be dealt for, once its plan is known to be the parties'. Raises HandshakeError, ModelError."""
        owner = pairing.requests["owner"]
        model, request = self._asked(owner)
        pairing.journal.info(
            "session begins: %d prompt tokens, at most %d new ones, policy %s, backend %s",
            request.prompt_tokens, request.max_new_tokens, request.policy.name, request.backend,
        )  # fmt: skip
        check = planning_check(self._settings.planning_seconds, pairing.check)
        if plan_digest(model, request, self._program, check) != owner.plan_digest:
            raise HandshakeError("the dealer's plan differs from the parties': use the same MPCache everywhere")
        return model, request

    def _deal(self, pairing: Pairing, model: ModelConfig, request: GenerationRequest) -> None:
        """Every correction, ahead of the client, until nobody wants them any more."""
        owner, client = pairing.requests["owner"], pairing.requests["client"]
        largest_bytes = int(self._settings.max_step_gib * 2**30)
        secrets = Secrets((owner.seed, client.seed), owner.weight_key, largest_bytes)
        plan = correlations(model, request, self._program, pairing.check)
        made = self._maker.corrections(secrets, plan, pairing.check, lambda: pairing.ahead.held)
        with closing(made):
            for data in made:
                for start in range(0, len(data), CHUNK_BYTES):
                    if not pairing.ahead.put(data[start : start + CHUNK_BYTES], pairing.patience):
                        return
        pairing.ahead.finish(pairing.patience)

    def _asked(self, wanted: dealer_pb2.DealRequest) -> tuple[ModelConfig, GenerationRequest]:
        """What both parties sent, checked before anything is planned. Raises HandshakeError, ModelError."""
        s = self._settings
        model, request = ModelConfig.from_json(wanted.model), GenerationRequest.from_json(wanted.request)
        request.check("dealer", model, s.max_prompt_tokens, s.max_new_tokens)
        if request.backend not in s.backends:
            allowed = ", ".join(s.backends)
            raise HandshakeError(f"the dealer does not allow the backend {request.backend!r} (allowed: {allowed})")
        if s.policies and request.policy.name not in s.policies:
            allowed = ", ".join(s.policies)
            raise HandshakeError(f"the dealer does not allow the policy {request.policy.name!r} (allowed: {allowed})")
        check_size(model, request.tokens, "dealer", s.max_model_gib)
        return model, request


def _check_request(role: str, request: dealer_pb2.DealRequest) -> None:
    """Raises HandshakeError."""
    if request.role != role or role not in PARTIES:
        raise HandshakeError(f"your certificate is not of the role {printable(request.role[:20])}")
    if request.protocol_version != PROTOCOL_VERSION:
        raise HandshakeError(
            f"the dealer speaks protocol version {PROTOCOL_VERSION}, the {role} {request.protocol_version}: "
            "install the same MPCache everywhere"
        )
    key_bytes = KEY_BYTES if role == "owner" else 0
    sizes = len(request.session), len(request.seed), len(request.weight_key)
    if sizes != (SESSION_BYTES, KEY_BYTES, key_bytes):
        raise HandshakeError("a request's session, seed or weight key is not of its length")


class DealerServer:
    """The dealer's process: serves until stopped. program: see `mpcache.generation.loop.Program`.

    Raises ConfigError if there are no such workers as the settings ask for.
    """

    def __init__(self, settings: DealerSettings, identity: Identity | None, program: Program | None = None) -> None:
        calls = 2 * settings.max_sessions + WAITING
        self._server, self.port = open_server(settings.listen, identity, calls, settings.timeout_seconds, REQUEST_BYTES)
        self._maker = Maker(chosen_pool(settings.workers, settings.ray), settings.memory_mib << 20)
        service = DealerService(settings, identity is None, self._maker, program)
        dealer_pb2_grpc.add_DealerServicer_to_server(service, self._server)
        self._server.start()

    def drain(self, seconds: float) -> threading.Event:
        """Accept no more sessions; running ones may take so long to end. Set when they have."""
        return self._server.stop(grace=seconds)

    def stop(self) -> None:
        self._server.stop(grace=0.5).wait()
        self._maker.close()
