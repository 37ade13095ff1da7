"""What a model and a cache policy may ask of a backend. No model or policy asks which backend it runs on.

Values are the backend's own tensors: `+`, indexing, `reshape`, `transpose` work on all of them; everything that costs
a message is a method here. Shapes are public; nothing else is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, Self, TypeAlias

import torch
from typing_extensions import TypeVar

from mpcache.protocols.causal import Causal
from mpcache.protocols.public import Factor
from mpcache.protocols.stripes import Stripes


class Value(Protocol):
    """What works on the values of every backend, without a message. There is no comparison and no truth value."""

    @property
    def shape(self) -> torch.Size: ...
    def __add__(self, other: Any, /) -> Self: ...
    def __sub__(self, other: Any, /) -> Self: ...
    def __neg__(self) -> Self: ...
    def __getitem__(self, index: Any, /) -> Self: ...
    def reshape(self, *shape: Any) -> Self: ...
    def transpose(self, first: Any, second: Any, /) -> Self: ...
    def sum(self, dim: Any, /) -> Self: ...
    def cumsum(self, dim: Any, /) -> Self: ...


class Masked(Protocol):
    """A value that many products will use: masked once. Public selections of its rows are `rows`."""

    @property
    def shape(self) -> torch.Size: ...


Choice: TypeAlias = Value
"""Rows that are one-hot, or zero: shares of integers."""
Scores: TypeAlias = Value
"""What clusters are compared by: good for `top_k`, `choose` and `pick` only (its ring may be narrow)."""

V = TypeVar("V", bound=Value, default=Value)
W = TypeVar("W", default=Any)
M = TypeVar("M", bound=Masked, default=Masked)


@dataclass
class KeyValues(Generic[M]):
    """One layer's cached keys and values, each (key/value heads, tokens, head size) in the backend's own form."""

    keys: M
    values: M
    tokens: int


@dataclass
class Stage(Generic[M]):
    """A secret choice among runs of `size` neighbouring tokens, in stripes.

    choice: for each group of stripes one-hot rows (key/value heads, stripes, picks, runs of a stripe), values of the
    backend; None where all are picked. With one head, all heads share them. masked: the same in the backend's form for
    products, once it has been used.
    """

    choice: Sequence[Any]
    size: int
    stripes: Stripes
    masked: list[M] = field(default_factory=list)

    def part(self, number: int, of: int) -> Stage[M]:
        """The number-th choice of `of` that were made at once, one below the other."""

        def rows(choice: Any) -> Any:
            heads = choice.shape[0] // of
            return choice[number * heads : (number + 1) * heads]

        return Stage([None if choice is None else rows(choice) for choice in self.choice], self.size, self.stripes)


class Backend(Protocol[V, W, M]):
    """One computation, seen by one process. m is the number of tokens at hand, h the hidden size.

    V: its values. W: its private weights. M: its masked values. A model or a policy is written for a bare `Backend`,
    of which it knows no more than that what comes out is a `Value`, `Choice`, `Scores` or `Masked`.
    """

    name: str

    @property
    def round_bytes(self) -> int:
        """How many bytes a round is worth: what policies decide by, as protocols do. Public, the same at all."""

    def weight(self, name: str, shape: tuple[int, ...], tensor: torch.Tensor | None) -> W:
        """A private weight (out, in); `tensor` is None where the process does not have the model. One of integers is
        encoded already (`mpc.encoded_weight`), which private backends take."""

    def embed(self, tokens: Sequence[int] | None, count: int, table: W) -> V:
        """(count, h): columns of the table (h, vocabulary); `tokens` is None where the process must not know them."""

    def add_known(self, x: V, known: torch.Tensor | None) -> V:
        """x + known, which only the model owner has (positions, biases)."""

    def linear(self, x: V, weight: W, bias: torch.Tensor | None = None, narrow: bool = False) -> V:
        """x W^T + b for (m, in) -> (m, out). narrow: the result is for `activation` and `multiply` alone."""

    def rms_norm(self, x: V, epsilon: float) -> V:
        """x over its root mean square, no gain."""

    def rotate(self, x: V, cos: torch.Tensor, sin: torch.Tensor) -> V:
        """Rotary positions on (heads, m, d) with public tables (m, d), halves rotated (Su et al., 2021). Tables are
        `mpcache.protocols.public`'s: multiples of 2^-30, the same on every machine."""

    def known_to_client(self, x: torch.Tensor | None, shape: Sequence[int]) -> V:
        """A value that party 1 alone knows; `x` is None elsewhere."""

    def secret_tables(self, tables: torch.Tensor | None, shape: Sequence[int]) -> tuple[M, M]:
        """cos and sin, (2, m, d) as in `rotate`, which party 1 alone knows, for `rotate_masked`. To be forgotten."""

    def rotate_masked(self, x: V, cos: M, sin: M) -> V:
        """`rotate` with secret tables."""

    def activation(self, x: V, kind: str) -> V:
        """'silu', 'gelu' or 'gelu_tanh', element by element. The result is for `multiply` and `linear` alone."""

    def multiply(self, x: V, y: V) -> V:
        """Element by element."""

    def scale(self, x: V, factor: Factor) -> V:
        """x times a public number, best a Fraction, or a public table of them, see `rotate`."""

    def zeros(self, shape: Sequence[int]) -> V:
        """A public zero, as a value."""

    def concatenate(self, parts: Sequence[V], dim: int) -> V:
        """Join along a dimension."""

    def append(self, cached: KeyValues[M] | None, keys: V, values: V) -> KeyValues[M]:
        """The cache with (key/value heads, m, d) more keys and values."""

    def enter(self, cached: KeyValues[M] | None, queries: V, keys: V, values: V) -> tuple[KeyValues[M], M]:
        """`append`, and the queries of the same tokens (key/value heads, queries, d), already scaled, for `similarity`
        and then one of the `attend` below, which is their last use."""

    def visible(self, seen: Causal) -> Any:
        """What `attend` is told of who sees what: the mask, or while planning its description."""

    def attend(
        self, queries: M, cached: KeyValues[M], visible: torch.Tensor | None = None, hidden: V | None = None
    ) -> V:
        """Attention of (key/value heads, queries, d); `visible`: public (queries, tokens), or all. hidden: (tokens,),
        added to every query's scores: far below them, where a token is hidden from the other party as well."""

    def attend_observed(
        self, queries: M, cached: KeyValues[M], visible: torch.Tensor | None, observed: torch.Tensor
    ) -> tuple[V, V]:
        """(attention, attention received): the second is the sum of the probabilities that the `observed` queries
        (their public numbers) give to each token, (key/value heads, tokens)."""

    def attend_selected(
        self,
        queries: Sequence[M],
        cached: KeyValues[M],
        start: int,
        end: int,
        stages: Sequence[Sequence[Stage[M]]],
        hidden: V | None = None,
    ) -> V:
        """Attention of the last m tokens, (key/value heads, queries of one * m, d), to the tokens before `start`, those
        from `end` up to themselves, and the runs between them that the stages pick, each from what the stage before it
        left. queries, stages: of each of the m tokens, (key/value heads, queries of one, d). hidden: as `attend`."""

    # ------------------------------------------------------------ what a sparse prefill is built from

    def choose_runs(self, queries: M, masked: M, stripes: int, k: int) -> V:
        """One-hot rows (stripes, k, n / stripes), one choice for all heads: in each stripe the k of the rows
        (heads, n, d) that any query (heads, queries, d) gives the largest inner product. Row i is the (i // stripes)-th
        of stripe i mod stripes. Ties by position."""

    def gather_runs(self, cached: KeyValues[M], start: int, end: int, choice: V) -> KeyValues[M]:
        """The tokens before `start`, those of the chosen runs between, and those from `end` on. Runs are of equally
        many tokens, and chosen as `choose_runs` does. To be forgotten after use."""

    # ------------------------------------------------------------ what is laid by and called back

    def runs(self, cached: KeyValues[M], start: int, end: int, stripes: int, size: int) -> KeyValues[M]:
        """The tokens [start, end) as runs of `size`, each in one row of all heads: (stripes, n, heads * size * d), as
        they are masked already. Run i is the (i // stripes)-th of stripe i mod stripes."""

    def choose_largest(self, scores: V, stripes: int) -> M:
        """Of scores (1, n) one-hot rows (stripes, 1, n / stripes), masked: in each stripe the largest, ties by
        position. Candidate i is the (i // stripes)-th of stripe i mod stripes."""

    def recall(self, stored: KeyValues[M], choice: M, heads: int, size: int) -> KeyValues[M]:
        """Keys and values (heads, stripes * size, d) of the chosen runs, stripe by stripe. To be forgotten after use.

        stored: what `runs` gives. choice: what `choose_largest` gives, of as many stripes; both stay.
        """

    # ------------------------------------------------------------ what cache policies are built from

    def mask(self, x: V, after: M | None = None) -> M:
        """Mask (heads, rows, d) once for all its products; the rows of `after`, masked already, come first."""

    def unmask(self, masked: M) -> V:
        """The value that is masked. Nothing is opened."""

    def rows(self, parts: Sequence[tuple[M, int, int]]) -> M:
        """Rows of masked values by public numbers (value, first row, end), joined in order."""

    def forget(self, *masked: M) -> None:
        """These will not be used again."""

    def product(self, x: V, masked: M, operation: str) -> V:
        """'matmul_transposed' (x y^T) or 'multiply' (element by element, broadcast)."""

    def similarity(self, queries: M, masked: Sequence[M]) -> list[V]:
        """(heads, r, d) against rows (heads, n, d) of each: (heads, n) inner products, summed over the queries."""

    def top_k(self, scores: V, k: int) -> V:
        """Scores (heads, n) -> one-hot rows (heads, k, n) of the k largest, the largest first, ties by position."""

    def argmin(self, scores: V, largest: float) -> V:
        """(heads, n) -> one-hot (heads, 1, n) of the smallest; the first of equals. Scores lie in [0, largest]."""

    def gather(self, choice: V, rows: V) -> V:
        """The chosen rows (heads, k, c) of (heads, n, c)."""

    def choose(self, scores: V, stripes: Stripes, size: int) -> Stage[M]:
        """The runs of `size` tokens with the largest scores (heads, runs) in each stripe, for `pick` and
        `attend_selected`; ties by position. Its `masked` are to be forgotten after the last use."""

    def pick(self, stage: Stage[M], rows: V) -> V:
        """The chosen rows (heads, k, c) of (heads, runs, c), in the order of the stripes."""

    def retain(self, scores: V, k: int, largest: float, rows: V) -> V:
        """The rows (blocks, k, c) of (blocks, n, c) with the k largest scores (blocks, n), in their order; ties by
        position. Scores lie in [0, largest]."""

    def extremes(self, x: V) -> tuple[V, V]:
        """(maximum, minimum) over the last dimension but one, which vanishes."""

    def overwrite(self, masked: M, choice: V, row: V) -> M:
        """The row (heads, 1, d) put where `choice` (heads, 1, n) is one, if anywhere. `masked` is forgotten."""

    # ------------------------------------------------------------ the next token

    def next_tokens(
        self, x: V, head: W, bias: torch.Tensor | None, vocabulary: int, temperature: float
    ) -> list[int] | None:
        """The token after each of (m, h); None where the process must not learn them."""

    def announce(self, goes_on: bool | None) -> bool:
        """Whether another token is wanted: said by who learns the tokens, heard by the others (None before)."""


AnyBackend: TypeAlias = Backend[Any, Any, Any]
"""One of the backends, for those who make a model or a policy on it."""
