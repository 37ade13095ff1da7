"""An owner that misbehaves: whatever it sends, the client ends in words, keeps no file of its choosing, and tells it
nothing of the prompt."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import grpc

from mpcache.generation.plan import constants_digest, plan_digest
from mpcache.generation.request import GenerationRequest
from mpcache.model.checkpoint import weight_shapes
from mpcache.model.config import ModelConfig
from mpcache.parties.certificates import Identity
from mpcache.parties.generated import owner_pb2, owner_pb2_grpc
from mpcache.parties.link import Frame
from mpcache.parties.tls import open_server, require_peer
from mpcache.policies import policy_settings
from mpcache.protocols.backends.mpc import weight_bits
from mpcache.protocols.ring import packed_bytes

Answers = Callable[[owner_pb2.Hello], Iterator[owner_pb2.Frame] | None]
MODEL = ModelConfig("llama", 96, 32, 48, 2, 4, 2, 8, 128, 1e-6, "silu")


@contextmanager
def owner_that(answers: Answers, identity: Identity) -> Iterator[str]:
    """An owner at the address given, which answers a hello so, and stays until the client goes.

    It goes itself if the answer is None.
    """

    class Service(owner_pb2_grpc.OwnerServicer):
        def Converse(self, frames: Iterator[Frame], context: grpc.ServicerContext) -> Iterator[Frame]:
            require_peer(context, ("client",), insecure=False)
            replies = answers(next(iter(frames)).hello)
            if replies is not None:
                yield from replies
                for _ in frames:
                    pass

    server, port = open_server("127.0.0.1:0", identity, 4)
    owner_pb2_grpc.add_OwnerServicer_to_server(Service(), server)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def welcome(hello: owner_pb2.Hello, **changes: Any) -> owner_pb2.Frame:
    """An honest welcome, but for the changes."""
    request = GenerationRequest.from_json(hello.request)
    fields: dict[str, Any] = {
        "model": MODEL.to_json(),
        "plan_digest": plan_digest(MODEL, request),
        "masked_weights": "0" * 32,
        "model_digest": "0" * 64,
        "constants_digest": constants_digest(MODEL, request),
    }
    return Frame(welcome=owner_pb2.Welcome(**{**fields, **changes}))


def welcoming(**changes: Any) -> Answers:
    return lambda hello: iter([welcome(hello, **changes)])


def describing(**changes: Any) -> Answers:
    """A model with these fields instead of its own: whatever JSON can hold."""
    return lambda hello: iter([welcome(hello, model=json.dumps({**asdict(MODEL), **changes}))])


def planning(**changes: Any) -> Answers:
    """The plan of another generation than was asked for."""

    def answers(hello: owner_pb2.Hello) -> Iterator[owner_pb2.Frame]:
        request = replace(GenerationRequest.from_json(hello.request), **changes)
        yield welcome(hello, plan_digest=plan_digest(MODEL, request))

    return answers


def frames(*others: owner_pb2.Frame) -> Answers:
    return lambda hello: iter(others)


def after_the_welcome(payload: bytes, length: int | None = None) -> Answers:
    def answers(hello: owner_pb2.Hello) -> Iterator[owner_pb2.Frame]:
        yield welcome(hello)
        size = len(payload) if length is None else length
        yield Frame(message=owner_pb2.Message(session=hello.session, sequence=0, length=size, payload=payload))

    return answers


def evil(**changes: Any) -> Answers:
    """A welcome that names the model by a path, and then all weights that are to be written there."""

    def answers(hello: owner_pb2.Hello) -> Iterator[owner_pb2.Frame]:
        yield welcome(hello, **changes)
        for i, (name, shape) in enumerate(weight_shapes(MODEL).items()):
            weight = os.urandom(packed_bytes(shape[0] * shape[1], weight_bits(name)))
            message = owner_pb2.Message(session=hello.session, sequence=i, length=len(weight), payload=weight)
            yield Frame(message=message)

    return answers


NO_DIGEST = "names its model by what is no digest"
UNREADABLE = "the model's shape cannot be read"
OTHERS = "the client's plan differs from the owner's"
OWNERS: dict[str, tuple[Answers, str]] = {
    "a digest that climbs": (evil(model_digest="../../../../evil"), NO_DIGEST),
    "a digest that is a path": (evil(model_digest="/var/evil"), NO_DIGEST),
    "a digest that is long": (evil(model_digest="0" * 100_000), NO_DIGEST),
    "a digest with a line's end": (evil(model_digest="0" * 64 + "\n"), NO_DIGEST),
    "no digest": (welcoming(model_digest=""), NO_DIGEST),
    "a fingerprint that is none": (welcoming(masked_weights="../x"), NO_DIGEST),
    "10^9 layers": (describing(layers=10**9), "a model's layers lies between 1 and 1,024"),
    "10^9 positions": (describing(max_positions=10**9), "a model's max_positions lies between"),
    "10^18 hidden": (describing(hidden=10**18), "a model's hidden lies between"),
    "no heads": (describing(heads=0), "a model's heads lies between"),
    "no key/value heads": (describing(key_value_heads=0), "a model's key_value_heads lies between"),
    "heads that cannot be shared": (describing(heads=3), "3 heads cannot share 2"),
    "an odd head size": (describing(head_size=7), "need an even head size"),
    "negative layers": (describing(layers=-1), "a model's layers lies between"),
    "text for a number": (describing(layers="2"), "layers: Input should be a valid integer"),
    "a fraction for a number": (describing(layers=2.5), "layers: Input should be a valid integer"),
    "true for a number": (describing(layers=True), "layers: Input should be a valid integer"),
    "a list for a number": (describing(layers=[2]), "layers: Input should be a valid integer"),
    "a norm's epsilon that is no number": (describing(norm_epsilon=float("nan")), "norm_epsilon: Input should"),
    "an infinite theta": (describing(rope_theta=float("inf")), "rope_theta: Input should"),
    "a norm's epsilon of nothing": (describing(norm_epsilon=0.0), "a norm's epsilon lies above 0"),
    "a theta of 10^300": (describing(rope_theta=1e300), "theta lies between 1 and 1e12"),
    "an unknown activation": (describing(activation="eval"), "the activation 'eval' is not supported"),
    "an unknown family": (describing(family="../../x"), "the model family"),
    "end tokens of its own": (describing(end_tokens=[198]), "end_tokens: Unexpected"),
    "a model larger than memory": (
        describing(layers=1000, hidden=1 << 15, intermediate=1 << 18),
        "GiB, and the client allows 16",
    ),
    "a vocabulary smaller than the tokenizer's": (describing(vocabulary=95), "the tokenizer does not fit"),
    "a model that is nested": (welcoming(model="[" * 10_000), UNREADABLE),
    "a model that is a list": (welcoming(model="[]"), UNREADABLE),
    "a model that is no JSON": (welcoming(model="{"), UNREADABLE),
    "a model of 900 KB": (welcoming(model=" " * 900_000), UNREADABLE),
    "no model": (welcoming(model=""), UNREADABLE),
    "more tokens than were asked for": (planning(max_new_tokens=3), OTHERS),
    "a shorter prompt": (planning(prompt_tokens=1), OTHERS),
    "another policy": (planning(policy=policy_settings("random")), OTHERS),
    "another backend": (planning(backend="crypten"), OTHERS),
    "another block": (planning(prefill_block=32), OTHERS),
    "another precision": (planning(precision="fixed-point 2 bits"), OTHERS),
    "another network": (planning(network="wan"), OTHERS),
    "lengths beside the model": (describing(max_new_tokens=10**9), "max_new_tokens: Unexpected"),
    "other constants": (welcoming(constants_digest="0" * 64), r"the public constants .* differ from the owner"),
    "another plan": (welcoming(plan_digest="0" * 64), "the client's plan differs from the owner's"),
    "weights that are too short": (after_the_welcome(b"123"), "of which 3 came at once, where 12288"),
    "weights that say to be longer": (after_the_welcome(bytes(12288), 10**15), "where 12288 and 12288 were due"),
    "a message instead of a welcome": (
        frames(Frame(message=owner_pb2.Message(payload=b"x"))),
        "did not answer with a welcome",
    ),
    "an empty frame": (frames(Frame()), "did not answer with a welcome"),
    "no answer": (lambda hello: None, "the owner closed the connection"),
    "a frame of 100 MB": (frames(Frame(message=owner_pb2.Message(payload=bytes(100_000_000)))), "message larger than"),
    "a reason that paints the terminal": (
        frames(Frame(abort=owner_pb2.Abort(reason="\x1b[2Jgone\x07"))),
        r"the owner ended the session:  \[2Jgone",
    ),
    "a reason of a megabyte": (frames(Frame(abort=owner_pb2.Abort(reason="x" * 1_000_000))), "x{250}"),
}
"""What it answers, and what the client says of it (a regular expression)."""
