"""The data owner's gateway: applications on its side send a prompt and get the answer; the prompt goes no further.

Whoever reaches the gateway can use the data owner's identity, so it listens on loopback only.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import grpc
from tokenizers import Tokenizer

from mpcache.generation.request import ClientRequest
from mpcache.generation.text import TextStream
from mpcache.parties.client import Connection, Generation
from mpcache.parties.generated import client_pb2, client_pb2_grpc
from mpcache.parties.result import Result
from mpcache.parties.tls import on_end, open_server, require_loopback
from mpcache.protocols.errors import MpcacheError


class GatewayService(client_pb2_grpc.ClientServicer):
    """One generation a call, as pieces of text and a summary of what it cost."""

    def __init__(self, connection: Connection, tokenizer: Tokenizer, defaults: ClientRequest) -> None:
        self._connection, self._tokenizer, self._defaults = connection, tokenizer, defaults

    def Generate(
        self, request: client_pb2.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[client_pb2.GenerateReply]:
        prompt = self._tokenizer.encode(request.prompt).ids
        if not prompt:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the prompt is empty")
        most = request.max_new_tokens or self._defaults.public.max_new_tokens
        wanted = self._defaults.with_prompt(prompt, max_new_tokens=most)
        generation, answer = Generation(self._connection, wanted), TextStream(self._tokenizer)
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

    def __init__(self, address: str, connection: Connection, tokenizer: Tokenizer, defaults: ClientRequest) -> None:
        require_loopback(address)
        self._server, self.port = open_server(address, None, workers=4)
        client_pb2_grpc.add_ClientServicer_to_server(GatewayService(connection, tokenizer, defaults), self._server)
        self._server.start()

    def drain(self, seconds: float) -> threading.Event:
        """Accept nothing more; what runs may take so long to end. Set when it has."""
        return self._server.stop(grace=seconds)

    def stop(self) -> None:
        self._server.stop(grace=0.5).wait()
