"""The decode step's parts against a backend: on CrypTen's protocols, and in plaintext as the reference.

All values come from one seed in every process, so that the result can be held against plaintext; each is shared by
whom it belongs to, weights by the model owner, the rest by the client.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.peers.cases import Case
from protocols.backends.interface import KeyValues, Value
from protocols.backends.plain import PlainBackend

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
        plain = isinstance(self.backend, PlainBackend)
        return value if plain else self.backend.input(value, shape, CLIENT)

    def weight(self, name: str, rows: int, columns: int) -> Value:
        value = torch.randn((rows, columns), generator=self.generator) * WEIGHT_DEVIATION
        return self.backend.weight(name, (rows, columns), value)


def prepare(backend: Any, case: Case) -> Step:
    """Share what is there before the token, and return what is measured."""
    return _PARTS[case.what](case, Values(backend, torch.Generator().manual_seed(0)))


def _cache(case: Case, values: Values) -> KeyValues:
    shape = (case.heads, case.tokens, case.head_size)
    return values.backend.append(None, values.input(*shape), values.input(*shape))


def _attention(case: Case, values: Values) -> Step:
    backend = values.backend
    shape = (case.heads, 1, case.head_size)
    query = values.input(*shape, scale=case.head_size**-0.5)
    key, value = values.input(*shape), values.input(*shape)
    cached = _cache(case, values)
    return lambda: backend.attend(query, backend.append(cached, key, value))


def _block(case: Case, values: Values) -> Step:
    x = values.input(1, case.hidden)
    layer = _layer(case, values, 0)
    return lambda: layer(x)


def _layer(case: Case, values: Values, number: int) -> Callable[[Value], Value]:
    """A GPT-2 block; as in our checkpoints, gains and biases of the norms are folded into the weights."""
    backend, h, inner = values.backend, case.hidden, case.intermediate
    shapes = {"qkv": (3 * h, h), "out": (h, h), "up": (inner, h), "down": (h, inner)}
    w = {name: values.weight(f"{number}.{name}", *shape) for name, shape in shapes.items()}
    cached = _cache(case, values)

    def layer(x: Value) -> Value:
        qkv = backend.linear(backend.layer_norm(x, EPSILON), w["qkv"])
        query, key, value = (
            part.reshape(case.heads, 1, case.head_size) for part in (qkv[:, :h], qkv[:, h : 2 * h], qkv[:, 2 * h :])
        )
        attended = backend.attend(query, backend.append(cached, key, value)).reshape(1, h)
        x = x + backend.linear(attended, w["out"])
        up = backend.linear(backend.layer_norm(x, EPSILON), w["up"])
        return x + backend.linear(backend.activation(up, "gelu_tanh"), w["down"])

    return layer


def _head(case: Case, values: Values) -> Step:
    x = values.input(1, case.hidden)
    choose = _chooser(case, values)
    return lambda: choose(x)


def _chooser(case: Case, values: Values) -> Callable[[Value], int | None]:
    backend = values.backend
    table = values.weight("head", case.vocabulary, case.hidden)
    return lambda x: backend.choose(backend.layer_norm(x, EPSILON), table, None, case.vocabulary, 0.0)


def _model(case: Case, values: Values) -> Step:
    x = values.input(1, case.hidden)
    layers = [_layer(case, values, i) for i in range(case.layers)]
    choose = _chooser(case, values)

    def step() -> int | None:
        y = x
        for layer in layers:
            y = layer(y)
        return choose(y)

    return step


_PARTS: dict[str, Callable[[Case, Values], Step]] = {
    "attention": _attention,
    "block": _block,
    "head": _head,
    "model": _model,
}
