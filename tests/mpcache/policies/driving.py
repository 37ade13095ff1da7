"""Drive a policy by hand: random queries and keys of a small model, values that show where attention went."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mpcache.model.config import ModelConfig
from mpcache.policies import PolicySettings, policy_class
from tests.mpcache.policies.reference import Case


def small_config(layers: int, heads: int, key_value_heads: int, head_size: int) -> ModelConfig:
    return ModelConfig(
        family="llama",
        vocabulary=16,
        hidden=heads * head_size,
        intermediate=8,
        layers=layers,
        heads=heads,
        key_value_heads=key_value_heads,
        head_size=head_size,
        max_positions=512,
        norm_epsilon=1e-5,
        activation="silu",
    )


def random_case(
    settings: PolicySettings,
    n: int,
    new: int,
    heads: int = 4,
    key_value_heads: int = 2,
    layers: int = 1,
    head_size: int = 64,
    seed: int = 0,
) -> Case:
    """Scores of size 2: some tokens matter, none alone."""
    rng = np.random.default_rng(seed)
    queries = rng.normal(size=(layers, heads, n + new, head_size)) * 2 / head_size**0.5
    keys = rng.normal(size=(layers, key_value_heads, n + new, head_size))
    return Case(settings, queries.astype(np.float32).astype(np.float64), keys.astype(np.float32).astype(np.float64), n)


def attention(
    case: Case, backend: Any, share: Any = lambda x: x, block: int = 16, announced: list[int] | None = None
) -> list[Any]:
    """What the policy's attention gives for each generated token: (layers, heads, d) in the backend's own form.

    announced: filled with what the policy says beforehand that each step attends to, in tokens.
    Values are the positions' unit vectors, so that in plaintext the result is the attention to each position.
    """
    layers, heads, total, d = case.queries.shape
    r = heads // case.groups
    assert total <= d, "values are unit vectors"
    config = small_config(layers, heads, case.groups, d)
    cache = policy_class(case.settings.name)(case.settings, config, backend, case.n)
    queries = torch.tensor(case.queries).float().reshape(layers, case.groups, r, total, d)
    keys = torch.tensor(case.keys).float()
    values = torch.eye(total, d).expand(case.groups, total, d)
    ends = [*range(block, case.n, block), case.n, *range(case.n + 1, total + 1)]
    out = []
    for start, end in zip([0, *ends], ends, strict=False):
        if announced is not None and start >= case.n:
            announced.append(cache.attended())
        step = []
        for layer in range(layers):
            q = queries[layer, :, :, start:end].reshape(case.groups, r * (end - start), d)
            step.append(cache.attend(layer, share(q), share(keys[layer, :, start:end]), share(values[:, start:end])))
        cache.advance(end - start)
        if start >= case.n:
            out.append([x.reshape(heads, d) for x in step])
    return out
