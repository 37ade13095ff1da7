"""The baseline: the same model on CrypTen's own protocols, over the same transport and dealer as ours.

Values are `Secret` as in the `mpc` backend; each method lends their memory to CrypTen's tensors and takes the result
back. CrypTen's functions are used as they are, approximations included. At scale 2^16, with its default options:

  product      truncated locally: an element is off by 2^48 units with probability |z| / 2^63, z the untruncated product
  exp          (1 + x/256)^256: 1 % too small at x = -2, 3 % at -4, 8 % at -7; below -512 it grows without bound
  reciprocal   Newton from 3 exp(1 - 2x) + 0.003: within 1 % up to 50, within a third up to 230, garbage from 256 on
  inv_sqrt     three Newton steps: within 1 % from 0.1 to 150, garbage from 200 on
  sigmoid      by exp(-|x|) and a reciprocal: within 0.003 for |x| < 500
  erf          a Taylor series whose powers above the third are wrong (x^5 is computed as x^6): for 0 <= x <= 1
  argmax       ties are broken at random

So a softmax over 256 equal scores is garbage, an exact GELU holds near zero alone, and an epsilon of 1e-5 is rounded to
zero. It is a baseline: tests/protocols/test_crypten_backend.py says what holds and what does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from protocols.backends.interface import KeyValues
from protocols.crypten_bridge import CryptenSession, active, from_crypten, import_crypten, to_mpc_tensor
from protocols.errors import PlanError
from protocols.ring import FRACTION_BITS, encode
from protocols.sampling import GumbelNoise
from protocols.session import Session
from protocols.shares import ArithmeticSharedTensor, Secret, cat

_crypten = import_crypten()

HIDDEN_SCORE = -128.0
"""Added to a score that must not be seen: CrypTen's exp is (1 + x/256)^256, so 128 below the maximum gives 2^-256, and
stays below 2^-16 up to another 360 further down. A number nearer to -512 would bring it close to where exp explodes."""


class CryptenBackend:
    """See `Backend`. Making one takes a round, in which the parties agree on the seed of zero sharings."""

    name = "crypten"

    def __init__(self, session: Session) -> None:
        self.session = session
        self._crypten_session = CryptenSession(session)

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
        return self._run(lambda a: a.get_plain_text(dst=to), x)

    def weight(self, name: str, shape: tuple[int, ...], tensor: torch.Tensor | None) -> Secret:
        """Shared once; every product with it opens it again under a new mask."""
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

    def linear(self, x: Secret, weight: Secret, bias: torch.Tensor | None = None) -> Secret:
        return self.add_known(self._map(lambda a, w: a.matmul(w.t()), x, weight), bias)

    def rms_norm(self, x: Secret, epsilon: float) -> Secret:
        return self._map(lambda a: _over_root_mean_square(a, epsilon), x)

    def layer_norm(self, x: Secret, epsilon: float) -> Secret:
        return self._map(lambda a: _over_root_mean_square(a - a.mean(-1, keepdim=True), epsilon), x)

    def rotate(self, x: Secret, cos: torch.Tensor, sin: torch.Tensor) -> Secret:
        half = x.shape[-1] // 2
        turned = cat([-x[..., half:], x[..., :half]], -1)
        return self._map(lambda a, b: a * cos + b * sin, x, turned)

    def activation(self, x: Secret, kind: str) -> Secret:
        return self._map(_ACTIVATIONS[kind], x)

    def multiply(self, x: Secret, y: Secret) -> Secret:
        return self._map(lambda a, b: a * b, x, y)

    def concatenate(self, parts: Sequence[Secret], dim: int) -> Secret:
        return cat(parts, dim)

    # ------------------------------------------------------------ attention

    def append(self, cached: KeyValues | None, keys: Secret, values: Secret) -> KeyValues:
        """Rounds: 0. The cache holds shares; every step opens all of it under new masks."""
        if cached is not None:
            keys, values = cat([cached.keys, keys], 1), cat([cached.values, values], 1)
        return KeyValues(keys, values, keys.shape[1])

    def attend(self, queries: Secret, cached: KeyValues, visible: torch.Tensor | None = None) -> Secret:
        scores = self._map(lambda q, k: q.matmul(k.transpose(-1, -2)), queries, cached.keys)
        return self._map(lambda p, v: p.matmul(v), self.softmax(scores, visible), cached.values)

    def softmax(self, scores: Secret, visible: torch.Tensor | None = None) -> Secret:
        """Over the last dimension; CrypTen subtracts a secret maximum first."""
        if visible is not None:
            scores = scores + torch.where(visible, 0.0, HIDDEN_SCORE)
        return self._map(lambda s: s.softmax(-1), scores)

    # ------------------------------------------------------------ the next token

    def choose(
        self, x: Secret, head: Secret, bias: torch.Tensor | None, vocabulary: int, temperature: float
    ) -> int | None:
        """Only party 1 learns the token: party 0 sends its share of the arg max, and nothing else is opened."""
        logits = self.linear(x, head, bias)
        if temperature > 0:
            (noise,) = self.session.take(GumbelNoise(tuple(logits.shape), temperature, FRACTION_BITS))
            logits = Secret(logits.share + noise, self.session.party)
        token = self._run(lambda a: a.argmax(-1, one_hot=False).get_plain_text(dst=1), logits)
        return None if token is None else int(token)

    def announce(self, goes_on: bool | None) -> bool:
        """Party 1 says whether it wants another token: the answer's length is public."""
        share = torch.full((1,), int(bool(goes_on)), dtype=torch.int64)
        heard = self.session.run(self.session.transfer(share, (1,), 8, receiver=0))
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

    def _secret(self, result: Any) -> Secret:
        return Secret(from_crypten(result), self.session.party)


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
