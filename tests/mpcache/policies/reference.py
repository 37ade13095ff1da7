"""Every policy by its definition, in NumPy, token by token and head by head: what the library is held against.

Inputs: queries (layers, heads, T, d), already scaled, and keys (layers, key/value heads, T, d) of n prompt tokens and
those generated after them. Result: for each generated token the attention (layers, heads, T) that it gives to every
position, 0 where the policy does not attend to it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mpcache.policies import PolicySettings

Array = np.ndarray
Cache = list[int]
"""Positions, in the order of the cache."""


@dataclass
class Case:
    """One generation's queries and keys, and the public numbers."""

    settings: PolicySettings
    queries: Array
    keys: Array
    n: int

    @property
    def layers(self) -> int:
        return self.queries.shape[0]

    @property
    def groups(self) -> int:
        return self.keys.shape[1]

    @property
    def total(self) -> int:
        return self.keys.shape[2]

    def queries_of(self, layer: int, head: int) -> Array:
        """(r, T, d): the query heads of a key/value head."""
        r = self.queries.shape[1] // self.groups
        return self.queries[layer, head * r : (head + 1) * r]

    def attention(self, layer: int, head: int, token: int, positions: Cache) -> Array:
        """(r, len(positions)): softmax of the token's scores."""
        scores = self.queries_of(layer, head)[:, token] @ self.keys[layer, head, positions].T
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True)

    def received(self, layer: int, head: int, observed: int) -> Array:
        """(n,): attention that the prompt's last `observed` queries give, summed over queries and query heads."""
        out = np.zeros(self.n)
        for token in range(self.n - observed, self.n):
            out[: token + 1] += self.attention(layer, head, token, list(range(token + 1))).sum(0)
        return out

    def budget(self, least: int) -> int:
        budget = self.settings.budget
        return int(budget) if budget >= 1 else max(math.ceil(budget * self.n), least)


def top_k(scores: Array, k: int) -> list[int]:
    """The k largest, the largest first, the earlier of equals first."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


def keep(scores: Array, k: int, sinks: int, recent: int) -> Cache:
    n = len(scores)
    if k >= n:
        return list(range(n))
    between = sorted(sinks + i for i in top_k(scores[sinks : n - recent], k - sinks - recent))
    return [*range(sinks), *between, *range(n - recent, n)]


def run(case: Case) -> list[Array]:
    return POLICIES[case.settings.name](case)


def blank(case: Case) -> Array:
    return np.zeros((case.layers, case.queries.shape[1], case.total))


def put(case: Case, out: Array, layer: int, head: int, token: int, positions: Cache) -> Array:
    """Write the token's attention into `out`; returns it, (r, len(positions))."""
    weights = case.attention(layer, head, token, positions)
    r = weights.shape[0]
    for i, position in enumerate(positions):
        out[layer, head * r : (head + 1) * r, position] += weights[:, i]
    return weights


def growing(case: Case, caches: list[list[Cache]]) -> list[Array]:
    """Attention to caches (layer, head) that only grow."""
    out = []
    for token in range(case.n, case.total):
        step = blank(case)
        for layer in range(case.layers):
            for head in range(case.groups):
                caches[layer][head].append(token)
                put(case, step, layer, head, token, caches[layer][head])
        out.append(step)
    return out


def everything(case: Case) -> list[list[Cache]]:
    return [[list(range(case.n)) for _ in range(case.groups)] for _ in range(case.layers)]


# ---------------------------------------------------------------- policies that evict once


def full(case: Case) -> list[Array]:
    return growing(case, everything(case))


def chosen_at_random(case: Case) -> list[Array]:
    def cache(layer: int) -> Cache:
        budget = case.budget(1)
        if budget >= case.n:
            return list(range(case.n))
        return sorted(random.Random(f"{case.settings.seed}-{layer}").sample(range(case.n), budget))

    return growing(case, [[cache(layer) for _ in range(case.groups)] for layer in range(case.layers)])


