"""A prompt read with a budget: what each block sees, and that a private run does and sends what it should.

Sizes are made small, so that a few tens of tokens cross every boundary.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mpcache.generation.loop import steps
from mpcache.model.checkpoint import Checkpoint, weight_shapes
from mpcache.model.decoder import Decoder
from mpcache.policies import PolicySettings, available_policies, policy_class, policy_settings, reading
from mpcache.protocols.backends.mpc import MpcBackend
from mpcache.protocols.backends.plain import PlainBackend
from mpcache.protocols.errors import ConfigError
from mpcache.protocols.plan import PlanSession
from tests.asking import asked
from tests.mpcache.policies.driving import small_config
from tests.mpcache.policies.matrix import small
from tests.mpcache.policies.private import (
    LOGIT_ERROR,
    compare_decisions,
    generate_plain,
    generate_privately,
)

SINKS, RECENT, CLUSTER, STRIPES, BLOCK, N = 2, 3, 2, 2, 8, 45
CHOOSERS = (0, 1, 1)
"""The layer whose choice each layer reads by: the first for itself, then two share one."""
SPAN = CLUSTER * STRIPES
BUDGET = SINKS + RECENT + SPAN + 2 * SPAN
SPARSE = [name for name in available_policies() if name != "full"]


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = dict(SINKS=SINKS, RECENT=RECENT, CLUSTER=CLUSTER, STRIPES=STRIPES, SPAN=SPAN, LEAST=SINKS + RECENT + SPAN)
    for name, size in sizes.items():
        monkeypatch.setattr(reading, name, size)
    monkeypatch.setattr("mpcache.policies.base.LEAST", SINKS + RECENT + SPAN)


def seen_by(queries: torch.Tensor, keys: torch.Tensor, past: int) -> set[int]:
    """Tokens before a block that it sees, by definition. queries: the block's, of all heads, beside their keys."""
    inside = max(0, past - SINKS - RECENT) // SPAN * SPAN
    runs = [list(range(SINKS + i, SINKS + i + CLUSTER)) for i in range(0, inside, CLUSTER)]
    always = {*range(min(SINKS, past)), *range(SINKS + inside, past)}
    picks = (BUDGET - (past - inside)) // SPAN
    scores = [float((queries @ keys[:, run].mean(1)[:, None, :, None]).max()) for run in runs]
    for stripe in range(STRIPES):
        mine = sorted(range(stripe, len(runs), STRIPES), key=lambda i: -scores[i])
        always |= {token for i in mine[:picks] for token in runs[i]}
    return always


@pytest.mark.parametrize("name", SPARSE)
def test_blocks_see_what_is_always_seen_and_what_they_pick(name: str) -> None:
    settings = small(name, prefill_budget=BUDGET)
    layers = len(CHOOSERS)
    cache = policy_class(name)(settings, small_config(layers, 4, 2, 64), PlainBackend(), N)
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(layers, 2, 2, N, 64, generator=generator) / 4
    keys = torch.randn(layers, 2, N, 64, generator=generator)
    values = torch.eye(N, 64).expand(2, N, 64)
    received = torch.zeros(layers, 2, N)
    evict, last = cache.evict, cache.observed_queries()

    def check_received() -> None:
        for layer in range(layers if last else 0):
            assert torch.allclose(cache.received(layer), received[layer], atol=1e-5)
        evict()

    cache.evict = check_received  # type: ignore[method-assign]
    sparse = 0
    for start in range(0, N, BLOCK):
        m = len(range(N)[start : start + BLOCK])
        block = slice(start, start + m)
        for layer, chooser in enumerate(CHOOSERS):
            asking = queries[layer, :, :, block]
            out: Any = cache.attend(layer, asking.reshape(2, -1, 64), keys[layer, :, block], values[:, block])
            seen = set(range(start)) if start + m == N else seen_by(queries[chooser, :, :, block], keys[chooser], start)
            sparse += len(seen) < start
            scores = asking @ keys[layer, :, None].transpose(-1, -2)
            for i in range(m):
                hidden = [j for j in range(N) if j not in seen and not start <= j <= start + i]
                scores[:, :, i, hidden] = float("-inf")
            weights = scores.softmax(-1)
            assert torch.allclose(out.reshape(2, 2, m, 64)[..., :N], weights, atol=1e-5)
            received[layer] += weights[:, :, max(0, N - last - start) :].sum((1, 2))
        cache.advance(m)
    assert sparse > layers


def random_checkpoint() -> Checkpoint:
    config = small_config(len(CHOOSERS), 4, 2, 8)
    generator = torch.Generator().manual_seed(17)
    tensors = {n: torch.randn(s, generator=generator) / s[1] ** 0.5 for n, s in weight_shapes(config).items()}
    return Checkpoint(config, tensors, "")


@pytest.mark.parametrize("budget", [SINKS + RECENT + SPAN, BUDGET], ids=["local", "picking"])
@pytest.mark.parametrize("name", ["snapkv", "mpcache", "h2o"])
def test_a_private_run_equals_plaintext_and_its_plan(name: str, budget: int) -> None:
    policy: PolicySettings = small(name, prefill_budget=budget)
    checkpoint, plan = random_checkpoint(), asked(N, 3, prefill_block=BLOCK, policy=policy)
    session = PlanSession()
    list(steps(Decoder(checkpoint.config, MpcBackend(session)), plan, None))
    private = generate_privately(checkpoint, plan, prompt(0), record=False)
    taken = [item for item in private.transcript if not isinstance(item, list)]  # the others are messages
    assert taken == session.plan.correlations
    assert private.cost == session.cost
    for seed in range(8):
        plain = generate_plain(checkpoint, plan, prompt(seed))
        opened = generate_privately(checkpoint, plan, prompt(seed))
        same = compare_decisions(opened.decisions, plain.decisions) == len(plain.decisions)  # but for near ties
        picks = sum(decision.kind == "choose_runs" for decision in plain.decisions)
        assert (picks > 2) == (budget == BUDGET)
        if same and min(plain.margins) > LOGIT_ERROR:
            assert opened.tokens == plain.tokens
            return
    raise AssertionError("every prompt has a near tie")


def prompt(seed: int) -> list[int]:
    return torch.randint(1, 16, (N,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_a_large_budget_changes_nothing() -> None:
    checkpoint = random_checkpoint()
    margins = [
        generate_plain(
            checkpoint, asked(N, 2, prefill_block=BLOCK, policy=small("mpcache", prefill_budget=b)), prompt(0)
        ).margins
        for b in (0, 1000)
    ]
    assert margins[0] == pytest.approx(margins[1], abs=1e-5)


def test_a_budget_below_what_is_always_seen_is_refused() -> None:
    for name in SPARSE:
        policy_class(name).check(small(name, prefill_budget=SINKS + RECENT + SPAN))
        with pytest.raises(ConfigError, match="prefill_budget is 0"):
            policy_class(name).check(small(name, prefill_budget=SINKS + RECENT + SPAN - 1))


def test_the_full_cache_reads_everything() -> None:
    with pytest.raises(ConfigError, match="full"):
        policy_class("full").check(policy_settings("full", prefill_budget=500))
