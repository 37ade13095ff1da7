"""CrypTen's own protocols, over our transport and dealer: the baseline to beat.

Its functions are used as they are. Its exp, reciprocal and softmax are accurate in narrow ranges only (see
tests/protocols/test_crypten_bridge.py), so long contexts and large models drift.
Use inside `crypten_bridge.active(session)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from protocols.backends.interface import KeyValues
from protocols.crypten_bridge import from_crypten, to_crypten
from protocols.ring import encode
from protocols.session import Session

_MASKED = -100.0


class CryptenBackend:
    """See `Backend`. Values are CrypTen's MPCTensor at scale 2^16."""

    name = "crypten"

    def __init__(self, session: Session, crypten: Any) -> None:
        self.session, self.crypten = session, crypten

    def _input(self, tensor: torch.Tensor | None, shape: tuple[int, ...], party: int) -> Any:
        """A secret of one party's, shared by CrypTen's zero sharing; costs no message."""
        value = tensor if tensor is not None else torch.zeros(shape)
        return self.crypten.cryptensor(value.float(), src=party)

    def weight(self, name: str, shape: tuple[int, ...], tensor: torch.Tensor | None) -> Any:
        return self._input(tensor, shape, 0)

    def embed(self, tokens: Sequence[int] | None, count: int, table: Any) -> Any:
        one_hot = torch.zeros((count, table.shape[0]))
        if tokens is not None:
            one_hot[torch.arange(count), torch.as_tensor(tokens)] = 1
        return self._input(one_hot, tuple(one_hot.shape), 1).matmul(table)

    def add_known(self, x: Any, known: torch.Tensor | None) -> Any:
        share = from_crypten(x)
        return x if known is None or self.session.party else to_crypten(share + encode(known))

    def linear(self, x: Any, weight: Any, bias: torch.Tensor | None = None) -> Any:
        return self.add_known(x.matmul(weight.t()), bias)

    def rms_norm(self, x: Any, epsilon: float) -> Any:
        mean_square = x.square().mean(-1, keepdim=True)
        return x * (mean_square + epsilon).inv_sqrt()

    def layer_norm(self, x: Any, epsilon: float) -> Any:
        return self.rms_norm(x - x.mean(-1, keepdim=True), epsilon)

    def rotate(self, x: Any, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        half = x.shape[-1] // 2
        turned = self.crypten.cat([-x[..., half:], x[..., :half]], dim=-1)
        return x * cos + turned * sin

    def activation(self, x: Any, kind: str) -> Any:
        if kind == "silu":
            return x * x.sigmoid()
        if kind == "gelu":
            return x * (x * 2**-0.5).erf().add(1) * 0.5
        inner = x + x * x * x * 0.044715
        return x * (inner * (2 / torch.pi) ** 0.5).tanh().add(1) * 0.5

    def multiply(self, x: Any, y: Any) -> Any:
        return x * y

    def concatenate(self, parts: Sequence[Any], dim: int) -> Any:
        return self.crypten.cat(list(parts), dim=dim)

    def append(self, cached: KeyValues | None, keys: Any, values: Any) -> KeyValues:
        if cached is not None:
            keys = self.crypten.cat([cached.keys, keys], dim=1)
            values = self.crypten.cat([cached.values, values], dim=1)
        return KeyValues(keys, values, keys.shape[1])

    def attend(self, queries: Any, cached: KeyValues, visible: torch.Tensor | None) -> Any:
        scores = queries.matmul(cached.keys.transpose(-1, -2))
        if visible is not None:
            scores = scores * visible.float() + (~visible).float() * _MASKED
        return scores.softmax(-1).matmul(cached.values)

    def choose(self, x: Any, head: Any, bias: torch.Tensor | None, vocabulary: int, temperature: float) -> int | None:
        if temperature > 0:
            raise ValueError("the crypten backend takes the likeliest token only (temperature 0)")
        logits = self.linear(x, head, bias)
        one_hot = logits.argmax(dim=-1, one_hot=True)
        position = (one_hot * torch.arange(vocabulary).float()).sum(-1)
        token = position.get_plain_text(dst=1)
        return int(token.round().item()) if self.session.party == 1 else None

    def announce(self, goes_on: bool | None) -> bool:
        share = torch.full((1,), int(bool(goes_on)), dtype=torch.int64)
        heard = self.session.run(self.session.transfer(share, (1,), 8, receiver=0))
        if self.session.planning:
            return True
        return bool(heard.item()) if self.session.party == 0 else bool(goes_on)