def snapkv(case: Case) -> list[Array]:
    s = case.settings
    half = s.kernel // 2

    def cache(layer: int, head: int) -> Cache:
        received = case.received(layer, head, min(s.window, case.n))
        pooled = np.array([received[max(0, i - half) : i + half + 1].sum() for i in range(case.n)])
        return keep(pooled, case.budget(s.sinks + s.recent), s.sinks, s.recent)

    return growing(case, [[cache(layer, head) for head in range(case.groups)] for layer in range(case.layers)])


def keydiff(case: Case) -> list[Array]:
    s = case.settings

    def cache(layer: int, head: int) -> Cache:
        keys = case.keys[layer, head, : case.n]
        directions = keys / np.linalg.norm(keys, axis=-1, keepdims=True)
        similarity = directions @ directions.mean(0)
        return keep(-similarity, case.budget(s.sinks + s.recent), s.sinks, s.recent)

    return growing(case, [[cache(layer, head) for head in range(case.groups)] for layer in range(case.layers)])


# ---------------------------------------------------------------- policies that evict at every step


def streaming(case: Case) -> list[Array]:
    s, out = case.settings, []
    budget = case.budget(s.sinks + s.recent)
    for token in range(case.n, case.total):
        positions = list(range(token + 1))
        # what has left the window before does not come back, but the window only moves on
        if token + 1 > budget:
            positions = positions[: s.sinks] + positions[token + 1 - (budget - s.sinks) :]
        step = blank(case)
        for layer in range(case.layers):
            for head in range(case.groups):
                put(case, step, layer, head, token, positions)
        out.append(step)
    return out


def tova(case: Case) -> list[Array]:
    budget = case.budget(1)
    caches = []
    for layer in range(case.layers):
        received = sum(case.received(layer, head, 1) for head in range(case.groups))
        caches.append(keep(np.asarray(received), budget, 0, 0))
    out = []
    for token in range(case.n, case.total):
        step = blank(case)
        for layer, cache in enumerate(caches):
            cache.append(token)
            weights = [put(case, step, layer, head, token, cache) for head in range(case.groups)]
            if len(cache) > budget:
                lowest = int(np.argmin(sum(w.sum(0) for w in weights)))
                newest = cache.pop()
                if lowest < budget:
                    cache[lowest] = newest
        out.append(step)
    return out


