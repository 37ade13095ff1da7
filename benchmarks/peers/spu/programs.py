"""What SPU computes: the decode step's parts in JAX with SPU's stock operators, and random inputs for them.

A program is a function of arrays (all of them secret) and their values. Shapes come from the case, a dictionary:
what, policy, tokens, hidden, heads, intermediate, vocabulary, layers, and for a policy that selects `layout` (the
cached tokens by place, and each level's cluster size and picks).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Case = dict[str, Any]
Arrays = list[np.ndarray]
Program = tuple[Callable[..., Any], Arrays]

WEIGHT_DEVIATION = 0.02
"""Of GPT-2's initial weights."""
EPSILON = 1e-5


def program(case: Case) -> Program:
    """The function and its inputs; the inputs are the same in every process."""
    return _PROGRAMS[case["what"]](case, np.random.default_rng(0))


# ---------------------------------------------------------------- attention of one token


def _attention(case: Case) -> Callable[..., jax.Array]:
    """(query, key, value) (heads, 1, d) of the new token and the cached ones -> (heads, 1, d)."""
    return _full_attention if case["policy"] == "full" else _selected_attention(case)


def _full_attention(query: jax.Array, key: jax.Array, value: jax.Array, keys: jax.Array, values: jax.Array) -> Any:
    return _attend(query, jnp.concatenate([keys, key], 1), jnp.concatenate([values, value], 1))


