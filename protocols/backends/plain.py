"""float32 torch in the clear: the reference, the accuracy benchmark, the oracle of every test."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from mpcache.protocols.backends.interface import KeyValues, Stage
from mpcache.protocols.beaver import rows_of_runs, runs_in_stripes
from mpcache.protocols.causal import Causal
from mpcache.protocols.public import Factor
from mpcache.protocols.session import ROUND_BYTES
from mpcache.protocols.stripes import Stripes


class PlainBackend:
    """See `Backend`. `generator` draws the noise of temperature sampling. round_bytes: of the private run that this is
    held against."""

    name = "plain"

    def __init__(self, generator: torch.Generator | None = None, round_bytes: int = ROUND_BYTES) -> None:
        self._generator = generator
        self.round_bytes = round_bytes
        self.last_logits: torch.Tensor | None = None

    def weight(self, name: str, shape: tuple[int, ...], tensor: torch.Tensor | None) -> torch.Tensor:
        if tensor is None:
            raise ValueError(f"the plain backend needs the value of {name}")
        return tensor.float()

    def embed(self, tokens: Sequence[int] | None, count: int, table: torch.Tensor) -> torch.Tensor:
        return table[:, torch.as_tensor(tokens)].t()

    def add_known(self, x: torch.Tensor, known: torch.Tensor | None) -> torch.Tensor:
        return x if known is None else x + known

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, narrow: bool = False
    ) -> torch.Tensor:
        return F.linear(x, weight, bias)

    def rms_norm(self, x: torch.Tensor, epsilon: float) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=epsilon)

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def known_to_client(self, x: torch.Tensor | None, shape: Sequence[int]) -> torch.Tensor:
        if x is None:
            raise ValueError("the plain backend needs what the client knows")
        return x.float()

    def secret_tables(self, tables: torch.Tensor | None, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = self.known_to_client(tables, shape)[:, None]
        return cos, sin

    def rotate_masked(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return self.rotate(x, cos, sin)

    def activation(self, x: torch.Tensor, kind: str) -> torch.Tensor:
        if kind == "silu":
            return F.silu(x)
        return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")

    def multiply(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x * y

    def scale(self, x: torch.Tensor, factor: Factor) -> torch.Tensor:
        return x * (factor.to(x.dtype) if isinstance(factor, torch.Tensor) else float(factor))

    def zeros(self, shape: Sequence[int]) -> torch.Tensor:
        return torch.zeros(tuple(shape))

    def concatenate(self, parts: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
        return torch.cat(list(parts), dim)

    def append(
        self, cached: KeyValues[torch.Tensor] | None, keys: torch.Tensor, values: torch.Tensor
    ) -> KeyValues[torch.Tensor]:
        if cached is not None:
            keys, values = torch.cat([cached.keys, keys], 1), torch.cat([cached.values, values], 1)
        return KeyValues(keys, values, keys.shape[1])

    def enter(
        self, cached: KeyValues[torch.Tensor] | None, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[KeyValues[torch.Tensor], torch.Tensor]:
        return self.append(cached, keys, values), queries

    def visible(self, seen: Causal) -> torch.Tensor:
        return seen.mask()

    def attend(
        self,
        queries: torch.Tensor,
        cached: KeyValues[torch.Tensor],
        visible: torch.Tensor | None = None,
        hidden: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self._attention(queries, cached.keys, cached.values, visible, hidden)[0]

    def attend_observed(
        self,
        queries: torch.Tensor,
        cached: KeyValues[torch.Tensor],
        visible: torch.Tensor | None,
        observed: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, probabilities = self._attention(queries, cached.keys, cached.values, visible)
        return out, probabilities[:, observed].sum(1)

    def attend_selected(
        self,
        queries: Sequence[torch.Tensor],
        cached: KeyValues[torch.Tensor],
        start: int,
        end: int,
        stages: Sequence[Sequence[Stage[torch.Tensor]]],
        hidden: torch.Tensor | None = None,
    ) -> torch.Tensor:
        heads, out = torch.arange(cached.keys.shape[0])[:, None], list[torch.Tensor]()
        for later, (own, choice) in enumerate(zip(reversed(queries), reversed(stages), strict=True)):
            picked = torch.arange(start, end).expand(len(heads), -1)  # (heads, tokens)
            for stage in choice:
                runs = picked.unflatten(1, (-1, stage.size))
                picked = runs[heads, chosen_runs(stage)].flatten(1)
            outside = torch.cat([torch.arange(start), torch.arange(end, cached.tokens - later)])
            places = torch.cat([picked, outside.expand(len(heads), -1)], 1)
            keys, values = cached.keys[heads, places], cached.values[heads, places]
            below = None if hidden is None else hidden[places][:, None]
            out.insert(0, self._attention(own, keys, values, None, below)[0])
        return torch.stack(out, 2).flatten(1, 2)

    def _attention(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        visible: torch.Tensor | None = None,
        hidden: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(attention, probabilities)."""
        scores = queries @ keys.transpose(-1, -2)
        probabilities = self._softmax(scores if hidden is None else scores + hidden, visible)
        return probabilities @ values, probabilities

    def _softmax(self, scores: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
        if visible is not None:
            scores = scores.masked_fill(~visible, float("-inf"))
        return scores.softmax(-1)

    # ------------------------------------------------------------ what a sparse prefill is built from

    def choose_runs(self, queries: torch.Tensor, masked: torch.Tensor, stripes: int, k: int) -> torch.Tensor:
        largest = (queries @ masked.transpose(-1, -2)).amax((0, 1))
        return _choice(largest.reshape(-1, stripes).t(), k)

    def gather_runs(
        self, cached: KeyValues[torch.Tensor], start: int, end: int, choice: torch.Tensor
    ) -> KeyValues[torch.Tensor]:
        stripes, _, n = choice.shape
        size = (end - start) // (stripes * n)
        runs = choice.argmax(-1) * stripes + torch.arange(stripes)[:, None]
        picked = (start + runs.flatten()[:, None] * size + torch.arange(size)).flatten()
        places = torch.cat([torch.arange(start), picked, torch.arange(end, cached.tokens)])
        return KeyValues(cached.keys[:, places], cached.values[:, places], len(places))

    # ------------------------------------------------------------ what is laid by and called back

    def runs(
        self, cached: KeyValues[torch.Tensor], start: int, end: int, stripes: int, size: int
    ) -> KeyValues[torch.Tensor]:
        keys, values = (runs_in_stripes(x[:, start:end], stripes, size) for x in (cached.keys, cached.values))
        return KeyValues(keys, values, keys.shape[1])

    def choose_largest(self, scores: torch.Tensor, stripes: int) -> torch.Tensor:
        return _choice(scores.reshape(-1, stripes).t(), 1)

    def recall(
        self, stored: KeyValues[torch.Tensor], choice: torch.Tensor, heads: int, size: int
    ) -> KeyValues[torch.Tensor]:
        stripes, places = torch.arange(len(choice))[:, None], choice.argmax(-1)
        keys, values = (rows_of_runs(x[stripes, places], heads, size) for x in (stored.keys, stored.values))
        return KeyValues(keys, values, keys.shape[1])

    # ------------------------------------------------------------ what cache policies are built from

    def mask(self, x: torch.Tensor, after: torch.Tensor | None = None) -> torch.Tensor:
        return x if after is None else torch.cat([after, x], 1)

    def unmask(self, masked: torch.Tensor) -> torch.Tensor:
        return masked

    def rows(self, parts: Sequence[tuple[torch.Tensor, int, int]]) -> torch.Tensor:
        return torch.cat([masked[:, start:end] for masked, start, end in parts], 1)

    def forget(self, *masked: torch.Tensor) -> None:
        pass

    def product(self, x: torch.Tensor, masked: torch.Tensor, operation: str) -> torch.Tensor:
        return x * masked if operation == "multiply" else x @ masked.transpose(-1, -2)

    def similarity(self, queries: torch.Tensor, masked: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [(queries @ rows.transpose(-1, -2)).sum(1) for rows in masked]

    def top_k(self, scores: torch.Tensor, k: int) -> torch.Tensor:
        return _choice(scores, k)

    def argmin(self, scores: torch.Tensor, largest: float) -> torch.Tensor:
        return _choice(-scores, 1)

    def gather(self, choice: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return choice @ rows

    def choose(self, scores: torch.Tensor, stripes: Stripes, size: int) -> Stage[torch.Tensor]:
        parts = zip(stripes.groups, stripes.split(scores[..., None]), strict=True)
        return Stage([None if g.whole else _choice(part[..., 0], g.picks) for g, part in parts], size, stripes)

    def pick(self, stage: Stage[torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        return rows[torch.arange(len(rows))[:, None], chosen_runs(stage)]

    def retain(self, scores: torch.Tensor, k: int, largest: float, rows: torch.Tensor) -> torch.Tensor:
        kept = _ranked(scores)[:, :k].sort(-1).values
        return rows.gather(1, kept[..., None].expand(*kept.shape, rows.shape[-1]))

    def extremes(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.amax(-2), x.amin(-2)

    def overwrite(self, masked: torch.Tensor, choice: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return torch.where(choice.transpose(-1, -2) > 0, row, masked)

    # ------------------------------------------------------------ the next token

    def next_tokens(
        self,
        x: torch.Tensor,
        head: torch.Tensor,
        bias: torch.Tensor | None,
        vocabulary: int,
        temperature: float,
    ) -> list[int]:
        logits = F.linear(x, head, bias)
        self.last_logits = logits[-1]
        return [int(self._noisy(row, temperature).argmax()) for row in logits]

    def _noisy(self, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        if temperature > 0:
            uniform = torch.rand(logits.shape, generator=self._generator).clamp_min(1e-20)
            logits = logits - temperature * torch.log(-torch.log(uniform))
        return logits

    def announce(self, goes_on: bool | None) -> bool:
        return bool(goes_on)


def chosen_runs(stage: Stage[torch.Tensor]) -> torch.Tensor:
    """Numbers (heads, k) of the chosen runs."""
    places = zip(stage.stripes.groups, stage.choice, strict=True)
    return stage.stripes.positions([torch.arange(g.size)[None, None] if c is None else c.argmax(-1) for g, c in places])


def _choice(scores: torch.Tensor, k: int) -> torch.Tensor:
    return F.one_hot(_ranked(scores)[..., :k], scores.shape[-1]).float()


def _ranked(scores: torch.Tensor) -> torch.Tensor:
    """Positions from the largest score to the smallest, ties by position."""
    return torch.argsort(scores, dim=-1, descending=True, stable=True)
