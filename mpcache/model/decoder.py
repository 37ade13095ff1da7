"""The decoder-only transformer, LLaMA and GPT-2, written once against a backend.

Shapes: m tokens at hand, h hidden size, H query heads over G key/value heads of size d.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from mpcache.model.checkpoint import weight_shapes
from mpcache.model.config import ModelConfig
from mpcache.model.rotary import rotary_tables
from mpcache.protocols.backends.interface import AnyBackend, Backend, Value

PREFILL_BLOCK = 64
"""Prompt tokens that go through the model at once where nothing longer pays (policies/blocks.py) and nobody asks
otherwise."""


@dataclass(frozen=True)
class Within:
    """Where a block begins, if the client alone knows it: at `position`, None elsewhere, of the public [start, end)
    that all of the block's positions lie in."""

    start: int
    end: int
    position: int | None = None


class Cache(Protocol):
    """The keys and values of one generation: what the decoder needs of a policy (policies/base.py)."""

    past: int

    def attend(self, layer: int, queries: Value, keys: Value, values: Value) -> Value: ...

    def advance(self, count: int) -> None: ...


class Decoder:
    """A model on a backend. `tensors` are the owner's (see checkpoint.py); empty where the process has no model."""

    def __init__(
        self, config: ModelConfig, backend: AnyBackend, tensors: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        self.config = config
        self.backend: Backend = backend
        self._tensors = tensors or {}
        self._weights = {
            name: backend.weight(name, shape, self._tensors.get(name)) for name, shape in weight_shapes(config).items()
        }

    @property
    def has_model(self) -> bool:
        """Whether this process is the one that has the weights."""
        return bool(self._tensors)

    def forward(self, tokens: Sequence[int] | None, count: int, cache: Cache, within: Within | None = None) -> Value:
        """Hidden states (m, h) of `count` more tokens, whose keys and values join the cache.

        within: where they are, if that is not after all that is cached. Takes a round, and for LLaMA one more in each
        layer.
        """
        backend, past = self.backend, cache.past
        x = backend.embed(tokens, count, self._weights["embedding"])  # (m, h)
        if within is not None:
            return self._blocks_within(x, cache, within)
        if "positions" in self._tensors:
            x = backend.add_known(x, self._tensors["positions"][past : past + count])
        return self.blocks(x, cache)

    def blocks(self, x: Value, cache: Cache) -> Value:
        """All layers: hidden states (m, h) of m more tokens, from their embeddings."""
        c = self.config
        if c.family != "llama":
            return self._blocks(x, cache, lambda heads: heads)
        cos, sin = rotary_tables(c.rope_theta, c.head_size, cache.past, cache.past + x.shape[0])
        return self._blocks(x, cache, lambda heads: self.backend.rotate(heads, cos, sin))

    def _blocks_within(self, x: Value, cache: Cache, within: Within) -> Value:
        """As `blocks`, where the client alone knows the positions."""
        c, backend, m = self.config, self.backend, x.shape[0]
        if c.family != "llama":
            last = c.max_positions - 1  # a draft beyond is none that is kept
            at = within.position
            places = None if at is None else [min(at + i, last) for i in range(m)]
            x = x + backend.embed(places, m, self._weights["position_embedding"])
            return self._blocks(x, cache, lambda heads: heads)
        cos, sin = backend.secret_tables(self._tables(within, m), (2, m, c.head_size))
        out = self._blocks(x, cache, lambda heads: backend.rotate_masked(heads, cos, sin))
        backend.forget(cos, sin)
        return out

    def _tables(self, within: Within, m: int) -> torch.Tensor | None:
        """cos and sin (2, m, d), where they are known. All of the public range is computed, so that the time that it
        takes tells nothing."""
        if within.position is None:
            return None
        first = within.position - within.start
        tables = rotary_tables(self.config.rope_theta, self.config.head_size, within.start, within.end)
        return torch.stack(tables)[:, first : first + m]

    def _blocks(self, x: Value, cache: Cache, rotate: Callable[[Value], Value]) -> Value:
        for i in range(self.config.layers):
            x = x + self._attention(x, i, rotate, cache)
            x = x + self._feed_forward(x, i)
        cache.advance(x.shape[0])
        return x

    def next_token(self, x: Value, temperature: float = 0.0) -> int | None:
        """The token after the last of `x`; None where the process must not know it."""
        tokens = self.next_tokens(x[-1:], temperature)
        return None if tokens is None else tokens[0]

    def next_tokens(self, x: Value, temperature: float = 0.0) -> list[int] | None:
        """The token after each of `x`; None where the process must not know them."""
        head, bias = self._weights["head"], self._tensors.get("head.bias")
        return self.backend.next_tokens(self._norm(x), head, bias, self.config.vocabulary, temperature)

    def _norm(self, x: Value) -> Value:
        return self.backend.rms_norm(x, self.config.norm_epsilon)  # LayerNorm's mean is folded away, see checkpoint.py

    def _linear(self, x: Value, name: str, narrow: bool = False) -> Value:
        return self.backend.linear(x, self._weights[name], self._tensors.get(f"{name}.bias"), narrow)

    def _attention(self, x: Value, i: int, rotate: Callable[[Value], Value], cache: Cache) -> Value:
        c, m = self.config, x.shape[0]
        qkv = self._linear(self._norm(x), f"layers.{i}.queries_keys_values")
        qkv = qkv.reshape(m, c.heads + 2 * c.key_value_heads, c.head_size).transpose(0, 1)  # (H + 2 G, m, d)
        rotated, values = qkv[: c.heads + c.key_value_heads], qkv[c.heads + c.key_value_heads :]
        rotated = rotate(rotated)
        queries, keys = rotated[: c.heads], rotated[c.heads :]
        queries = queries.reshape(c.key_value_heads, c.queries_per_head * m, c.head_size)
        out = cache.attend(i, queries, keys, values)  # (G, H/G * m, d)
        out = out.reshape(c.heads, m, c.head_size).transpose(0, 1).reshape(m, c.heads * c.head_size)
        return self._linear(out, f"layers.{i}.attention_out")

    def _feed_forward(self, x: Value, i: int) -> Value:
        c = self.config
        inner = self._linear(self._norm(x), f"layers.{i}.feed_forward_in", narrow=True)
        if c.family == "llama":
            gate, up = inner[:, : c.intermediate], inner[:, c.intermediate :]
            inner = self.backend.multiply(self.backend.activation(gate, c.activation), up)
        else:
            inner = self.backend.activation(inner, c.activation)
        return self._linear(inner, f"layers.{i}.feed_forward_out")
