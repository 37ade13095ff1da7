"""A dealer that misbehaves before an honest owner and client; and parties that misbehave before an honest dealer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import grpc

from mpcache.generation.plan import plan_digest
from mpcache.generation.request import PROTOCOL_VERSION, GenerationRequest
from mpcache.parties.certificates import Identity
from mpcache.parties.generated import dealer_pb2, dealer_pb2_grpc, purpose_pb2
from mpcache.parties.tls import open_channel, open_server
from tests.hostile.owner import MODEL

Corrections, Failure = dealer_pb2.Corrections, dealer_pb2.Failure
Answers = Callable[[dealer_pb2.DealRequest], Iterator[dealer_pb2.Corrections]]


@contextmanager
def dealer_that(answers: Answers, identity: Identity) -> Iterator[str]:
    class Service(dealer_pb2_grpc.DealerServicer):
        def Deal(
            self, requests: Iterator[dealer_pb2.DealRequest], context: grpc.ServicerContext
        ) -> Iterator[dealer_pb2.Corrections]:
            yield from answers(next(requests))

    server, port = open_server("127.0.0.1:0", identity, 8)
    dealer_pb2_grpc.add_DealerServicer_to_server(Service(), server)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def starting(*others: dealer_pb2.Corrections) -> Answers:
    """It starts, and then answers so."""
    return lambda request: iter([Corrections(started=True), *others])


def without_end(chunk: bytes) -> Answers:
    def answers(request: dealer_pb2.DealRequest) -> Iterator[dealer_pb2.Corrections]:
        yield Corrections(started=True)
        while True:
            yield Corrections(chunk=chunk)

    return answers


DEALERS: dict[str, tuple[Answers, str]] = {
    "no answer": (lambda request: iter([]), "corrections ended early|the dealer"),
    "a failure that paints the terminal": (
        lambda request: iter([Corrections(failure=Failure(text="\x1b[2Jgone"))]),
        r"the dealer ended the session:  \[2Jgone",
    ),
    "a failure of a kind that there is not": (
        lambda request: iter([Corrections(failure=Failure(kind=99, text="gone"))]),  # type: ignore[arg-type]
        "the dealer ended the session: gone",
    ),
    "a failure that says that the other party left": (
        lambda request: iter([Corrections(failure=Failure(kind=Failure.LEFT, text="gone"))]),
        "the dealer ended the session: gone",
    ),
    "a failure without a word": (lambda request: iter([Corrections(failure=Failure())]), "the dealer ended the"),
    "an empty reply": (lambda request: iter([Corrections()]), "the dealer"),
    "no corrections": (starting(Corrections(finished=True)), "corrections ended early"),
    "few corrections": (starting(Corrections(chunk=b"123")), "corrections ended early"),
    "empty chunks without end": (without_end(b""), "a chunk without bytes"),
    "a chunk of 100 MB": (starting(Corrections(chunk=bytes(100_000_000))), "message larger than"),
}
"""What it answers both parties, and what the client says of it (a regular expression)."""


def noise(request: dealer_pb2.DealRequest) -> Iterator[dealer_pb2.Corrections]:
    """Corrections without end, of which none is right."""
    yield Corrections(started=True)
    while True:
        yield Corrections(chunk=os.urandom(1 << 16))


# ---------------------------------------------------------------- parties at an honest dealer


ASKED = GenerationRequest(prompt_tokens=5, max_new_tokens=2)


def request(role: str, **changes: Any) -> dealer_pb2.DealRequest:
    """A request as it should be, but for the changes."""
    fields: dict[str, Any] = {
        "protocol_version": PROTOCOL_VERSION,
        "role": role,
        "session": bytes(range(16)),
        "model": MODEL.to_json(),
        "request": ASKED.to_json(),
        "plan_digest": plan_digest(MODEL, ASKED),
        "seed": bytes(16),
        "weight_key": bytes(16) if role == "owner" else b"",
    }
    if changes.get("purpose") == purpose_pb2.PREPARED:
        fields |= {"seed": b"", "weight_key": b""}
    return dealer_pb2.DealRequest(**{**fields, **changes})


def wanting(role: str, **changes: Any) -> dealer_pb2.DealRequest:
    """What is asked for as JSON with these facts instead of its own."""
    return request(role, request=json.dumps({**asdict(ASKED), **changes}))


def modelled(role: str, **changes: Any) -> dealer_pb2.DealRequest:
    """The same for the model."""
    return request(role, model=json.dumps({**asdict(MODEL), **changes}))


class HostileParty:
    """A call to the dealer. received: the corrections that came."""

    received = b""

    def __init__(self, address: str, identity: Identity, wanted: dealer_pb2.DealRequest) -> None:
        self._channel, _ = open_channel(address, identity, "dealer")
        self._replies = dealer_pb2_grpc.DealerStub(self._channel).Deal(iter([wanted]))

    def hear(self) -> str:
        """The reason of the failure that comes, or how else the call ended."""
        try:
            for reply in self._replies:
                self.received += reply.chunk
                if reply.WhichOneof("kind") == "failure":
                    return reply.failure.text
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
        return "ended"

    def leave(self) -> None:
        self._replies.cancel()
        self._channel.close()


REQUESTS: dict[str, tuple[Callable[[str], dealer_pb2.DealRequest], str]] = {
    "another version": (lambda role: request(role, protocol_version=2), "speaks protocol version"),
    "a short session": (lambda role: request(role, session=b"1"), "not of its length"),
    "a short seed": (lambda role: request(role, seed=b"1"), "not of its length"),
    "a seed of 60 KB": (lambda role: request(role, seed=bytes(60_000)), "not of its length"),
    "a long weight key": (lambda role: request(role, weight_key=bytes(60_000)), "not of its length"),
    "a request of 10 MB": (lambda role: request(role, request=" " * 10_000_000), "RESOURCE_EXHAUSTED"),
    "a request that is nested": (lambda role: request(role, request="[" * 10_000), "the request cannot be read"),
    "a request that is no JSON": (lambda role: request(role, request="{"), "the request cannot be read"),
    "a model that is nested": (lambda role: request(role, model="[" * 10_000), "the model's shape cannot be read"),
    "a model that is no JSON": (lambda role: request(role, model="{"), "the model's shape cannot be read"),
    "10^9 layers": (lambda role: modelled(role, layers=10**9), "a model's layers lies between"),
    "10^9 positions": (lambda role: modelled(role, max_positions=10**9), "max_positions lies between"),
    "a model larger than memory": (
        lambda role: modelled(role, layers=1000, hidden=1 << 15, intermediate=1 << 18),
        "GiB, and the dealer allows 16",
    ),
    "4 billion prompt tokens": (lambda role: wanting(role, prompt_tokens=2**32), "allows 4096 prompt tokens"),
    "4 billion new tokens": (lambda role: wanting(role, max_new_tokens=2**32), "allows 1024 new tokens"),
    "a block of -1 tokens": (lambda role: wanting(role, prefill_block=-1), "prefill_block is a number of tokens"),
    "a block beyond the dealer's bound": (
        lambda role: wanting(role, prefill_block=10**9),
        "the dealer allows blocks of 512 prompt tokens, not 1000000000",
    ),
    "another precision": (lambda role: wanting(role, precision="x"), "computes with"),
    "the baseline, which it does not allow": (lambda role: wanting(role, backend="crypten"), "does not allow"),
    "another backend": (lambda role: wanting(role, backend="os"), "unknown backend 'os'"),
    "a temperature that is no number": (
        lambda role: wanting(role, temperature=float("nan")),
        "temperature: Input should be",
    ),
    "a network that is no number": (lambda role: wanting(role, network="nanms,1mbit"), "the network"),
    "the model's digest": (lambda role: wanting(role, model_digest="0" * 64), "model_digest: Unexpected"),
    "another plan": (lambda role: request(role, plan_digest="0" * 64), "the dealer's plan differs"),
    "another request than the other party's": (
        lambda role: wanting(role, max_new_tokens=2 if role == "owner" else 3),
        "different values of request",
    ),
    "another model than the other party's": (
        lambda role: modelled(role, layers=2 if role == "owner" else 3),
        "different values of model",
    ),
}
"""What owner and client ask for, and what the dealer says of it."""