def h2o(case: Case) -> list[Array]:
    budget = case.budget(2)
    heavy = budget // 2
    caches, scores = [], []
    for layer in range(case.layers):
        for head in range(case.groups):
            received = case.received(layer, head, case.n)
            cache = keep(received, budget, 0, budget - heavy)
            caches.append(cache)
            scores.append([float(received[i]) for i in cache])
    out = []
    for token in range(case.n, case.total):
        step = blank(case)
        for i, (cache, score) in enumerate(zip(caches, scores, strict=True)):
            cache.append(token)
            weights = put(case, step, i // case.groups, i % case.groups, token, cache)
            score.append(0.0)
            score[:] = [a + float(b) for a, b in zip(score, weights.sum(0), strict=True)]
            if len(cache) > budget:  # the window's oldest, at `heavy`, becomes a heavy hitter or goes
                lowest = min(range(heavy + 1), key=lambda j: (score[j], j))
                for values in (cache, score):
                    leaving = values.pop(heavy)
                    if lowest < heavy:
                        values[lowest] = leaving  # type: ignore[call-overload]
        out.append(step)
    return out


# ---------------------------------------------------------------- policies that select at every step


@dataclass
class Selector:
    """Picks clusters of one layer and head. represent: what a run of positions of `size` scores for a query."""

    sizes: tuple[int, ...]
    score: Callable[[int, int, int, Cache], float]
    """(layer, head, token, the run's positions) -> how well it fits."""


def select(case: Case, selector: Selector, caches: list[list[Cache]], sharing: Callable[[int], int]) -> list[Array]:
    """sharing: the layer whose selection a layer uses; itself if it makes its own, -1 if it attends to all."""
    s, sizes, out = case.settings, selector.sizes, []
    budget = case.budget(s.sinks + s.recent + (sizes[0] - 1 + sizes[-1] if sizes else 0))
    for token in range(case.n, case.total):
        step, picked = blank(case), {}
        for layer in range(case.layers):
            for head in range(case.groups):
                cache = caches[layer][head]
                cache.append(token)
                source = sharing(layer)
                if source < 0 or not sizes:
                    put(case, step, layer, head, token, cache)
                    continue
                counted = len(cache) if s.clusters_grow() else len(cache) - (token - case.n + 1)
                inside = max(0, (counted - s.sinks - s.recent) // sizes[0] * sizes[0])
                if source == layer:
                    left = budget - (counted - inside)
                    picked[layer, head] = pick(case, selector, layer, head, token, cache, inside, left)
                slots = [*range(s.sinks), *picked[source, head], *range(s.sinks + inside, len(cache))]
                slots = slots if inside else list(range(len(cache)))
                put(case, step, layer, head, token, [cache[i] for i in slots])
        out.append(step)
    return out


def pick(
    case: Case, selector: Selector, layer: int, head: int, token: int, cache: Cache, inside: int, left: int
) -> list[int]:
    """Slots of the picked tokens. left: of the budget, for them."""
    sizes, start = selector.sizes, case.settings.sinks
    counts = [left // sizes[-1]]
    for coarse, fine in zip(sizes[-2::-1], sizes[:0:-1], strict=True):
        counts.append(math.ceil(math.ceil(case.settings.widening * counts[-1] * fine) / coarse))
    candidates = list(range(start, start + inside))
    for size, count in zip(sizes, reversed(counts), strict=True):
        runs = [candidates[i : i + size] for i in range(0, len(candidates), size)]
        scores = [selector.score(layer, head, token, [cache[i] for i in run]) for run in runs]
        # a level that picks all changes no order
        chosen = range(len(runs)) if count >= len(runs) else striped_top_k(scores, count, case.settings.picks)
        candidates = [slot for i in chosen for slot in runs[i]]
    return candidates


def striped_top_k(scores: list[float], k: int, picks: int) -> list[int]:
    """Of every stripe of candidates its largest, `picks` or one more; the stripes' in turn."""
    stripes = k // picks if picks else 1
    if picks and stripes >= 32:
        stripes = k // max(1, picks // 2)
    stripes = max(1, stripes if stripes >= 16 else stripes // 2)
    out: list[int] = []
    for stripe in range(stripes):
        members = range(stripe, len(scores), stripes)
        here = k // stripes + (stripe < k % stripes)
        best = top_k(np.array([scores[i] for i in members]), here)
        out += [members[i] for i in (best if here < len(members) else range(here))]
    return out


def quest(case: Case) -> list[Array]:
    def bound(layer: int, head: int, token: int, run: Cache) -> float:
        q, keys = case.queries_of(layer, head)[:, token].sum(0), case.keys[layer, head, run]
        return float(np.maximum(q * keys.max(0), q * keys.min(0)).sum())

    return select(case, Selector((case.settings.page,), bound), everything(case), lambda layer: layer)


def infllm(case: Case) -> list[Array]:
    s = case.settings
    representatives: dict[tuple[int, int, int], list[int]] = {}

    def score(layer: int, head: int, token: int, run: Cache) -> float:
        q, keys = case.queries_of(layer, head).sum(0), case.keys[layer, head]
        at = (layer, head, run[0])
        if at not in representatives:
            # the block closed when `recent` tokens were behind it, or with the prompt
            known = max(case.n, closed_with(run[0]))
            fits = []
            for position in run:
                following = q[position + 1 : min(position + 1 + s.window, known)]
                fits.append(float(keys[position] @ following.mean(0)))
            representatives[at] = [run[i] for i in top_k(np.array(fits), s.representatives)]
        return float(sum(q[token] @ keys[i] for i in representatives[at]))

    def closed_with(first: int) -> int:
        """How many tokens there were when the block that begins at `first` closed, had it closed while decoding."""
        return first + s.page + s.recent

    return select(case, Selector((s.page,), score), everything(case), lambda layer: layer)


def mpcache(case: Case) -> list[Array]:
    s, n = case.settings, case.n
    sizes = s.clusters

    def sharing(layer: int) -> int:
        alone = s.skip_layers + s.unshared_layers
        if layer < alone:
            return -1 if layer < s.skip_layers else layer
        return layer - (layer - alone) % s.share_layers

    budget = case.budget(s.sinks + s.recent + (sizes[0] - 1 + sizes[-1] if sizes else 0))
    share = math.ceil(s.keep_ratio * n) if sizes else 0
    kept = max(budget, min(share, math.ceil(s.most_kept * budget)) if s.keep_ratio < 1 else share)
    observed = max(1, math.ceil(s.observed_share * n)) if s.observed_share else min(s.window, n)
    caches = everything(case)
    for first in range(case.layers):
        if sharing(first) != first or kept >= n:
            continue
        group = [layer for layer in range(case.layers) if sharing(layer) == first]
        scores = np.array([sum(case.received(layer, head, observed) for layer in group) for head in range(case.groups)])
        if not s.per_head:
            scores[:] = scores.sum(0)
        for layer in group:
            caches[layer] = [keep(scores[head], kept, s.sinks, s.recent) for head in range(case.groups)]

    def similarity(layer: int, head: int, token: int, run: Cache) -> float:
        heads = range(case.groups) if s.share_heads else [head]
        return sum(alone(layer, h, token, run) for h in heads)

    def alone(layer: int, head: int, token: int, run: Cache) -> float:
        q, keys = case.queries_of(layer, head)[:, token].sum(0), case.keys[layer, head, run]
        mixed = s.alpha * keys.max(0) + (1 - s.alpha) * keys.min(0)
        return float(q @ (keys.mean(0) if s.representative == "mean" else mixed))

    return select(case, Selector(sizes, similarity), caches, sharing)


def recall(case: Case) -> list[Array]:
    s, n, stripes = case.settings, case.n, max(4, case.settings.called)

    def sharing(layer: int) -> int:
        return layer if layer < s.unshared_layers else layer - (layer - s.unshared_layers) % s.share_layers

    span, called = stripes * s.cluster, s.called * s.cluster
    budget = case.budget(s.sinks + s.recent + span - 1 + called)
    inside = max(0, n - s.sinks - s.recent) // span * span
    many = max(0, budget - (n - inside) - called) // span
    if budget >= n or many * span >= inside:
        return growing(case, everything(case))
    observed = max(1, math.ceil(s.observed_share * n)) if s.observed_share else min(s.window, n)
    clusters = [list(range(i, i + s.cluster)) for i in range(s.sinks, s.sinks + inside, s.cluster)]
    kept: dict[int, list[int]] = {}
    for first in {sharing(layer) for layer in range(case.layers)}:
        group = [layer for layer in range(case.layers) if sharing(layer) == first]
        received = sum(case.received(layer, head, observed) for layer in group for head in range(case.groups))
        kept[first] = []
        for stripe in range(stripes):
            mine = range(stripe, len(clusters), stripes)
            best = top_k(np.array([np.asarray(received)[clusters[i]].sum() for i in mine]), many)
            kept[first] += [mine[i] for i in best]

    def called_by(layer: int, token: int) -> list[int]:
        """Of every stripe the cluster whose mean key fits all heads best, of those that are not kept."""
        found = []
        for stripe in range(s.called):
            others = [i for i in range(stripe, len(clusters), s.called) if i not in kept[layer]]
            fits = [sum(fit(layer, head, token, clusters[i]) for head in range(case.groups)) for i in others]
            found.append(others[int(np.argmax(fits))])
        return found

    def fit(layer: int, head: int, token: int, run: Cache) -> float:
        return float(case.queries_of(layer, head)[:, token].sum(0) @ case.keys[layer, head, run].mean(0))

    out = []
    for token in range(n, case.total):
        step = blank(case)
        for layer in range(case.layers):
            first = sharing(layer)
            runs = [*kept[first], *called_by(first, token)]
            inner = [position for i in runs for position in clusters[i]]
            positions = [*range(s.sinks), *inner, *range(s.sinks + inside, token + 1)]
            for head in range(case.groups):
                put(case, step, layer, head, token, positions)
        out.append(step)
    return out


POLICIES: dict[str, Callable[[Case], list[Array]]] = {
    "full": full,
    "random": chosen_at_random,
    "streaming": streaming,
    "h2o": h2o,
    "tova": tova,
    "snapkv": snapkv,
    "keydiff": keydiff,
    "quest": quest,
    "infllm": infllm,
    "mpcache": mpcache,
    "recall": recall,
}
