"""A client that misbehaves: whatever it sends, the owner answers in words, at once, and serves on."""

from __future__ import annotations

import json
import os
import queue
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import grpc

from mpcache.generation.request import PROTOCOL_VERSION, GenerationRequest
from mpcache.parties.certificates import Identity
from mpcache.parties.generated import owner_pb2, owner_pb2_grpc
from mpcache.parties.link import Frame
from mpcache.parties.tls import open_channel
from mpcache.policies import policy_names, policy_settings

SESSION = bytes(range(16))
Fields = dict[str, Any]


class HostileClient:
    """A stream to the owner on which anything can be sent."""

    def __init__(self, address: str, identity: Identity | None) -> None:
        self._channel, _ = open_channel(address, identity, "owner")
        self._outgoing: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self.taken = 0
        """Frames that gRPC has taken from here so far."""
        self._incoming = owner_pb2_grpc.OwnerStub(self._channel).Converse(self._frames())

    def _frames(self) -> Iterator[Frame]:
        while (frame := self._outgoing.get()) is not None:
            self.taken += 1
            yield frame

    def send(self, frame: owner_pb2.Frame) -> None:
        self._outgoing.put(frame)

    def hear(self) -> str:
        """The owner's next frame: the reason of an abort, or what else it was; how the stream ended, if it did."""
        try:
            frame = next(self._incoming)
        except StopIteration:
            return "closed"
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
        kind = frame.WhichOneof("kind")
        return frame.abort.reason if kind == "abort" else str(kind)

    def leave(self) -> None:
        self._outgoing.put(None)
        self._incoming.cancel()
        self._channel.close()


def hello(**changes: Any) -> owner_pb2.Frame:
    """A hello as it should be, but for the changes."""
    fields: Fields = {"protocol_version": PROTOCOL_VERSION, "session": SESSION, "request": request()}
    return Frame(hello=owner_pb2.Hello(**{**fields, **changes}))


def request(**changes: Any) -> str:
    """A request as JSON with these facts instead of its own: whatever JSON can hold."""
    return json.dumps({**asdict(GenerationRequest(prompt_tokens=5, max_new_tokens=2)), **changes})


def policy(name: str = "mpcache", **changes: Any) -> str:
    """The same, of its policy's settings; under a name that no policy has, mpcache's."""
    own = policy_settings(name if name in policy_names() else "mpcache")
    return request(policy={**asdict(own), "name": name, **changes})


def message(payload: bytes, sequence: int = 0, length: int | None = None) -> owner_pb2.Frame:
    size = len(payload) if length is None else length
    return Frame(message=owner_pb2.Message(session=SESSION, sequence=sequence, length=size, payload=payload))


def greeting(**changes: Any) -> Callable[[HostileClient], None]:
    return lambda client: client.send(hello(**changes))


def wanting(**changes: Any) -> Callable[[HostileClient], None]:
    return greeting(request=request(**changes))


def under(**changes: Any) -> Callable[[HostileClient], None]:
    return greeting(request=policy(**changes))


def first(frame: owner_pb2.Frame) -> Callable[[HostileClient], None]:
    return lambda client: client.send(frame)


def after_the_welcome(frame: owner_pb2.Frame) -> Callable[[HostileClient], None]:
    def send(client: HostileClient) -> None:
        client.send(hello())
        assert client.hear() == "welcome"
        client.send(frame)

    return send


