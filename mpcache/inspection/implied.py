"""What a model's weights say about the bounds of a private computation (see bounds.py), before any prompt is there.

Some answers are certain to be wrong: weights that do not fit, an embedding that is too long, and whatever happens to a
prompt's first token, which sees only itself, so that all its values follow from the weights. Such a model is refused.

Others cannot be excluded: norms alone bound every value. A normalised x is no longer than the root of the hidden size,
so no element of W x is larger than that times W's row, no score larger than a query's length times a key's, and
attention's output no larger than the largest value. Real prompts stay far below: `mpcache inspect` measures them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.linalg import vector_norm

from mpcache.generation.request import FULL
from mpcache.inspection import bounds
from mpcache.inspection.bounds import BOUNDS, Reading, Sizes
from mpcache.inspection.watched import WatchedBackend
from mpcache.model.checkpoint import Checkpoint
from mpcache.model.decoder import Decoder
from mpcache.policies.full import Full
from mpcache.protocols.backends.interface import KeyValues, Value
from mpcache.protocols.errors import ModelError

FIRST_TOKENS = 16
"""So many tokens of the vocabulary, evenly spaced, are tried as a prompt's first, all at once."""


@dataclass(frozen=True)
class Implied:
    """certain: passed with some prompt, whatever follows in it; in the order of computation. possible: the most that
    norms allow is beyond; the farthest first."""

    certain: list[Reading]
    possible: list[Reading]

    def refusal(self) -> str:
        """Says what is wrong with the model, and what to do."""
        first = self.certain[0]
        others = f" (and in {len(self.certain) - 1} more places)" if len(self.certain) > 1 else ""
        return (
            f"the model cannot be run privately: {first}{others}, so that private answers are certain to be wrong: "
            "take a checkpoint whose values are smaller there, or scale its weights down; mpcache inspect shows all"
        )


def check_ranges(checkpoint: Checkpoint) -> list[Reading]:
    """Where values may leave their bounds, though nothing says that they do: `Implied.possible`.

    Raises ModelError if a private answer is certain to be wrong. Cost: a few passes over the weights, and 16 tokens
    through the model.
    """
    implied = implied_ranges(checkpoint)
    if implied.certain:
        raise ModelError(implied.refusal())
    return implied.possible


@torch.no_grad()
def implied_ranges(checkpoint: Checkpoint) -> Implied:
    """What is certain, and what cannot be excluded. Cost: see `check_ranges`."""
    sizes = _first_tokens(checkpoint)
    sizes.note(bounds.STREAM, 0, _embeddings(checkpoint).certain)
    certain = sorted(sizes.passed(), key=_order)
    places = {(reading.bound, reading.layer) for reading in certain}
    possible = [r for r in _largest(checkpoint).passed() if (r.bound, r.layer) not in places]
    return Implied(certain, possible)


def _order(reading: Reading) -> tuple[float, int]:
    """Of computation: embedding, layers, head."""
    outside = -1.0 if reading.bound is bounds.EMBEDDING else math.inf
    return (outside if reading.layer is None else reading.layer), BOUNDS.index(reading.bound)


# ---------------------------------------------------------------- certain


class _Alone(Full):
    """Every token sees itself alone, as a prompt's first one does; those after it are masked."""

    def attend(self, layer: int, queries: Value, keys: Value, values: Value) -> Value:
        m = keys.shape[1]
        itself = torch.eye(m, dtype=torch.bool).repeat(self.config.queries_per_head, 1)
        return self.backend.attend(queries, KeyValues(keys, values, m), itself)


def _first_tokens(checkpoint: Checkpoint) -> Sizes:
    """Sizes of the weights, and of some tokens' values where each begins a prompt."""
    config, backend = checkpoint.config, WatchedBackend()
    decoder = Decoder(config, backend, checkpoint.tensors)
    count = min(FIRST_TOKENS, config.vocabulary, config.max_positions)
    tokens = torch.linspace(0, config.vocabulary - 1, count).long()
    x = checkpoint.tensors["embedding"][:, tokens].t()
    if "positions" in checkpoint.tensors:
        x = x + checkpoint.tensors["positions"][0]
    last = decoder.blocks(x, _Alone(FULL, config, backend, count))
    for i in range(count):  # of a prompt of one token
        decoder.next_token(last[i : i + 1])
    return backend.sizes()


@dataclass(frozen=True)
class _Embeddings:
    """Lengths of what enters the first layer: one that some prompt certainly has, and the most that one may have."""

    certain: float
    largest: float


def _embeddings(checkpoint: Checkpoint) -> _Embeddings:
    tokens, positions = vector_norm(checkpoint.tensors["embedding"], dim=0), checkpoint.tensors.get("positions")
    longest, shortest = float(tokens.max()), float(tokens.min())
    if positions is None:
        return _Embeddings(longest, longest)
    at = vector_norm(positions, dim=1)
    certain = max(longest - float(at.min()), float(at.max()) - shortest)
    return _Embeddings(certain, longest + float(at.max()))


# ---------------------------------------------------------------- not excluded


