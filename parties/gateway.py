"""The data owner's gateway: applications on its side send a prompt and get the answer; the prompt goes no further.

Whoever reaches the gateway can use the data owner's identity, so it listens on loopback only.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import grpc

from mpcache.generation.text import TextStream
from mpcache.parties.data_owner import DataOwner
from mpcache.parties.generated import client_pb2, client_pb2_grpc
from mpcache.parties.result import Result
from mpcache.parties.tls import on_end, open_server, require_loopback
from mpcache.protocols.errors import ConfigError, MpcacheError


class GatewayService(client_pb2_grpc.ClientServicer):
    """One generation a call, as pieces of text and a summary of what it cost."""

    def __init__(self, data_owner: DataOwner) -> None:
        self._data_owner = data_owner

    def Generate(
        self, request: client_pb2.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[client_pb2.GenerateReply]:
        changes = {"max_new_tokens": request.max_new_tokens} if request.max_new_tokens else {}
        try:
            wanted = self._data_owner.request(request.prompt, **changes)
        except ConfigError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        generation, answer = self._data_owner.start(wanted), TextStream(self._data_owner.tokenizer)
        on_end(context, generation.stop)
        try:
            for token in generation:
                if piece := answer.add(token):
                    yield client_pb2.GenerateReply(text=piece)
        except MpcacheError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        if rest := answer.rest():
            yield client_pb2.GenerateReply(text=rest)
        result = Result.of(generation, wanted.public, answer)
        yield client_pb2.GenerateReply(summary=json.dumps(result.to_dict()))


class GatewayServer:
    """The gateway's process: serves until stopped, in plaintext on loopback."""

    def __init__(self, address: str, data_owner: DataOwner) -> None:
        require_loopback(address)
        self._server, self.port = open_server(address, None, workers=4)
        client_pb2_grpc.add_ClientServicer_to_server(GatewayService(data_owner), self._server)
        self._server.start()

    def drain(self, seconds: float) -> threading.Event:
        """Accept nothing more; what runs may take so long to end. Set when it has."""
        return self._server.stop(grace=seconds)

    def stop(self) -> None:
        self._server.stop(grace=0.5).wait()