def _attend(query: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    scores = query @ keys.transpose(0, 2, 1) / math.sqrt(query.shape[-1])  # (heads, 1, T)
    return jax.nn.softmax(scores, axis=-1) @ values


def _selected_attention(case: Case) -> Callable[..., jax.Array]:
    """MPCache's: clusters picked coarse to fine, then attention to sinks, picked clusters and tail."""
    layout = case["layout"]
    start, end = layout["sinks"], layout["sinks"] + layout["clustered"]

    def attention(query: Any, key: Any, value: Any, keys: Any, values: Any, *representatives: Any) -> jax.Array:
        picked = _select(layout, query, keys[:, start:end], values[:, start:end], *representatives)
        joined = [
            jnp.concatenate([cached[:, :start], rows, cached[:, end:], new], 1)
            for cached, rows, new in zip((keys, values), picked, (key, value), strict=True)
        ]
        return _attend(query, *joined)

    return attention


def _select(layout: Case, query: Any, keys: Any, values: Any, *representatives: Any) -> tuple[jax.Array, jax.Array]:
    """The picked clusters' keys and values: top-k and one-hot at each level, one gather by the composed one-hot."""
    heads, tokens, d = keys.shape
    chosen, coarser = None, 0  # one-hot (heads, k, runs of `coarser` tokens)
    for (size, k), representative in zip(layout["levels"], representatives, strict=True):
        scores = (representative @ query.transpose(0, 2, 1)).reshape(heads, -1)  # (heads, tokens / size)
        if chosen is None:
            chosen = _one_hot_top_k(scores, k)
        else:
            children = coarser // size
            scores = (chosen @ scores.reshape(heads, -1, children)).reshape(heads, -1)
            best = _one_hot_top_k(scores, k).reshape(heads, k, -1, children)
            chosen = jnp.einsum("hkpc,hpn->hknc", best, chosen).reshape(heads, k, -1)
        coarser = size
    gathered = [
        (chosen @ rows.reshape(heads, tokens // coarser, coarser * d)).reshape(heads, -1, d) for rows in (keys, values)
    ]
    return gathered[0], gathered[1]


def _one_hot_top_k(scores: jax.Array, k: int) -> jax.Array:
    """(heads, n) -> one-hot rows (heads, k, n)."""
    _, indices = jax.lax.top_k(scores, k)
    return (indices[:, :, None] == jnp.arange(scores.shape[-1])[None, None, :]).astype(jnp.int32)


def _cache(case: Case, random: np.random.Generator) -> Arrays:
    """Keys and values (heads, T, d), and each level's representatives."""
    heads, d = case["heads"], case["hidden"] // case["heads"]
    layout = case.get("layout")
    tokens = layout["cached"] if layout else case["tokens"]
    arrays = [random.normal(size=(heads, tokens, d)).astype(np.float32) for _ in range(2)]
    for size, _ in layout["levels"] if layout else []:
        clusters = arrays[0][:, layout["sinks"] : layout["sinks"] + layout["clustered"]]
        arrays.append(clusters.reshape(heads, -1, size, d).mean(2))
    return arrays


def _attention_program(case: Case, random: np.random.Generator) -> Program:
    shape = (case["heads"], 1, case["hidden"] // case["heads"])
    new = [random.normal(size=shape).astype(np.float32) for _ in range(3)]
    return _attention(case), new + _cache(case, random)


def _selection_program(case: Case, random: np.random.Generator) -> Program:
    """What comes before attention in a policy that selects."""
    layout = case["layout"]
    start, end = layout["sinks"], layout["sinks"] + layout["clustered"]
    query = random.normal(size=(case["heads"], 1, case["hidden"] // case["heads"])).astype(np.float32)
    keys, values, *representatives = _cache(case, random)

    def select(*arrays: Any) -> Any:
        return _select(layout, *arrays)

    return select, [query, keys[:, start:end], values[:, start:end], *representatives]


# ---------------------------------------------------------------- a GPT-2 block


def _norm(x: jax.Array, gain: jax.Array, bias: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + EPSILON) * gain + bias


def _block(case: Case) -> Callable[..., jax.Array]:
    """(x (1, h), the weights of `_block_weights`, the cache) -> (1, h)."""
    heads, d = case["heads"], case["hidden"] // case["heads"]
    attention = _attention(case)

    def block(x: Any, g1: Any, b1: Any, qkv: Any, bqkv: Any, out: Any, bout: Any, g2: Any, b2: Any, *more: Any) -> Any:
        up, bup, down, bdown, *cache = more
        q, k, v = (_norm(x, g1, b1) @ qkv + bqkv).reshape(3, heads, 1, d)
        x = x + attention(q, k, v, *cache).reshape(1, -1) @ out + bout
        return x + jax.nn.gelu(_norm(x, g2, b2) @ up + bup, approximate=True) @ down + bdown

    return block


def _block_weights(case: Case, random: np.random.Generator) -> Arrays:
    h, inner = case["hidden"], case["intermediate"]

    def matrix(rows: int, columns: int) -> np.ndarray:
        return random.normal(scale=WEIGHT_DEVIATION, size=(rows, columns)).astype(np.float32)

    def vector(size: int, middle: float = 0.0) -> np.ndarray:
        return (middle + random.normal(scale=WEIGHT_DEVIATION, size=size)).astype(np.float32)

    norm_and_projections = [vector(h, 1), vector(h), matrix(h, 3 * h), vector(3 * h), matrix(h, h), vector(h)]
    return [
        *norm_and_projections,
        vector(h, 1),
        vector(h),
        matrix(h, inner),
        vector(inner),
        matrix(inner, h),
        vector(h),
    ]


def _block_program(case: Case, random: np.random.Generator) -> Program:
    x = random.normal(size=(1, case["hidden"])).astype(np.float32)
    return _block(case), [x, *_block_weights(case, random), *_cache(case, random)]


# ---------------------------------------------------------------- the next token


def _head(x: jax.Array, gain: jax.Array, bias: jax.Array, table: jax.Array) -> jax.Array:
    return jnp.argmax(_norm(x, gain, bias) @ table, axis=-1)


def _head_weights(case: Case, random: np.random.Generator) -> Arrays:
    h = case["hidden"]
    table = random.normal(scale=WEIGHT_DEVIATION, size=(h, case["vocabulary"])).astype(np.float32)
    return [np.ones(h, np.float32), np.zeros(h, np.float32), table]


def _head_program(case: Case, random: np.random.Generator) -> Program:
    return _head, [random.normal(size=(1, case["hidden"])).astype(np.float32), *_head_weights(case, random)]


def _model_program(case: Case, random: np.random.Generator) -> Program:
    """All layers and the head: one token of GPT-2 small, without its embedding."""
    block = _block(case)
    layers = [_block_weights(case, random) + _cache(case, random) for _ in range(case["layers"])]
    each = len(layers[0])

    def model(x: Any, *arrays: Any) -> Any:
        for i in range(case["layers"]):
            x = block(x, *arrays[i * each : (i + 1) * each])
        return _head(x, *arrays[case["layers"] * each :])

    x = random.normal(size=(1, case["hidden"])).astype(np.float32)
    return model, [x, *[array for layer in layers for array in layer], *_head_weights(case, random)]


_PROGRAMS: dict[str, Callable[[Case, np.random.Generator], Program]] = {
    "attention": _attention_program,
    "selection": _selection_program,
    "block": _block_program,
    "head": _head_program,
    "model": _model_program,
}
