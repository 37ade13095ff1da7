"""The decoder-only transformer, LLaMA and GPT-2, written once against a backend.

Shapes: m tokens at hand, h hidden size, H query heads over G key/value heads of size d.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from mpcache.model.checkpoint import weight_shapes
from mpcache.model.config import ModelConfig
from mpcache.model.rotary import Tables, rotary_tables
from mpcache.protocols.backends.interface import AnyBackend, Backend, Value

PREFILL_BLOCK = 64
"""Prompt tokens that go through the model at once, at least (policies/blocks.py): bounds the memory of a prefill,
whatever the prompt's length."""


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

    def forward(self, tokens: Sequence[int] | None, count: int, cache: Cache) -> Value:
        """Hidden states (m, h) of `count` more tokens, whose keys and values join the cache."""
        backend, past = self.backend, cache.past
        x = backend.embed(tokens, count, self._weights["embedding"])  # (m, h)
        if "positions" in self._tensors:
            x = backend.add_known(x, self._tensors["positions"][past : past + count])
        return self.blocks(x, cache)

    def blocks(self, x: Value, cache: Cache) -> Value:
        """All layers: hidden states (m, h) of m more tokens, from their embeddings."""
        c, count = self.config, x.shape[0]
        tables = None
        if c.family == "llama":
            tables = rotary_tables(c.rope_theta, c.head_size, cache.past, cache.past + count)
        for i in range(c.layers):
            x = x + self._attention(x, i, tables, cache)
            x = x + self._feed_forward(x, i)
        cache.advance(count)
        return x

    def next_token(self, x: Value, temperature: float = 0.0) -> int | None:
        """The token after the last of `x`; None where the process must not know it."""
        last = self._norm(x[-1:])
        head, bias = self._weights["head"], self._tensors.get("head.bias")
        return self.backend.next_token(last, head, bias, self.config.vocabulary, temperature)

    def _norm(self, x: Value) -> Value:
        return self.backend.rms_norm(x, self.config.norm_epsilon)  # LayerNorm's mean is folded away, see checkpoint.py

    def _linear(self, x: Value, name: str, narrow: bool = False) -> Value:
        return self.backend.linear(x, self._weights[name], self._tensors.get(f"{name}.bias"), narrow)

    def _attention(self, x: Value, i: int, tables: Tables | None, cache: Cache) -> Value:
        c, m = self.config, x.shape[0]
        qkv = self._linear(self._norm(x), f"layers.{i}.queries_keys_values")
        qkv = qkv.reshape(m, c.heads + 2 * c.key_value_heads, c.head_size).transpose(0, 1)  # (H + 2 G, m, d)
        rotated, values = qkv[: c.heads + c.key_value_heads], qkv[c.heads + c.key_value_heads :]
        if tables is not None:
            rotated = self.backend.rotate(rotated, *tables)
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
