"""The decode step's parts against a backend: on CrypTen's protocols, and in plaintext as the reference.

All values come from one seed in every process, so that the result can be held against plaintext; each is shared by
whom it belongs to, weights by the model owner, the rest by the client.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from mpcache.benchmarks.peers.case import Case, selection_layout
from mpcache.protocols.backends.interface import Stage, Value
from mpcache.protocols.backends.plain import PlainBackend
from mpcache.protocols.stripes import Stripes

WEIGHT_DEVIATION = 0.02
"""Of GPT-2's initial weights."""
EPSILON = 1e-5
CLIENT = 1

Step = Callable[[], Any]
"""One token's computation; gives a value, or for the head the token, where it may be known."""


@dataclass(frozen=True)
class Values:
    """Random values, as the backend's: `input` for the client's, `weight` for the owner's."""

    backend: Any
    generator: torch.Generator

    def input(self, *shape: int, scale: float = 1.0) -> Value:
        value = torch.randn(shape, generator=self.generator) * scale
        if isinstance(self.backend, PlainBackend):
            return value
        secret: Value = self.backend.input(value, shape, CLIENT)
        return secret

    def weight(self, name: str, rows: int, columns: int) -> Value:
        value = torch.randn((rows, columns), generator=self.generator) * WEIGHT_DEVIATION
        secret: Value = self.backend.weight(name, (rows, columns), value)
        return secret


def prepare(backend: Any, case: Case) -> Step:
    """Share what is there before the token, and return what is measured."""
    return _PARTS[case.what](case, Values(backend, torch.Generator().manual_seed(0)))


# ---------------------------------------------------------------- attention of one token

Attention = Callable[[Value, Value, Value], Value]
"""(query, key, value) of the new token, (heads, 1, d) -> (heads, 1, d)."""


def _cached_attention(case: Case, values: Values) -> Attention:
    """Attention to a cache of random keys and values, by the case's policy."""
    backend, selected = values.backend, case.policy != "full"
    layout = selection_layout(case.policy, case.tokens) if selected else {"cached": case.tokens}
    shape = (case.heads, layout["cached"], case.head_size)
    keys, vectors = values.input(*shape), values.input(*shape)
    cached = backend.append(None, keys, vectors)
    if not selected:
        return lambda query, key, value: backend.attend(query, backend.append(cached, key, value))
    start, end = layout["sinks"], layout["sinks"] + layout["clustered"]
    select = _selector(backend, layout, keys[:, start:end])

    def attention(query: Value, key: Value, value: Value) -> Value:
        attended: Value = backend.attend_selected(
            [query], backend.append(cached, key, value), start, end, [select(query)]
        )
        return attended

    return attention


def _selector(backend: Any, layout: dict[str, Any], keys: Value) -> Callable[[Value], list[Stage]]:
    """Query -> a choice for each level; clusters of `keys` are compared by their mean."""
    heads, _, d = keys.shape
    representatives = [
        backend.mask(backend.scale(keys.reshape(heads, -1, size, d).sum(2), 1 / size)) for size, _ in layout["levels"]
    ]

    def select(query: Value) -> list[Stage]:
        stages: list[Stage] = []
        scores = backend.similarity(query, representatives)
        for candidates, (size, k) in zip(scores, layout["levels"], strict=True):
            for stage in stages:  # only the children of what was picked so far
                rows = candidates.reshape(heads, -1, stage.size // size)
                candidates = backend.pick(stage, rows).reshape(heads, -1)
            stages.append(backend.choose(candidates, Stripes(candidates.shape[1], k), size))
        return stages

    return select


def _attention(case: Case, values: Values) -> Step:
    shape = (case.heads, 1, case.head_size)
    query = values.input(*shape, scale=case.head_size**-0.5)
    key, value = values.input(*shape), values.input(*shape)
    attention = _cached_attention(case, values)
    return lambda: attention(query, key, value)


def _selection(case: Case, values: Values) -> Step:
    """The picked clusters' keys and values, (heads, tokens, 2 d)."""
    backend, layout = values.backend, selection_layout(case.policy, case.tokens)
    query = values.input(case.heads, 1, case.head_size)
    shape = (case.heads, layout["clustered"], case.head_size)
    keys, vectors = values.input(*shape), values.input(*shape)
    select = _selector(backend, layout, keys)

    def step() -> Value:
        rows: Value = backend.concatenate([keys, vectors], 2)
        for stage in select(query):
            rows = backend.pick(stage, rows.reshape(case.heads, -1, stage.size * 2 * case.head_size))
            rows = rows.reshape(case.heads, -1, 2 * case.head_size)
        return rows

    return step


# ---------------------------------------------------------------- a block, and the next token


def _block(case: Case, values: Values) -> Step:
    x = values.input(1, case.hidden)
    layer = _layer(case, values, 0)
    return lambda: layer(x)


def _layer(case: Case, values: Values, number: int) -> Callable[[Value], Value]:
    """A GPT-2 block; as in our checkpoints, gains and biases of the norms are folded into the weights."""
    backend, h, inner = values.backend, case.hidden, case.intermediate
    shapes = {"qkv": (3 * h, h), "out": (h, h), "up": (inner, h), "down": (h, inner)}
    w = {name: values.weight(f"{number}.{name}", *shape) for name, shape in shapes.items()}
    attention = _cached_attention(case, values)

    def layer(x: Value) -> Value:
        qkv = backend.linear(_layer_norm(backend, x), w["qkv"])
        query, key, value = (
            part.reshape(case.heads, 1, case.head_size) for part in (qkv[:, :h], qkv[:, h : 2 * h], qkv[:, 2 * h :])
        )
        attended = attention(query, key, value).reshape(1, h)
        x = x + backend.linear(attended, w["out"])
        up = backend.linear(_layer_norm(backend, x), w["up"])
        down: Value = backend.linear(backend.activation(up, "gelu_tanh"), w["down"])
        return x + down

    return layer


def _layer_norm(backend: Any, x: Value) -> Value:
    mean = backend.scale(x.sum(-1).reshape(-1, 1), Fraction(1, x.shape[-1]))
    scaled: Value = backend.rms_norm(x - mean, EPSILON)
    return scaled


def _head(case: Case, values: Values) -> Step:
    x = values.input(1, case.hidden)
    next_tokens = _next_tokens(case, values)
    return lambda: next_tokens(x)


def _next_tokens(case: Case, values: Values) -> Callable[[Value], list[int] | None]:
    backend = values.backend
    table = values.weight("head", case.vocabulary, case.hidden)
    return lambda x: backend.next_tokens(_layer_norm(backend, x), table, None, case.vocabulary, 0.0)


def _model(case: Case, values: Values) -> Step:
    x = values.input(1, case.hidden)
    layers = [_layer(case, values, i) for i in range(case.layers)]
    next_tokens = _next_tokens(case, values)

    def step() -> list[int] | None:
        y = x
        for layer in layers:
            y = layer(y)
        return next_tokens(y)

    return step


_PARTS: dict[str, Callable[[Case, Values], Step]] = {
    "attention": _attention,
    "selection": _selection,
    "block": _block,
    "head": _head,
    "model": _model,
}
