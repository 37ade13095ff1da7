"""The plain backend, looking at its values: how large they get wherever the private computation bounds them.

It computes what `PlainBackend` computes. Everything stays in the process that runs it: a private run has no such
thing, as nobody may see its values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch

from mpcache.generation.loop import steps
from mpcache.generation.request import FULL, GenerationRequest
from mpcache.inspection import bounds
from mpcache.inspection.bounds import Bound, Sizes
from mpcache.model.checkpoint import Checkpoint, load_checkpoint
from mpcache.model.decoder import Decoder
from mpcache.policies import PolicySettings
from mpcache.protocols.backends.interface import Stage
from mpcache.protocols.backends.mpc import LOOKED_UP
from mpcache.protocols.backends.plain import PlainBackend
from mpcache.protocols.public import Factor
from mpcache.protocols.stripes import Stripes

LINEAR = {
    "queries_keys_values": bounds.QKV,
    "attention_out": bounds.PROJECTION,
    "feed_forward_in": bounds.FIRST,
    "feed_forward_out": bounds.SECOND,
}


class WatchedBackend(PlainBackend):
    """Notes sizes by place and layer. A layer is known by its weights: what comes before the first of them, or between
    two, belongs to the later one's layer."""

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__(generator)
        self._sizes = Sizes()
        self._unplaced: list[tuple[Bound, float]] = []
        self._names: dict[int, str] = {}
        self._weights: list[torch.Tensor] = []
        self._activated: torch.Tensor | None = None
        self._normed, self._root = torch.empty(0), torch.empty(0)

    def sizes(self) -> Sizes:
        """Everything since the backend was made."""
        self._place(None)
        return self._sizes

    def _note(self, bound: Bound, size: float) -> None:
        self._unplaced.append((bound, size))

    def _place(self, layer: int | None) -> None:
        for bound, size in self._unplaced:
            self._sizes.note(bound, layer, size)
        self._unplaced = []

    # ------------------------------------------------------------ the model

    def weight(self, name: str, shape: tuple[int, ...], tensor: torch.Tensor | None) -> torch.Tensor:
        weight = super().weight(name, shape, tensor).detach()  # a tensor of its own: its id is its name
        self._names[id(weight)] = name
        self._weights.append(weight)
        bound = bounds.EMBEDDING if name in LOOKED_UP else bounds.WEIGHT
        self._sizes.note(bound, _layer(name), _size(weight))
        return weight

    def embed(self, tokens: Sequence[int] | None, count: int, table: torch.Tensor) -> torch.Tensor:
        self._place(None)  # what eviction left
        return super().embed(tokens, count, table)

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, narrow: bool = False
    ) -> torch.Tensor:
        y, name = super().linear(x, weight, bias, narrow), self._names[id(weight)]
        self._note(LINEAR[name.rpartition(".")[2]], _size(y))
        if x is self._normed:
            self._note(bounds.NORMED, _size((y if bias is None else y - bias) * self._root))
        self._place(_layer(name))
        return y

    def rms_norm(self, x: torch.Tensor, epsilon: float) -> torch.Tensor:
        self._note(bounds.STREAM, _longest(x, epsilon))
        self._note(bounds.STREAM_ELEMENT, _size(x))
        self._root = (x.square().mean(-1, keepdim=True) + epsilon).sqrt()
        self._normed = super().rms_norm(x, epsilon)
        return self._normed

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return self._noted(bounds.ROTATED, super().rotate(x, cos, sin))

    def activation(self, x: torch.Tensor, kind: str) -> torch.Tensor:
        self._note(bounds.ACTIVATION, _size(x))
        self._activated = super().activation(x, kind)
        return self._activated

    def multiply(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        bound = bounds.GATED if x is self._activated else bounds.POLICY_PRODUCT
        return self._noted(bound, super().multiply(x, y))

    def _noisy(self, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        logits = super()._noisy(logits, temperature)
        self._note(bounds.LOGITS, float(logits.max() - logits.min()))
        self._place(None)
        return logits

    # ------------------------------------------------------------ attention

    def _attention(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        visible: torch.Tensor | None = None,
        hidden: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, probabilities = super()._attention(queries, keys, values, visible, hidden)
        self._note(bounds.ATTENTION, _size(out))
        # the largest exponential is about 1 before the division: the sum is the largest probability's inverse
        weighted = out.abs().amax(-1) / probabilities.amax(-1)
        self._note(bounds.WEIGHTED, float(weighted.max()) * bounds.EXPONENTIAL)
        return out, probabilities

    def _softmax(self, scores: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
        if visible is None:
            largest, smallest = scores.amax(-1), scores.amin(-1)
        else:
            hidden = torch.zeros(visible.shape).masked_fill_(~visible, float("inf"))
            largest, smallest = (scores - hidden).amax(-1), (scores + hidden).amin(-1)
            masked = ~visible.all(-1)
            if masked.any():
                self._note(bounds.SCORE, _size(largest[:, masked]))
        self._note(bounds.SCORE_DIFFERENCE, float((largest - smallest).max()))
        return super()._softmax(scores, visible)

    # ------------------------------------------------------------ what cache policies are built from

    def scale(self, x: torch.Tensor, factor: Factor) -> torch.Tensor:
        return self._noted(bounds.SCALED, super().scale(x, factor))

    def product(self, x: torch.Tensor, masked: torch.Tensor, operation: str) -> torch.Tensor:
        return self._noted(bounds.POLICY_PRODUCT, super().product(x, masked, operation))

    def top_k(self, scores: torch.Tensor, k: int) -> torch.Tensor:
        self._note(bounds.SELECTION, float((scores.amax(-1) - scores.amin(-1)).max()))
        return super().top_k(scores, k)

    def choose(self, scores: torch.Tensor, stripes: Stripes, size: int) -> Stage[torch.Tensor]:
        self._note(bounds.SELECTION, float((scores.amax(-1) - scores.amin(-1)).max()))
        return super().choose(scores, stripes, size)

    def choose_largest(self, scores: torch.Tensor, stripes: int) -> torch.Tensor:
        self._note(bounds.SELECTION, float((scores.amax(-1) - scores.amin(-1)).max()))
        return super().choose_largest(scores, stripes)

    def argmin(self, scores: torch.Tensor, largest: float) -> torch.Tensor:
        self._note(bounds.RECEIVED, _size(scores) / largest)
        return super().argmin(scores, largest)

    def retain(self, scores: torch.Tensor, k: int, largest: float, rows: torch.Tensor) -> torch.Tensor:
        self._note(bounds.RECEIVED, _size(scores) / largest)
        return super().retain(scores, k, largest, rows)

    def extremes(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        high, low = super().extremes(x)
        self._note(bounds.EXTREME, max(_size(high), _size(low)))
        return high, low

    def _noted(self, bound: Bound, x: torch.Tensor) -> torch.Tensor:
        self._note(bound, _size(x))
        return x


def _size(x: torch.Tensor) -> float:
    low, high = torch.aminmax(x)
    return max(-low.item(), high.item())


def _longest(x: torch.Tensor, epsilon: float) -> float:
    """The root of the largest sum of squares over the last dimension, with what a norm adds to it."""
    return math.sqrt(float(torch.linalg.vector_norm(x, dim=-1).max()) ** 2 + x.shape[-1] * epsilon)


def _layer(name: str) -> int | None:
    """Of a weight, by its name (see mpcache/model/checkpoint.py)."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "layers" else None


@torch.no_grad()
def watched_answer(
    checkpoint: Checkpoint,
    request: GenerationRequest,
    prompt: Sequence[int],
    end_tokens: Collection[int] = (),
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[int], Sizes]:
    """(tokens, sizes) of a generation in the clear: what a private one should answer, and whether it can."""
    backend = WatchedBackend()
    decoder = Decoder(checkpoint.config, backend, checkpoint.tensors)
    tokens = steps(decoder, request, prompt, on_block, lambda token: token in end_tokens)
    return [token for token in tokens if token is not None], backend.sizes()


def plain_twin(
    folder: Path,
    prompt: Sequence[int],
    max_new_tokens: int,
    policy: PolicySettings = FULL,
    end_tokens: Collection[int] = (),
) -> tuple[list[int], Sizes]:
    """What the same model generates in the clear, and how large its values get where a private run bounds them."""
    request = GenerationRequest(prompt_tokens=len(prompt), max_new_tokens=max_new_tokens, policy=policy)
    return watched_answer(load_checkpoint(folder), request, prompt, end_tokens)


def plain_answer(
    folder: Path,
    prompt: Sequence[int],
    max_new_tokens: int,
    policy: PolicySettings = FULL,
    end_tokens: Collection[int] = (),
) -> list[int]:
    """What the same model generates in the clear."""
    return plain_twin(folder, prompt, max_new_tokens, policy, end_tokens)[0]