CLIENTS: dict[str, tuple[Callable[[HostileClient], None], str]] = {
    "a kernel that loops for hours": (under(name="snapkv", kernel=10**9 + 1), "kernel must be at least 1 and at most"),
    "a page of 10^12 tokens": (under(name="quest", page=10**12), "page must be at least 1 and at most 1,048,576"),
    "10^9 representatives": (under(name="infllm", representatives=10**9), "representatives must be at least 1"),
    "an infinite widening": (under(widening=float("inf")), "widening: Input should be a finite"),
    "a widening that is no number": (under(widening=float("nan")), "widening: Input should be"),
    "a budget of 10^300": (under(budget=1e300), "budget must be above 0 and at most"),
    "a thousand levels of clusters": (under(clusters=[4] * 1000), "clusters must have at most 8 items"),
    "10^9 shared layers": (under(share_layers=10**9), "share_layers must be at least 1 and at most"),
    "a setting of another type": (under(budget="all"), "budget: Input should be a valid number"),
    "a setting that is a list": (under(name="quest", page=[1]), "page: Input should be a valid integer"),
    "an unknown setting": (under(colour=1), "colour"),
    "another policy's setting": (under(name="quest", clusters=[4]), "policy.clusters: Unexpected keyword argument"),
    "settings that are a list": (wanting(policy=[1, 2]), "the request cannot be read: policy"),
    "settings that are no JSON": (wanting(policy="{"), "the request cannot be read: policy"),
    "a request that is no JSON": (greeting(request="{"), "the request cannot be read"),
    "a request that is a list": (greeting(request="[1, 2]"), "the request cannot be read"),
    "no request": (greeting(request=""), "the request cannot be read"),
    "nested JSON": (greeting(request="[" * 4000), "the request cannot be read"),
    "a request of a megabyte": (greeting(request=" " * 900_000), "at most 4096 characters"),
    "a digest of a megabyte": (greeting(model_digest="0" * 900_000), "at most 4096 characters"),
    "a model of its own": (wanting(model={"family": "llama"}), "model: Unexpected"),
    "a fact that is left out": (greeting(request='{"prompt_tokens": 5, "max_new_tokens": 2}'), "not every field"),
    "an unknown policy": (under(name="magic"), "unknown cache policy 'magic'"),
    "a policy with a path for a name": (under(name="../../secrets"), "unknown cache policy"),
    "a network that is no number": (wanting(network="nanms,1mbit"), "the network 'nanms,1mbit' needs"),
    "a network of infinite delay": (wanting(network="infms,1mbit"), "the network 'infms,1mbit' needs"),
    "a network of no bandwidth": (wanting(network="1ms,1e-300mbit"), "needs a round-trip time"),
    "a long network": (wanting(network="1" * 1000), "64 characters"),
    "a temperature that is no number": (wanting(temperature=float("nan")), "temperature: Input should be a"),
    "a temperature of 10^300": (wanting(temperature=1e300), "temperature must be between"),
    "no prompt": (wanting(prompt_tokens=0), "a generation needs a prompt"),
    "4 billion prompt tokens": (wanting(prompt_tokens=2**32 - 1), "the owner allows 2048 prompt tokens"),
    "10^3000 prompt tokens": (wanting(prompt_tokens=10**3000), "the owner allows 2048 prompt tokens"),
    "-1 prompt tokens": (wanting(prompt_tokens=-1), "a generation needs a prompt"),
    "a block of -1 tokens": (wanting(prefill_block=-1), "prefill_block is a number of tokens"),
    "a block beyond the owner's bound": (
        wanting(prefill_block=10**9),
        "the owner allows blocks of 512 prompt tokens, not 1000000000",
    ),
    "more prompts than the owner allows": (
        greeting(further_prompt_tokens=[5] * 8),
        "the owner allows 8 prompts in a batch, not 9",
    ),
    "a hundred thousand prompts": (
        greeting(further_prompt_tokens=[5] * 100_000),
        "the owner allows 8 prompts in a batch, not 100001",
    ),
    "4 billion tokens of a batch's last prompt": (
        greeting(further_prompt_tokens=[5, 2**32 - 1]),
        "the owner allows 2048 prompt tokens",
    ),
    "no tokens of a batch's last prompt": (greeting(further_prompt_tokens=[5, 0]), "a generation needs a prompt"),
    "a batch of another backend": (
        greeting(request=request(backend="crypten"), further_prompt_tokens=[5]),
        "only the backend 'mpc' runs a batch",
    ),
    "a batch that is prepared": (greeting(further_prompt_tokens=[5], purpose=1), "a batch is not prepared"),
    "a batch that was prepared": (greeting(further_prompt_tokens=[5], purpose=2), "a batch is not prepared"),
    "a block that is no number": (wanting(prefill_block="all"), "prefill_block: Input should be a valid integer"),
    "4 billion new tokens": (wanting(max_new_tokens=2**32 - 1), "the owner allows 256 new tokens"),
    "another backend": (wanting(backend="plain"), "unknown backend 'plain'"),
    "the baseline, which the owner does not allow": (wanting(backend="crypten"), "does not allow the backend"),
    "another version": (greeting(protocol_version=3), "speaks protocol version 6"),
    "another precision": (wanting(precision="\x1b[31m" * 200), "the owner computes with"),
    "a short session": (greeting(session=b"1"), "a session begins with a hello"),
    "a message before its hello": (first(message(b"123")), "a session begins with a hello"),
    "an empty frame": (first(Frame()), "a session begins with a hello"),
    "an abort before its hello": (first(Frame(abort=owner_pb2.Abort(reason="\x1b[2J"))), "the client ended"),
    "a hello of 200 MB": (greeting(request=" " * 200_000_000), "RESOURCE_EXHAUSTED"),
    "a message that is too long": (after_the_welcome(message(os.urandom(5000))), "of which 5000 came at once, where 1"),
    "a message that says to be longer": (after_the_welcome(message(b"1", length=10**15)), "where 1 and 1 were due"),
    "a message out of order": (after_the_welcome(message(b"1", sequence=7)), "sent message 7 where message 0 was due"),
    "a second hello": (after_the_welcome(hello()), "sent a hello where message 0 was due"),
    "a frame of 100 MB": (after_the_welcome(message(bytes(100_000_000))), "RESOURCE_EXHAUSTED"),
}
"""What it does, and what the owner says of it."""
