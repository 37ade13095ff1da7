"""Look-once static eviction: after the prompt, exactly k tokens stay, in their order, and nobody learns which.

Scores differ by policy; what is done with them does not. The first and last tokens always stay, which is public.
"""

from __future__ import annotations

from collections.abc import Sequence

from mpcache.protocols.backends.interface import Backend, Value


def keep_top_k(
    backend: Backend, rows: Value, scores: Value, keep: int, sinks: int, recent: int, largest: float
) -> Value:
    """The rows (blocks, keep, c) of (blocks, n, c): the first `sinks`, the last `recent`, and of those between them the
    ones with the largest scores (blocks, n), which lie in [0, largest]. All rows if `keep` is n or more."""
    n = rows.shape[1]
    if keep >= n:
        return rows
    chosen = keep - sinks - recent
    parts = [rows[:, :sinks], rows[:, n - recent :]]
    if chosen > 0:
        between = slice(sinks, n - recent)
        parts.insert(1, backend.retain(scores[:, between], chosen, largest, rows[:, between]))
    return backend.concatenate(parts, 1)


def keep_top_k_per_head(
    backend: Backend,
    layers: Sequence[Sequence[Value]],
    scores: Sequence[Value],
    keep: int,
    sinks: int,
    recent: int,
    largest: float,
) -> list[list[Value]]:
    """Each key/value head of each layer keeps its own `keep` tokens; all layers in the same rounds.

    layers: for each layer values (G, n, c), such as keys and values, whose rows stay together. scores: (G, n) each.
    """
    heads, widths = layers[0][0].shape[0], [part.shape[2] for part in layers[0]]
    rows = backend.concatenate([backend.concatenate(parts, 2) for parts in layers], 0)
    kept = keep_top_k(backend, rows, backend.concatenate(scores, 0), keep, sinks, recent, largest)
    return [_columns(kept[i * heads : (i + 1) * heads], widths) for i in range(len(layers))]


def keep_top_k_together(
    backend: Backend,
    groups: Sequence[Sequence[Value]],
    scores: Sequence[Value],
    keep: int,
    sinks: int,
    recent: int,
    largest: float,
) -> list[list[Value]]:
    """All heads of the layers of a group keep the same `keep` tokens; all groups in the same rounds.

    groups: for each group equally many values (G, n, d), keys and values of its layers. scores: (1, n) each.
    """
    heads, n, d = groups[0][0].shape
    blocks = [
        backend.concatenate([part.transpose(0, 1).reshape(1, n, heads * d) for part in parts], 2) for parts in groups
    ]
    rows = backend.concatenate(blocks, 0)
    kept = keep_top_k(backend, rows, backend.concatenate(scores, 0), keep, sinks, recent, largest)
    out = []
    for i, parts in enumerate(groups):
        columns = _columns(kept[i : i + 1], [heads * d] * len(parts))
        out.append([part.reshape(part.shape[1], heads, d).transpose(0, 1) for part in columns])
    return out


def _columns(rows: Value, widths: Sequence[int]) -> list[Value]:
    out, start = [], 0
    for width in widths:
        out.append(rows[:, :, start : start + width])
        start += width
    return out
