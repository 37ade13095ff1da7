"""What a model and a cache policy may ask of a backend. No model or policy asks which backend it runs on.

Values are the backend's own tensors: `+`, indexing, `reshape`, `transpose` work on all of them; everything that costs
a message is a method here. Shapes are public; nothing else is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Value = Any
Weight = Any


@dataclass
class KeyValues:
    """One layer's cached keys and values, each (key/value heads, tokens, head size) in the backend's own form."""

    keys: Any
    values: Any
    tokens: int


class Backend(Protocol):
    """One computation, seen by one process. m is the number of tokens at hand, h the hidden size."""

    name: str

    def weight(self, name: str, shape: tuple[int, ...], tensor: torch.Tensor | None) -> Weight:
        """A private weight (out, in); `tensor` is None where the process does not have the model."""

    def embed(self, tokens: Sequence[int] | None, count: int, table: Weight) -> Value:
        """(count, h): rows of the table (vocabulary, h); `tokens` is None where the process must not know them."""

    def add_known(self, x: Value, known: torch.Tensor | None) -> Value:
        """x + known, which only the model owner has (positions, biases)."""

    def linear(self, x: Value, weight: Weight, bias: torch.Tensor | None = None) -> Value:
        """x W^T + b for (m, in) -> (m, out)."""

    def rms_norm(self, x: Value, epsilon: float) -> Value:
        """x over its root mean square, no gain."""

    def layer_norm(self, x: Value, epsilon: float) -> Value:
        """x centred, over its deviation, no gain, no bias."""

    def rotate(self, x: Value, cos: torch.Tensor, sin: torch.Tensor) -> Value:
        """Rotary positions on (heads, m, d) with public tables (m, d), halves rotated (Su et al., 2021)."""

    def activation(self, x: Value, kind: str) -> Value:
        """'silu', 'gelu' or 'gelu_tanh', element by element."""

    def multiply(self, x: Value, y: Value) -> Value:
        """Element by element."""

    def concatenate(self, parts: Sequence[Value], dim: int) -> Value:
        """Join along a dimension."""

    def append(self, cached: KeyValues | None, keys: Value, values: Value) -> KeyValues:
        """The cache with (key/value heads, m, d) more keys and values."""

    def attend(self, queries: Value, cached: KeyValues, visible: torch.Tensor | None) -> Value:
        """Attention of (key/value heads, queries, d), already scaled; `visible`: public (queries, tokens), or all."""

    def choose(
        self, x: Value, head: Weight, bias: torch.Tensor | None, vocabulary: int, temperature: float
    ) -> int | None:
        """The next token for (1, h); None where the process must not learn it."""

    def announce(self, goes_on: bool | None) -> bool:
        """Whether another token is wanted: said by who learns the tokens, heard by the others (None before)."""
