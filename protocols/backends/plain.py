"""float32 torch in the clear: the reference, the accuracy benchmark, the oracle of every test."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from protocols.backends.interface import KeyValues


class PlainBackend:
    """See `Backend`. `generator` draws the noise of temperature sampling."""

    name = "plain"

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self._generator = generator
        self.last_logits: torch.Tensor | None = None

    def weight(self, name: str, shape: tuple[int, ...], tensor: torch.Tensor | None) -> torch.Tensor:
        if tensor is None:
            raise ValueError(f"the plain backend needs the value of {name}")
        return tensor.float()

    def embed(self, tokens: Sequence[int] | None, count: int, table: torch.Tensor) -> torch.Tensor:
        return table[torch.as_tensor(tokens)]

    def add_known(self, x: torch.Tensor, known: torch.Tensor | None) -> torch.Tensor:
        return x if known is None else x + known

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return F.linear(x, weight, bias)

    def rms_norm(self, x: torch.Tensor, epsilon: float) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=epsilon)

    def layer_norm(self, x: torch.Tensor, epsilon: float) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=epsilon)

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def activation(self, x: torch.Tensor, kind: str) -> torch.Tensor:
        if kind == "silu":
            return F.silu(x)
        return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")

    def multiply(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x * y

    def concatenate(self, parts: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
        return torch.cat(list(parts), dim)

    def append(self, cached: KeyValues | None, keys: torch.Tensor, values: torch.Tensor) -> KeyValues:
        if cached is not None:
            keys, values = torch.cat([cached.keys, keys], 1), torch.cat([cached.values, values], 1)
        return KeyValues(keys, values, keys.shape[1])

    def attend(self, queries: torch.Tensor, cached: KeyValues, visible: torch.Tensor | None) -> torch.Tensor:
        scores = queries @ cached.keys.transpose(-1, -2)
        if visible is not None:
            scores = scores.masked_fill(~visible, float("-inf"))
        return scores.softmax(-1) @ cached.values

    def choose(
        self,
        x: torch.Tensor,
        head: torch.Tensor,
        bias: torch.Tensor | None,
        vocabulary: int,
        temperature: float,
    ) -> int:
        logits = self.last_logits = F.linear(x, head, bias)[0]
        if temperature > 0:
            uniform = torch.rand(vocabulary, generator=self._generator).clamp_min(1e-20)
            logits = logits - temperature * torch.log(-torch.log(uniform))
        return int(logits.argmax())

    def announce(self, goes_on: bool | None) -> bool:
        return bool(goes_on)
