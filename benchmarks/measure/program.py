"""What the processes of a cost benchmark run instead of a generation: its parts alone, without a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mpcache.generation.prefilled import prefilled_cache
from mpcache.generation.request import GenerationRequest
from mpcache.model.decoder import Decoder
from mpcache.policies import Policy, new_cache
from mpcache.protocols.backends.interface import Value
from mpcache.protocols.errors import ConfigError

KINDS = ("decode", "prefill")


@dataclass(frozen=True)
class Program:
    """See `mpcache.generation.loop.Program`; every process of a benchmark is given the same one.

    decode: a cache filled with random keys and values of the model owner's (a prefill of so many tokens would take
    minutes, and a step's cost is the same), static eviction, then steps. Yields after each of these.
    prefill: the prompt, block by block. Yields after each block.
    embedding: a token's row is looked up in the embedding, obliviously; without, hidden states are random.
    head: final norm, logits and their arg max as well (after a prefill, once).
    """

    kind: str = "decode"
    embedding: bool = False
    head: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"a benchmark's program is one of {', '.join(KINDS)}, not {self.kind!r}")

    def __call__(
        self,
        decoder: Decoder,
        request: GenerationRequest,
        prompt: Sequence[int] | None,
        on_block: Callable[[int, int], None] = lambda done, total: None,
        stop: Callable[[int], bool] | None = None,
    ) -> Iterator[int]:
        steps = self._decode if self.kind == "decode" else self._prefill
        return steps(decoder, request, prompt)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def _decode(self, decoder: Decoder, request: GenerationRequest, prompt: Sequence[int] | None) -> Iterator[int]:
        given = _Given(decoder, self.seed)
        cache = prefilled_cache(decoder, request.policy, request.prompt_tokens, given)
        yield 0
        cache.advance(request.prompt_tokens)
        yield 0
        for _ in range(request.max_new_tokens):
            self._forward(given, decoder, cache, None if prompt is None else prompt[:1], 1, self.head)
            yield 0

    def _prefill(self, decoder: Decoder, request: GenerationRequest, prompt: Sequence[int] | None) -> Iterator[int]:
        cache = new_cache(request.policy, decoder, request.prompt_tokens)
        given = _Given(decoder, self.seed)
        for start, end in request.blocks(decoder.config):
            tokens = None if prompt is None else prompt[start:end]
            self._forward(given, decoder, cache, tokens, end - start, self.head and end == request.prompt_tokens)
            yield 0

    def _forward(
        self, given: _Given, decoder: Decoder, cache: Policy, tokens: Sequence[int] | None, count: int, head: bool
    ) -> None:
        if self.embedding:
            x = decoder.forward(tokens, count, cache)
        else:
            x = decoder.blocks(given((count, decoder.config.hidden)), cache)
        if head:
            decoder.next_token(x)


class _Given:
    """Random values that the process with the model knows, and shares."""

    def __init__(self, decoder: Decoder, seed: int) -> None:
        self._backend = decoder.backend
        self._generator = torch.Generator().manual_seed(seed) if decoder.has_model else None

    def __call__(self, shape: tuple[int, ...]) -> Value:
        zeros = self._backend.zeros(shape)
        if self._generator is None:
            return zeros
        known = torch.randn(shape, generator=self._generator)
        return self._backend.add_known(zeros, known if len(shape) == 3 else known.abs())  # (G, n): attention received
