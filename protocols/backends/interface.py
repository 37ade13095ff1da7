"""What a model and a cache policy may ask of a backend. No model or policy asks which backend it runs on.

Values are the backend's own tensors: `+`, indexing, `reshape`, `transpose` work on all of them; everything that costs
a message is a method here. Shapes are public; nothing else is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from mpcache.protocols.public import Factor

Value = Any
Weight = Any
Masked = Any
"""A value that many products will use: masked once. Public selections of its rows are `rows`."""
Choice = Any
"""Rows that are one-hot, or zero: shares of integers."""
Scores = Any
"""What clusters are compared by: good for `top_k` and `pick` only (its ring may be narrow)."""


@dataclass
class KeyValues:
    """One layer's cached keys and values, each (key/value heads, tokens, head size) in the backend's own form."""

    keys: Masked
    values: Masked
    tokens: int


@dataclass
class Stage:
    """A secret choice among runs of `size` neighbouring tokens; `chosen` is one-hot, (key/value heads, k, runs)."""

    chosen: Masked
    size: int


class Backend(Protocol):
    """One computation, seen by one process. m is the number of tokens at hand, h the hidden size."""

    name: str

    def weight(self, name: str, shape: tuple[int, ...], tensor: torch.Tensor | None) -> Weight:
        """A private weight (out, in); `tensor` is None where the process does not have the model. One of integers is
        encoded already (`mpc.encoded_weight`), which private backends take."""

    def embed(self, tokens: Sequence[int] | None, count: int, table: Weight) -> Value:
        """(count, h): columns of the table (h, vocabulary); `tokens` is None where the process must not know them."""

    def add_known(self, x: Value, known: torch.Tensor | None) -> Value:
        """x + known, which only the model owner has (positions, biases)."""

    def linear(self, x: Value, weight: Weight, bias: torch.Tensor | None = None, narrow: bool = False) -> Value:
        """x W^T + b for (m, in) -> (m, out). narrow: the result is for `activation` and `multiply` alone."""

    def rms_norm(self, x: Value, epsilon: float) -> Value:
        """x over its root mean square, no gain."""

    def rotate(self, x: Value, cos: torch.Tensor, sin: torch.Tensor) -> Value:
        """Rotary positions on (heads, m, d) with public tables (m, d), halves rotated (Su et al., 2021). Tables are
        `mpcache.protocols.public`'s: multiples of 2^-30, the same on every machine."""

    def activation(self, x: Value, kind: str) -> Value:
        """'silu', 'gelu' or 'gelu_tanh', element by element. The result is for `multiply` and `linear` alone."""

    def multiply(self, x: Value, y: Value) -> Value:
        """Element by element."""

    def scale(self, x: Value, factor: Factor) -> Value:
        """x times a public number, best a Fraction, or a public table of them, see `rotate`."""

    def zeros(self, shape: Sequence[int]) -> Value:
        """A public zero, as a value."""

    def concatenate(self, parts: Sequence[Value], dim: int) -> Value:
        """Join along a dimension."""

    def append(self, cached: KeyValues | None, keys: Value, values: Value) -> KeyValues:
        """The cache with (key/value heads, m, d) more keys and values."""

    def enter(self, cached: KeyValues | None, queries: Value, keys: Value, values: Value) -> tuple[KeyValues, Masked]:
        """`append`, and the queries of the same tokens (key/value heads, queries, d), already scaled, for `similarity`
        and then one of the `attend` below, which is their last use."""

    def attend(self, queries: Masked, cached: KeyValues, visible: torch.Tensor | None = None) -> Value:
        """Attention of (key/value heads, queries, d); `visible`: public (queries, tokens), or all."""

    def attend_observed(
        self, queries: Masked, cached: KeyValues, visible: torch.Tensor | None, observed: torch.Tensor
    ) -> tuple[Value, Value]:
        """(attention, attention received): the second is the sum of the probabilities that the `observed` queries
        (their public numbers) give to each token, (key/value heads, tokens)."""

    def attend_selected(
        self, queries: Masked, cached: KeyValues, start: int, end: int, stages: Sequence[Stage]
    ) -> Value:
        """Attention of (key/value heads, queries, d) to the tokens before `start` and from `end` on, and to the runs
        between them that the stages pick, each from what the stage before it left."""

    # ------------------------------------------------------------ what cache policies are built from

    def mask(self, x: Value, after: Masked | None = None) -> Masked:
        """Mask (heads, rows, d) once for all its products; the rows of `after`, masked already, come first."""

    def unmask(self, masked: Masked) -> Value:
        """The value that is masked. Nothing is opened."""

    def rows(self, parts: Sequence[tuple[Masked, int, int]]) -> Masked:
        """Rows of masked values by public numbers (value, first row, end), joined in order."""

    def forget(self, *masked: Masked) -> None:
        """These will not be used again."""

    def product(self, x: Value, masked: Masked, operation: str) -> Value:
        """'matmul_transposed' (x y^T) or 'multiply' (element by element, broadcast)."""

    def similarity(self, queries: Masked, masked: Sequence[Masked]) -> list[Scores]:
        """(heads, r, d) against rows (heads, n, d) of each: (heads, n) inner products, summed over the queries."""

    def top_k(self, scores: Scores, k: int) -> Choice:
        """(heads, n) -> one-hot rows (heads, k, n) of the k largest, the largest first, ties by position."""

    def argmin(self, scores: Value, largest: float) -> Choice:
        """(heads, n) -> one-hot (heads, 1, n) of the smallest; the first of equals. Scores lie in [0, largest]."""

    def gather(self, choice: Choice, rows: Value) -> Value:
        """The chosen rows (heads, k, c) of (heads, n, c)."""

    def stage(self, choice: Choice, size: int) -> Stage:
        """A choice among runs of `size` tokens, for `pick` and `attend_selected`."""

    def pick(self, stage: Stage, rows: Scores) -> Scores:
        """The chosen rows (heads, k, c) of (heads, runs, c)."""

    def retain(self, scores: Value, k: int, largest: float, rows: Value) -> Value:
        """The rows (blocks, k, c) of (blocks, n, c) with the k largest scores (blocks, n), in their order; ties by
        position. Scores lie in [0, largest]."""

    def extremes(self, x: Value) -> tuple[Value, Value]:
        """(maximum, minimum) over the last dimension but one, which vanishes."""

    def overwrite(self, masked: Masked, choice: Choice, row: Value) -> Masked:
        """The row (heads, 1, d) put where `choice` (heads, 1, n) is one, if anywhere. `masked` is forgotten."""

    # ------------------------------------------------------------ the next token

    def next_token(
        self, x: Value, head: Weight, bias: torch.Tensor | None, vocabulary: int, temperature: float
    ) -> int | None:
        """The next token for (1, h); None where the process must not learn it."""

    def announce(self, goes_on: bool | None) -> bool:
        """Whether another token is wanted: said by who learns the tokens, heard by the others (None before)."""
