"""One prefill in the clear, whose keys and values every policy then starts from: prefill attends in full whatever the
policy, so that it need not be repeated for each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mpcache.generation.loop import decode
from mpcache.generation.request import FULL, GenerationRequest
from mpcache.model.decoder import Decoder
from mpcache.policies import Policy, PolicySettings, new_cache
from mpcache.policies.full import Full
from mpcache.protocols.backends.interface import Value
from mpcache.protocols.errors import ConfigError


class Recorder(Full):
    """Keeps every layer's queries as well."""

    def prepare(self) -> None:
        self.queries: list[list[Any]] = [[] for _ in range(self.config.layers)]

    def observe(self, layer: int, queries: Value, keys: Value, values: Value) -> None:
        heads, m, d = keys.shape
        self.queries[layer].append(queries.reshape(heads, -1, m, d))


@dataclass(frozen=True)
class Layer:
    """queries (G, r, n, d), keys and values (G, n, d)."""

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor

    def received(self, observed: int) -> torch.Tensor | None:
        """Attention that the last `observed` queries give to each token, summed: (G, n)."""
        if not observed:
            return None
        heads, n, _ = self.keys.shape
        total = torch.zeros(heads, n)
        for start in range(n - observed, n, _CHUNK):
            places = torch.arange(start, min(start + _CHUNK, n))
            scores = self.queries[:, :, places] @ self.keys[:, None].transpose(-1, -2)
            hidden = torch.arange(n) > places[:, None]
            total += scores.masked_fill(hidden, float("-inf")).softmax(-1).sum((1, 2))
        return total


_CHUNK = 256
"""Queries whose probabilities are in memory at once."""


@dataclass(frozen=True)
class Recorded:
    """A prompt's prefill. Further prompts that begin with it are recorded from it by `record`."""

    layers: list[Layer]
    tokens: int
    hidden: torch.Tensor
    recorder: Recorder

    def cache(
        self,
        decoder: Decoder,
        policy: PolicySettings,
        again: int = 0,
        share: Callable[[torch.Tensor], Value] = lambda known: known,
    ) -> Policy:
        """The policy's cache after this prompt, eviction done.

        again: how many last tokens are left out of the cache, to be computed again as decode steps. Eviction has seen
        their attention all the same, as it would after this prompt. share: makes tensors the backend's values.
        Raises ConfigError for a policy that reads with a budget: this prompt was read whole.
        """
        if policy.prefill_budget:
            raise ConfigError(
                f"cache policy {policy.name!r}: policies are compared from one prefill, which attends to everything; "
                "leave out prefill_budget (mpcache bench prefill-study measures it)"
            )
        tokens = self.tokens - again
        cache = new_cache(policy, decoder, tokens)
        for i, layer in enumerate(self.layers):
            heads, r, _, d = layer.queries.shape
            queries = layer.queries[:, :, :tokens].reshape(heads, r * tokens, d)
            received = layer.received(cache.observed_queries())
            cut = None if received is None else share(received[:, :tokens])
            keys, values = share(layer.keys[:, :tokens]), share(layer.values[:, :tokens])
            cache.preset(i, share(queries), keys, values, cut)
        cache.advance(tokens)
        return cache


def record(decoder: Decoder, tokens: Sequence[int], after: Recorded | None = None) -> Recorded:
    """Prefill of `tokens`, after those of `after` if given. Decoder: on the plain backend."""
    if after is None:
        recorder = Recorder(FULL, decoder.config, decoder.backend, 1 << 30)
    else:
        recorder = copy.copy(after.recorder)
        recorder._layers = list(recorder._layers)
        recorder.queries = [list(parts) for parts in recorder.queries]
    hidden: Any = decoder.forward(tokens, len(tokens), recorder)  # on the plain backend, a tensor
    pairs: list[Any] = [recorder.key_values(i) for i in range(decoder.config.layers)]
    layers = [Layer(torch.cat(queries, 2), *pair) for queries, pair in zip(recorder.queries, pairs, strict=True)]
    return Recorded(layers, recorder.past, hidden, recorder)


def greedy(decoder: Decoder, cache: Policy, x: Value, tokens: int) -> list[int]:
    """The next tokens after the hidden states `x`; the last of them does not join the cache."""
    request = GenerationRequest(prompt_tokens=cache.past, max_new_tokens=tokens)
    return [token for token in decode(decoder, request, x, cache) if token is not None]


def log_likelihood(decoder: Decoder, cache: Policy, x: Value, answer: Sequence[int]) -> float:
    """Sum of the log likelihoods of the answer's tokens, each given those before it."""
    total = 0.0
    for token in answer:
        decoder.next_token(x)
        logits = decoder.backend.last_logits  # type: ignore[attr-defined]
        total += float(logits.log_softmax(-1)[token])
        x = decoder.forward([token], 1, cache)
    return total
