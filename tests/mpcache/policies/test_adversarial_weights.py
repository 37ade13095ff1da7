"""Weights that are chosen to read the prompt: what the owner sees does not depend on whether it holds a certain token.

The first layer's scores are 8,000 for the token that every prompt begins with and 1.95 for others, within all bounds; a
target has -9,000. On the circle of 2^15 on which a softmax looks for its maximum each of the three then beats another,
the maximum comes out as 0, exp(1.45) wraps to -3.7, attention received turns negative, and eviction keeps fewer rows
than it should. The target's keys are too large for a norm, too, for the policy that keeps by keys. The layer writes
nothing to the residual stream, so that the answer is that of the layers after it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch

from mpcache.generation.loop import steps
from mpcache.generation.request import GenerationRequest
from mpcache.model.checkpoint import Checkpoint, weight_shapes
from mpcache.model.decoder import Decoder
from mpcache.policies import available_policies
from mpcache.protocols.backends.mpc import MpcBackend, masked_weight
from mpcache.protocols.local import run_parties
from mpcache.protocols.randomness import new_key
from mpcache.protocols.session import Session
from mpcache.protocols.shuffle import compact
from tests.asking import asked
from tests.mpcache.policies.driving import small_config
from tests.mpcache.policies.matrix import fitting
from tests.protocols.noise import Seen, destinations, watch

HEADS, HEAD_SIZE = 4, 8
FIRST, TARGET = 0, 1
PROMPT = [FIRST, 7, 3, 12, 5, 9, 14, 4, 11, 6, 2, 13, 8, 10]
WITH_TARGET = [*PROMPT[:3], TARGET, *PROMPT[4:]]
SETTINGS: dict[str, Any] = dict(
    budget=13,
    sinks=1,
    recent=1,
    keep_ratio=0.9,
    clusters=(2,),
    share_layers=1,
    unshared_layers=0,
    only_if_cheaper=False,
    evict_if_cheap=False,
    page=2,
    representatives=1,
    window=2,
    kernel=1,
    cluster=1,
    called=1,
)
ONE_BLOCK = 175_000
"""What a round is worth, so that all scores are compared at once: in a tree of smaller blocks one always wins."""
RETAINING = ("h2o", "keydiff", "mpcache", "snapkv", "tova")
"""Policies that evict by score, and so reveal destinations."""


def chosen_weights() -> Checkpoint:
    """As a decoder has them: an owner who wants this asks nobody whether weights are in range."""
    config = replace(small_config(2, HEADS, HEADS, HEAD_SIZE), rope_theta=1e12)  # of which the last pair hardly turns
    generator = torch.Generator().manual_seed(5)
    shapes = weight_shapes(config)
    tensors = {n: torch.randn(s, generator=generator) / s[1] ** 0.5 for n, s in shapes.items()}
    embedding = torch.randn(shapes["embedding"], generator=generator).sign()  # of one norm, all of them
    embedding[:4] = torch.tensor([1.0, 0, 0, 1])[:, None]
    embedding[1:4, FIRST], embedding[1:4, TARGET] = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    normed = (config.hidden / (config.hidden - 2)) ** 0.5  # what the norm makes of a one
    queries, keys = (torch.zeros(HEADS, HEAD_SIZE, config.hidden) for _ in range(2))
    queries[:, 3, 0] = 100 / normed
    keys[:, 3, 1:4] = torch.tensor([80, -90, 0.0195]) / normed
    keys[:, [0, 1, 2, 4, 5, 6], 2] = 15_000 / normed
    values = tensors["layers.0.queries_keys_values"][: config.hidden]
    tensors["layers.0.queries_keys_values"] = torch.cat([queries.flatten(0, 1), keys.flatten(0, 1), values])
    tensors["layers.0.attention_out"] = torch.zeros(shapes["layers.0.attention_out"])
    tensors["layers.0.feed_forward_out"] = torch.zeros(shapes["layers.0.feed_forward_out"])
    return Checkpoint(config, tensors | {"embedding": embedding}, "")


@pytest.fixture
def surplus(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[torch.Tensor]]:
    """Each party's shares of how many rows more than k eviction keeps, (blocks,) at a time."""
    counts: dict[int, list[torch.Tensor]] = defaultdict(list)

    async def counted(session: Session, x: torch.Tensor, keep: torch.Tensor, k: int) -> torch.Tensor:
        counts[session.party].append(keep.sum(1) - session.constant(torch.full_like(keep[:, 0], k)))
        return await compact(session, x, keep, k)

    monkeypatch.setattr("mpcache.protocols.backends.mpc.compact", counted)
    return counts


def what_the_owner_sees(checkpoint: Checkpoint, plan: GenerationRequest, prompt: list[int]) -> list[Seen]:
    key = new_key()
    masked = {name: masked_weight(key, name, checkpoint.tensors[name]) for name in weight_shapes(checkpoint.config)}

    def program(session: Session) -> list[Seen]:
        session.round_bytes = ONE_BLOCK
        owner, seen = session.party == 0, watch(session)
        backend = MpcBackend(session, key if owner else None, masked)
        decoder = Decoder(checkpoint.config, backend, checkpoint.tensors if owner else None)
        list(steps(decoder, plan, None if owner else prompt))
        return seen

    return run_parties(program, weight_key=key)[0]


@pytest.mark.parametrize("name", available_policies())
def test_the_owner_does_not_see_whether_the_prompt_holds_a_target(
    name: str, surplus: dict[int, list[torch.Tensor]]
) -> None:
    checkpoint, plan = chosen_weights(), asked(len(PROMPT), 1, policy=fitting(name, **SETTINGS))
    for prompt in (PROMPT, WITH_TARGET):
        surplus.clear()
        seen = what_the_owner_sees(checkpoint, plan, prompt)
        assert bool(destinations(seen)) == (name in RETAINING)
        if name in RETAINING:
            others = torch.cat([a + b for a, b in zip(surplus[0], surplus[1], strict=True)])
            assert bool(others.any()) == (prompt is WITH_TARGET), "the weights do what they were chosen for"
