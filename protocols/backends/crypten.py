"""The baseline: the same model on CrypTen's own protocols, over the same transport and dealer as ours.

Values are `Secret` as in the `mpc` backend; each method lends their memory to CrypTen's tensors and takes the result
back. CrypTen's functions are used as they are, approximations included. At scale 2^16, with its default options:

  product      truncated locally: an element is off by 2^48 units with probability |z| / 2^63, z the untruncated product
  exp          (1 + x/256)^256: 1 % too small at x = -2, 3 % at -4, 8 % at -7; below -512 it grows without bound
  reciprocal   Newton from 3 exp(1 - 2x) + 0.003: within 4 % up to 50, within a third up to 230, garbage from 256 on
  inv_sqrt     three Newton steps: within 1 % from 0.1 to 150, garbage from 200 on
  sigmoid      by exp(-|x|) and a reciprocal: within 0.003 for |x| < 500
  erf          a Taylor series whose powers above the third are wrong (x^5 is computed as x^6): for 0 <= x <= 1
  argmax       ties are broken at random
  eq           of integers (scale 1) gives 0 and 2^16, not 0 and 1

Cache policies choose by ranks: all pairs are compared with CrypTen's lt, and rows are found by its eq. A one-hot
matrix, like everything else, is opened again for every product.

So a softmax over 256 equal scores is garbage, an exact GELU holds near zero alone, and an epsilon of 1e-5 is rounded to
zero. It is a baseline: tests/protocols/test_crypten_backend.py says what holds and what does not.

It comes without the promise of the `mpc` backend, that whatever the weights and the prompt are, no party sees more than
noise and its result. CrypTen masks what it opens over the whole ring, and eviction here opens no destinations; but its
openings are its own code's, not argued one by one and held by no test, and its result is not always a token: the arg
max is a sum over tests for equality, and comes to the client as a whole ring element. Where values leave their range,
by weights or a prompt that are chosen so, that may be any function of the logits. The client takes it modulo the
vocabulary, so that at least the owner sees no difference. An owner need not offer this backend.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mpcache.protocols.backends.interface import KeyValues, Stage
from mpcache.protocols.beaver import rows_of_runs, runs_in_stripes
from mpcache.protocols.causal import Causal
from mpcache.protocols.crypten.importing import import_crypten
from mpcache.protocols.crypten.session import CryptenSession, active
from mpcache.protocols.crypten.shares import ArithmeticSharedTensor, from_crypten, to_mpc_tensor
from mpcache.protocols.errors import ConfigError, PlanError
from mpcache.protocols.public import Factor
from mpcache.protocols.ring import FRACTION_BITS, decode, encode
from mpcache.protocols.sampling import GumbelNoise
from mpcache.protocols.session import Session
from mpcache.protocols.shares import Secret, cat
from mpcache.protocols.stripes import Stripes, to_runs, to_tokens

_crypten = import_crypten()

HIDDEN_SCORE = -128.0
"""Added to a score that must not be seen: CrypTen's exp is (1 + x/256)^256, so 128 below the maximum gives 2^-256, and
stays below 2^-16 up to another 360 further down. A number nearer to -512 would bring it close to where exp explodes."""
NO_DRAFTS = "the backend 'crypten' takes no drafts: leave out draft"


class CryptenBackend:
    """See `Backend`. Making one takes a round, in which the parties agree on the seed of zero sharings."""

    name = "crypten"

    def __init__(self, session: Session) -> None:
        self.session = session
        self._crypten_session = CryptenSession(session)

    @property
    def round_bytes(self) -> int:
        return self.session.round_bytes

    # ------------------------------------------------------------ secrets in and out

    def input(self, tensor: torch.Tensor | None, shape: Sequence[int], party: int) -> Secret:
        """Share a tensor that `party` has (None elsewhere). Rounds: 0, both parties expand the mask from one seed."""
        size = torch.Size(shape)
        if self.session.party != party:
            known = None
        elif tensor is not None:
            known = tensor.float()
        elif self.session.planning:
            known = torch.zeros(size)
        else:
            raise PlanError(f"party {party} has no value to share")
        with active(self._crypten_session):
            return self._secret(ArithmeticSharedTensor(known, size=size, src=party))

    def reveal(self, x: Secret, to: int | None = None) -> torch.Tensor | None:
        """The value, at both parties or at one. Rounds: 1. For results that are public, or that one."""
        value: torch.Tensor | None = self._run(lambda a: a.get_plain_text(dst=to), x)
        return value

    def weight(self, name: str, shape: tuple[int, ...], tensor: torch.Tensor | None) -> Secret:
        """Shared once; every product with it opens it again under a new mask."""
        if tensor is not None and not tensor.is_floating_point():
            tensor = decode(tensor)
        return self.input(tensor, shape, party=0)

    # ------------------------------------------------------------ layers

    def embed(self, tokens: Sequence[int] | None, count: int, table: Secret) -> Secret:
        one_hot = None
        if tokens is not None:
            one_hot = torch.nn.functional.one_hot(torch.as_tensor(tokens), table.shape[1])
        shared = self.input(one_hot, (count, table.shape[1]), party=1)
        return self._map(lambda a, w: a.matmul(w.t()), shared, table)

    def add_known(self, x: Secret, known: torch.Tensor | None) -> Secret:
        return x if known is None or self.session.party != 0 else Secret(x.share + encode(known), 0)

    def linear(self, x: Secret, weight: Secret, bias: torch.Tensor | None = None, narrow: bool = False) -> Secret:
        return self.add_known(self._map(lambda a, w: a.matmul(w.t()), x, weight), bias)

    def rms_norm(self, x: Secret, epsilon: float) -> Secret:
        return self._map(lambda a: _over_root_mean_square(a, epsilon), x)

    def rotate(self, x: Secret, cos: torch.Tensor, sin: torch.Tensor) -> Secret:
        half = x.shape[-1] // 2
        turned = cat([-x[..., half:], x[..., :half]], -1)
        cosines, sines = decode(self.session.public(cos)), decode(self.session.public(sin))
        return self._map(lambda a, b: a * cosines + b * sines, x, turned)

    def activation(self, x: Secret, kind: str) -> Secret:
        return self._map(_ACTIVATIONS[kind], x)

    def multiply(self, x: Secret, y: Secret) -> Secret:
        return self._map(lambda a, b: a * b, x, y)

    def scale(self, x: Secret, factor: Factor) -> Secret:
        factors = decode(self.session.public(factor))
        return self._map(lambda a: a * factors, x)

    def zeros(self, shape: Sequence[int]) -> Secret:
        return Secret(torch.zeros(tuple(shape), dtype=torch.int64), self.session.party)

    def concatenate(self, parts: Sequence[Secret], dim: int) -> Secret:
        return cat(list(parts), dim)

    # ------------------------------------------------------------ attention

    def append(self, cached: KeyValues[Secret] | None, keys: Secret, values: Secret) -> KeyValues[Secret]:
        """Rounds: 0. The cache holds shares; every step opens all of it under new masks."""
        if cached is not None:
            keys, values = cat([cached.keys, keys], 1), cat([cached.values, values], 1)
        return KeyValues(keys, values, keys.shape[1])

    def enter(
        self, cached: KeyValues[Secret] | None, queries: Secret, keys: Secret, values: Secret
    ) -> tuple[KeyValues[Secret], Secret]:
        return self.append(cached, keys, values), queries

    def visible(self, seen: Causal) -> torch.Tensor:
        return seen.mask()

    def known_to_client(self, x: torch.Tensor | None, shape: Sequence[int]) -> Secret:
        raise ConfigError(NO_DRAFTS)

    def secret_tables(self, tables: torch.Tensor | None, shape: Sequence[int]) -> tuple[Secret, Secret]:
        raise ConfigError(NO_DRAFTS)

    def rotate_masked(self, x: Secret, cos: Secret, sin: Secret) -> Secret:
        raise ConfigError(NO_DRAFTS)

    def attend(
        self,
        queries: Secret,
        cached: KeyValues[Secret],
        visible: torch.Tensor | None = None,
        hidden: Secret | None = None,
    ) -> Secret:
        assert hidden is None, NO_DRAFTS
        probabilities = self.softmax(self.product(queries, cached.keys, "matmul_transposed"), visible)
        return self.product(probabilities, cached.values, "matmul")

    def attend_observed(
        self, queries: Secret, cached: KeyValues[Secret], visible: torch.Tensor | None, observed: torch.Tensor
    ) -> tuple[Secret, Secret]:
        """Rounds: those of `attend`. The attention received is a local sum."""
        probabilities = self.softmax(self.product(queries, cached.keys, "matmul_transposed"), visible)
        return self.product(probabilities, cached.values, "matmul"), probabilities[:, observed].sum(1)

    def attend_selected(
        self,
        queries: Sequence[Secret],
        cached: KeyValues[Secret],
        start: int,
        end: int,
        stages: Sequence[Sequence[Stage[Secret]]],
        hidden: Secret | None = None,
    ) -> Secret:
        """The picked runs' scores, softmax, and the probabilities put back in place; each stage two products.

        Every product opens its one-hot matrices again, and all cached keys and values, under new masks.
        """
        assert hidden is None and len(queries) == 1, NO_DRAFTS
        (own,), (choice,) = queries, stages
        shape = (own.shape[0], own.shape[1])
        scores = self.product(own, cached.keys, "matmul_transposed")
        picked = scores[:, :, start:end]
        for stage in choice:
            picked = self._share_of(to_tokens(self.pick(stage, self._runs(stage, picked)).share, stage.size, shape))
        count = picked.shape[2]
        probabilities = self.softmax(cat([scores[:, :, :start], picked, scores[:, :, end:]], 2))
        placed = probabilities[:, :, start : start + count]
        for stage in reversed(choice):
            placed = self._share_of(to_tokens(self._place(stage, self._runs(stage, placed)).share, stage.size, shape))
        everywhere = cat([probabilities[:, :, :start], placed, probabilities[:, :, start + count :]], 2)
        return self.product(everywhere, cached.values, "matmul")

    def _runs(self, stage: Stage[Secret], x: Secret) -> Secret:
        known = next(rows for rows in stage.choice if rows is not None)
        return self._share_of(to_runs(x.share, stage.size, known.shape[0]))

    def softmax(self, scores: Secret, visible: torch.Tensor | None = None) -> Secret:
        """Over the last dimension; CrypTen subtracts a secret maximum first."""
        if visible is not None:
            scores = scores + torch.where(visible, 0.0, HIDDEN_SCORE)
        return self._map(lambda s: s.softmax(-1), scores)

    # ------------------------------------------------------------ what a sparse prefill is built from

    def choose_runs(self, queries: Secret, masked: Secret, stripes: int, k: int) -> Secret:
        scores = self.product(queries, masked, "matmul_transposed")
        heads, asked, n = scores.shape
        largest = self.extremes(scores.reshape(heads * asked, n))[0]
        return self.top_k(largest.reshape(n // stripes, stripes).transpose(0, 1), k)

    def gather_runs(self, cached: KeyValues[Secret], start: int, end: int, choice: Secret) -> KeyValues[Secret]:
        stripes, k, n = choice.shape
        size = (end - start) // (stripes * n)

        def joined(x: Secret) -> Secret:
            rows = Secret(runs_in_stripes(x.share[:, start:end], stripes, size), self.session.party)
            picked = rows_of_runs(self.gather(choice, rows).share, x.shape[0], size)
            return cat([x[:, :start], Secret(picked, self.session.party), x[:, end:]], 1)

        tokens = cached.tokens - (n - k) * stripes * size
        return KeyValues(joined(cached.keys), joined(cached.values), tokens)

    # ------------------------------------------------------------ what is laid by and called back

    def runs(self, cached: KeyValues[Secret], start: int, end: int, stripes: int, size: int) -> KeyValues[Secret]:
        keys, values = (
            self._share_of(runs_in_stripes(x.share[:, start:end], stripes, size)) for x in (cached.keys, cached.values)
        )
        return KeyValues(keys, values, keys.shape[1])

    def choose_largest(self, scores: Secret, stripes: int) -> Secret:
        return self.top_k(scores.reshape(-1, stripes).transpose(0, 1), 1)

    def recall(self, stored: KeyValues[Secret], choice: Secret, heads: int, size: int) -> KeyValues[Secret]:
        keys, values = (
            self._share_of(rows_of_runs(self.gather(choice, x).share, heads, size))
            for x in (stored.keys, stored.values)
        )
        return KeyValues(keys, values, keys.shape[1])

    # ------------------------------------------------------------ what cache policies are built from

    def mask(self, x: Secret, after: Secret | None = None) -> Secret:
        """Rounds: 0. Nothing is masked ahead: a triple is used once, so every product opens all of it again."""
        return x if after is None else cat([after, x], 1)

    def unmask(self, masked: Secret) -> Secret:
        return masked

    def rows(self, parts: Sequence[tuple[Secret, int, int]]) -> Secret:
        return cat([masked[:, start:end] for masked, start, end in parts], 1)

    def forget(self, *masked: Secret) -> None:
        pass

    def product(self, x: Secret, masked: Secret, operation: str) -> Secret:
        return self._map(_PRODUCTS[operation], x, masked)

    def similarity(self, queries: Secret, masked: Sequence[Secret]) -> list[Secret]:
        heads, _, d = queries.shape
        together = queries.sum(1).reshape(heads, 1, d)
        return [self.product(together, rows, "matmul_transposed")[:, 0] for rows in masked]

    def top_k(self, scores: Secret, k: int) -> Secret:
        """By each score's rank: n (n - 1) / 2 comparisons and k n tests for equality a row. Nothing is revealed."""
        places = torch.arange(k)[:, None]
        return self._bits(lambda rank: rank.unsqueeze(-2).eq(places), self._ranks(scores))

    def argmin(self, scores: Secret, largest: float) -> Secret:
        return self.top_k(-scores, 1)

    def gather(self, choice: Secret, rows: Secret) -> Secret:
        """Exact: a choice is of integers, so nothing is truncated."""
        with active(self._crypten_session):
            return self._secret(to_mpc_tensor(choice.share, 0).matmul(to_mpc_tensor(rows.share)))

    def choose(self, scores: Secret, stripes: Stripes, size: int) -> Stage[Secret]:
        parts = zip(stripes.groups, stripes.split(scores.share[..., None]), strict=True)
        return Stage([None if g.whole else self._choice(part[..., 0], g.picks) for g, part in parts], size, stripes)

    def _choice(self, scores: torch.Tensor, k: int) -> Secret:
        rows = self.top_k(self._share_of(scores.flatten(0, 1)), k)
        return rows.reshape(*scores.shape[:2], k, -1)

    def pick(self, stage: Stage[Secret], rows: Secret) -> Secret:
        parts = self._moved(stage, stage.stripes.split(rows.share), lambda choice: choice)
        return self._share_of(stage.stripes.join_picked(parts))

    def _place(self, stage: Stage[Secret], rows: Secret) -> Secret:
        """The inverse of `pick`, with zeros where nothing was picked."""
        parts = self._moved(stage, stage.stripes.split_picked(rows.share), lambda choice: choice.transpose(1, 2))
        return self._share_of(stage.stripes.join(parts))

    def _moved(
        self, stage: Stage[Secret], parts: Sequence[torch.Tensor], turned: Callable[[Secret], Secret]
    ) -> list[torch.Tensor]:
        """Each group's rows (heads, stripes, rows, c) by its choice."""
        out = []
        for part, choice in zip(parts, stage.choice, strict=True):
            if choice is None:
                out.append(part)
            else:
                by = turned(choice.reshape(-1, *choice.shape[2:]))
                moved = self.gather(by, self._share_of(part.flatten(0, 1))).share
                out.append(moved.unflatten(0, tuple(part.shape[:2])))
        return out

    def retain(self, scores: Secret, k: int, largest: float, rows: Secret) -> Secret:
        """By ranks, all pairs compared, and k n tests for equality of the kept rows' places: quadratic twice over."""
        keep = self._bits(lambda rank: rank.lt(k), self._ranks(scores))
        kept_before = Secret((keep.share.cumsum(1) - keep.share) << FRACTION_BITS, self.session.party)
        here = self._bits(lambda place: place.unsqueeze(-2).eq(torch.arange(k)[:, None]), kept_before)
        with active(self._crypten_session):  # a dropped row has the place of the next kept one
            choice = to_mpc_tensor(here.share, 0) * to_mpc_tensor(keep.share[:, None], 0)
            return self.gather(Secret(from_crypten(choice, 0), self.session.party), rows)

    def extremes(self, x: Secret) -> tuple[Secret, Secret]:
        """By a tree of comparisons, both at once: a comparison and a product a level."""
        high = low = x
        while (n := high.shape[-2]) > 1:
            even, odd, rest = slice(0, n - n % 2, 2), slice(1, n, 2), slice(n - n % 2, n)
            first = Secret.stack([high[..., even, :], low[..., odd, :]])
            second = Secret.stack([high[..., odd, :], low[..., even, :]])
            change = self._map(lambda a, b: a.lt(b) * (b - a), first, second)
            high = cat([first[0] + change[0], high[..., rest, :]], -2)
            low = cat([second[1] - change[1], low[..., rest, :]], -2)
        return high[..., 0, :], low[..., 0, :]

    def overwrite(self, masked: Secret, choice: Secret, row: Secret) -> Secret:
        with active(self._crypten_session):
            place = to_mpc_tensor(choice.share.transpose(1, 2), 0)
            change = place * to_mpc_tensor(row.share - masked.share)
        return masked + self._secret(change)

    def _ranks(self, scores: Secret) -> Secret:
        """0 for the largest of each row, and so on; ties by position."""
        n = scores.shape[-1]
        first, second = torch.triu_indices(n, n, 1)
        loses = self._bits(lambda a, b: a.lt(b), scores[..., first], scores[..., second]).share
        wins = self.session.constant(torch.ones_like(loses)) - loses
        rank = torch.zeros_like(scores.share).index_add(-1, first, loses).index_add(-1, second, wins)
        return Secret(rank << FRACTION_BITS, self.session.party)

    def _bits(self, test: Callable[..., Any], *values: Secret) -> Secret:
        """Integers 0 and 1. (Of integers, at scale 1, CrypTen's test for equality gives 0 and 2^16.)"""
        return Secret(from_crypten(self._run(test, *values), 0), self.session.party)

    # ------------------------------------------------------------ the next token

    def next_tokens(
        self, x: Secret, head: Secret, bias: torch.Tensor | None, vocabulary: int, temperature: float
    ) -> list[int] | None:
        """Only party 1 learns the tokens: party 0 sends its shares of the arg max, and nothing else is opened.

        What CrypTen finds may be no position: it is folded into the vocabulary, which nobody but party 1 can see.
        """
        logits = self.linear(x, head, bias)
        if temperature > 0:
            noise = self.session.take(GumbelNoise(tuple(logits.shape), temperature, FRACTION_BITS)).noise
            logits = Secret(logits.share + noise, self.session.party)
        found = self._run(lambda a: a.argmax(-1, one_hot=False).get_plain_text(dst=1), logits)
        return None if found is None else [int(token) % vocabulary for token in found.flatten()]

    def announce(self, goes_on: bool | None) -> bool:
        """Party 1 says whether it wants another token: the answer's length is public."""
        share = torch.full((1,), int(bool(goes_on)), dtype=torch.int64)
        heard = self.session.run(self.session.reveal(share, 8, to=0))
        if self.session.planning:
            return True
        return bool(heard.item()) if self.session.party == 0 else bool(goes_on)

    # ------------------------------------------------------------ helpers

    def _run(self, function: Callable[..., Any], *values: Secret) -> Any:
        """CrypTen's function of CrypTen's tensors on the values' memory, with encoders of their own."""
        with active(self._crypten_session):
            return function(*[to_mpc_tensor(value.share) for value in values])

    def _map(self, function: Callable[..., Any], *values: Secret) -> Secret:
        return self._secret(self._run(function, *values))

    def _share_of(self, share: torch.Tensor) -> Secret:
        return Secret(share, self.session.party)

    def _secret(self, result: Any) -> Secret:
        return Secret(from_crypten(result), self.session.party)


_PRODUCTS: dict[str, Callable[[Any, Any], Any]] = {
    "matmul": lambda x, y: x.matmul(y),
    "matmul_transposed": lambda x, y: x.matmul(y.transpose(-1, -2)),
    "multiply": lambda x, y: x * y,
}


def _over_root_mean_square(x: Any, epsilon: float) -> Any:
    # not CrypTen's var(): its `unbiased` means the opposite of what it says
    return x * (x.square().mean(-1, keepdim=True) + epsilon).inv_sqrt()


def _silu(x: Any) -> Any:
    return x * x.sigmoid()


def _gelu(x: Any) -> Any:
    return x * 0.5 * ((x * math.sqrt(0.5)).erf() + 1)


def _gelu_tanh(x: Any) -> Any:
    return x * 0.5 * (((x + x.square() * x * 0.044715) * math.sqrt(2 / math.pi)).tanh() + 1)


_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {"silu": _silu, "gelu": _gelu, "gelu_tanh": _gelu_tanh}