def _largest(checkpoint: Checkpoint) -> Sizes:
    """The most that norms allow at each place and layer."""
    config, stream, sizes = checkpoint.config, _embeddings(checkpoint).largest, Sizes()
    for i in range(config.layers):
        _note_stream(checkpoint, i, "queries_keys_values", stream, sizes)
        stream += _attention(checkpoint, i, sizes)
        _note_stream(checkpoint, i, "feed_forward_in", stream, sizes)
        stream += _feed_forward(checkpoint, i, sizes)
    sizes.note(bounds.STREAM, None, stream)
    sizes.note(bounds.STREAM_ELEMENT, None, stream)
    head, bias = checkpoint.tensors["head"], checkpoint.tensors.get("head.bias")
    apart = 2 * math.sqrt(config.hidden) * float(_from_their_mean(head).max())
    sizes.note(bounds.LOGITS, None, apart + (0.0 if bias is None else float(bias.max() - bias.min())))
    return sizes


def _note_stream(checkpoint: Checkpoint, i: int, layer: str, stream: float, sizes: Sizes) -> None:
    """The stream where a norm reads it, and what the layer makes of it before it is divided."""
    sizes.note(bounds.STREAM, i, stream)
    sizes.note(bounds.STREAM_ELEMENT, i, stream)
    sizes.note(bounds.NORMED, i, stream * float(_lengths(checkpoint.tensors[f"layers.{i}.{layer}"]).max()))


def _attention(checkpoint: Checkpoint, i: int, sizes: Sizes) -> float:
    """Notes the sizes in layer i's attention; gives the length of what it adds to the stream."""
    c, tensors, name = checkpoint.config, checkpoint.tensors, f"layers.{i}.queries_keys_values"
    elements = _elements(tensors, name, math.sqrt(c.hidden))
    rotated, values = elements.split([(c.heads + c.key_value_heads) * c.head_size, c.key_value_heads * c.head_size])
    sizes.note(bounds.QKV, i, float(elements.max()))
    if c.family == "llama":  # pairs of channels turn
        rotated = vector_norm(rotated.reshape(-1, 2, c.head_size // 2), dim=1)
        sizes.note(bounds.ROTATED, i, float(rotated.max()))
    sizes.note(bounds.EXTREME, i, float(rotated.max()))
    counts = [c.heads, c.key_value_heads, c.key_value_heads]
    queries, keys, value_lengths = _head_lengths(tensors, name, c.hidden, c.head_size).split(counts)
    scores = queries.reshape(c.key_value_heads, -1) * keys[:, None]
    sizes.note(bounds.SCORE, i, float(scores.max()))
    sizes.note(bounds.SCORE_DIFFERENCE, i, 2 * float(scores.max()))
    sizes.note(bounds.SELECTION, i, 2 * float(scores.sum()))  # all heads choose together
    sizes.note(bounds.ATTENTION, i, float(values.max()))
    sizes.note(bounds.WEIGHTED, i, float(values.max()) * bounds.EXPONENTIAL * c.max_positions)
    length = math.sqrt(c.queries_per_head * float((value_lengths**2).sum()))
    out = _elements(tensors, f"layers.{i}.attention_out", length)
    sizes.note(bounds.PROJECTION, i, float(out.max()))
    return float(vector_norm(out))


def _feed_forward(checkpoint: Checkpoint, i: int, sizes: Sizes) -> float:
    """As `_attention`. Neither SiLU nor GELU makes anything larger."""
    c, tensors = checkpoint.config, checkpoint.tensors
    inner = _elements(tensors, f"layers.{i}.feed_forward_in", math.sqrt(c.hidden))
    sizes.note(bounds.FIRST, i, float(inner.max()))
    sizes.note(bounds.ACTIVATION, i, float(inner[: c.intermediate].max()))
    if c.family == "llama":
        inner = inner[: c.intermediate] * inner[c.intermediate :]
        sizes.note(bounds.GATED, i, float(inner.max()))
    name = f"layers.{i}.feed_forward_out"
    out = tensors[name].abs() @ inner + _bias(tensors, name)
    sizes.note(bounds.SECOND, i, float(out.max()))
    return float(vector_norm(out))


def _elements(tensors: dict[str, torch.Tensor], name: str, length: float) -> torch.Tensor:
    """The most that each element of W x + b can be for an x of this length."""
    return _lengths(tensors[name]) * length + _bias(tensors, name)


def _lengths(rows: torch.Tensor) -> torch.Tensor:
    lengths: torch.Tensor = vector_norm(rows, dim=1)
    return lengths


def _bias(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    bias = tensors.get(f"{name}.bias")
    return torch.zeros(1) if bias is None else bias.abs()


def _head_lengths(tensors: dict[str, torch.Tensor], name: str, hidden: int, head_size: int) -> torch.Tensor:
    """The most that each head's query, key or value can measure: by the largest singular value of its weight."""
    weight = tensors[name].reshape(-1, head_size, hidden)
    gram = weight @ weight.transpose(1, 2)
    if not torch.isfinite(gram).all():
        return torch.full((len(gram),), math.inf)
    largest: torch.Tensor = torch.linalg.eigvalsh(gram)[:, -1].clamp_min(0).sqrt() * math.sqrt(hidden)
    bias = tensors.get(f"{name}.bias")
    return largest if bias is None else largest + _lengths(bias.reshape(-1, head_size))


def _from_their_mean(rows: torch.Tensor) -> torch.Tensor:
    """Each row's distance from the mean row: what all logits have in common decides nothing."""
    mean = rows.mean(0)
    return (_lengths(rows) ** 2 - 2 * rows @ mean + mean @ mean).clamp_min(0).sqrt()
