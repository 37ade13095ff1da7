"""What the gateway asks for in an application's name."""

import threading
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from mpcache.demo import DEMO_MODEL
from mpcache.generation.request import ClientRequest
from mpcache.model.tokenizer import load_tokenizer
from mpcache.parties.client import Connection
from mpcache.parties.data_owner import DataOwner
from mpcache.parties.gateway import GatewayServer
from mpcache.parties.generated import client_pb2, client_pb2_grpc
from mpcache.policies import policy_settings
from mpcache.protocols.errors import ConfigError, PeerLost
from tests.asking import asking

DEFAULTS = asking(
    (),
    7,
    temperature=0.5,
    policy=policy_settings("tova"),
    backend="crypten",
    model_digest="0" * 64,
    network="20ms,50mbit",
    prefill_block=32,
    precision="another",
    end_tokens=(1, 2),
    fixed_length=True,
    vocabulary=842,
)
WHERE = Connection("127.0.0.1:1", "127.0.0.1:2", None, Path("state"))


def test_every_setting_of_the_data_owners_reaches_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ClientRequest] = []

    def generation(connection: Connection, request: ClientRequest, on_block: object) -> Any:
        asked.append(request)
        raise PeerLost("nobody is there")

    monkeypatch.setattr("mpcache.parties.data_owner.Generation", generation)
    for described, own in ((DEFAULTS, {"prompt", "public"}), (DEFAULTS.public, {"prompt_tokens"})):
        for field in fields(described):
            unlike = field.name in own or getattr(described, field.name) != field.default
            assert unlike, f"{field.name} differs from its default"
    tokenizer = load_tokenizer(DEMO_MODEL)
    server = GatewayServer("127.0.0.1:0", DataOwner(WHERE, tokenizer, DEFAULTS))
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = client_pb2_grpc.ClientStub(channel)
        for wanted in (0, 3):
            with pytest.raises(grpc.RpcError, match="nobody is there"):
                list(stub.Generate(client_pb2.GenerateRequest(prompt="Q: Who?", max_new_tokens=wanted)))
    server.stop()
    prompt = tokenizer.encode("Q: Who?").ids
    public = replace(DEFAULTS.public, prompt_tokens=len(prompt))
    assert asked == [
        replace(DEFAULTS, prompt=prompt, public=public),
        replace(DEFAULTS, prompt=prompt, public=replace(public, max_new_tokens=3)),
    ]


def test_the_gateway_listens_on_this_machine_alone() -> None:
    with pytest.raises(ConfigError, match="only a loopback address"):
        GatewayServer("0.0.0.0:0", DataOwner(WHERE, load_tokenizer(DEMO_MODEL), DEFAULTS))


def test_a_session_ends_when_its_application_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, stopped = threading.Event(), threading.Event()

    class Endless:
        def __init__(self, connection: Connection, request: ClientRequest, on_block: object) -> None: ...

        def __iter__(self) -> Any:
            begun.set()
            stopped.wait(600)
            yield from ()

        def stop(self) -> None:
            stopped.set()

    monkeypatch.setattr("mpcache.parties.data_owner.Generation", Endless)
    server = GatewayServer("127.0.0.1:0", DataOwner(WHERE, load_tokenizer(DEMO_MODEL), DEFAULTS))
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = client_pb2_grpc.ClientStub(channel).Generate(client_pb2.GenerateRequest(prompt="Q: Who?"))
        assert begun.wait(600)
        call.cancel()
        assert stopped.wait(600)
    server.stop()


def test_a_gateway_that_drains_lets_what_runs_end(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, told = threading.Event(), threading.Event()

    class Waiting:
        def __init__(self, connection: Connection, request: ClientRequest, on_block: object) -> None: ...

        def __iter__(self) -> Any:
            begun.set()
            told.wait(600)
            raise PeerLost("it ends as it would have")

        def stop(self) -> None: ...

    monkeypatch.setattr("mpcache.parties.data_owner.Generation", Waiting)
    server = GatewayServer("127.0.0.1:0", DataOwner(WHERE, load_tokenizer(DEMO_MODEL), DEFAULTS))
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = client_pb2_grpc.ClientStub(channel).Generate(client_pb2.GenerateRequest(prompt="Q: Who?"))
        assert begun.wait(600)
        ended = server.drain(3600.0)
        assert not ended.wait(1.0), "it waits for the call that runs"
        told.set()
        with pytest.raises(grpc.RpcError, match="it ends as it would have"):
            list(call)
        assert ended.wait(600)
