"""mpcache is never dearer than the full cache, whatever the length and the network: it leaves out what does not pay.

GPT-2's shape, by the plan: bytes and rounds are exact, seconds the estimate of `mpcache plan`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from mpcache.generation.network import NETWORKS
from mpcache.generation.price import Price, _decode, _scaled, price, seconds, settled
from mpcache.generation.request import FULL, GenerationRequest
from mpcache.model.shapes import model_shape
from mpcache.policies import PolicySettings, policy_class, policy_settings
from mpcache.policies.mpcache import MPCache, MPCacheSettings
from mpcache.protocols.backends.plain import PlainBackend

MODEL = replace(model_shape("gpt2"), max_positions=1 << 18)
SLACK = 1.02
NEW = 5
"""Tokens: a cluster is closed once meanwhile."""
QUICK = (1, 17, 200, 492, 1024, 2048)
LONGER = (2, 16, 64, 100, 150, 257, 333, 512, 700, 1500, 1900, 3001, 4096, 8192, 16_385, 32_768, 65_537, 131_072)


@cache
def steps(policy: PolicySettings, tokens: int, network: str) -> list[Price]:
    """The prices of the first decode steps."""
    request = settled(
        MODEL, GenerationRequest(prompt_tokens=tokens, max_new_tokens=NEW, policy=policy, network=network)
    )
    return _scaled(MODEL, request, *request.policy.layer_pattern(), _decode)


def total(one: Price) -> int:
    return one.cost.online_bytes + one.cost.correction_bytes


@pytest.mark.parametrize("tokens", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in LONGER)])
@pytest.mark.parametrize("network", NETWORKS)
def test_no_step_takes_more_than_with_the_full_cache(network: str, tokens: int) -> None:
    for ours, full in zip(
        steps(policy_settings("mpcache"), tokens, network), steps(FULL, tokens, network), strict=True
    ):
        assert total(ours) <= SLACK * total(full)
        assert ours.cost.rounds <= SLACK * full.cost.rounds
        assert seconds(ours, NETWORKS[network]) <= SLACK * seconds(full, NETWORKS[network])


@pytest.mark.parametrize("tokens", [1, 100, 512, pytest.param(2048, marks=pytest.mark.slow)])
def test_the_first_token_takes_no_more_than_with_the_full_cache(tokens: int) -> None:
    """Eviction included, which comes before it."""
    for name, network in NETWORKS.items():
        ours, full = (
            price(MODEL, GenerationRequest(prompt_tokens=tokens, max_new_tokens=1, policy=policy, network=name))
            for policy in (policy_settings("mpcache"), FULL)
        )
        before = ours.prefill + ours.eviction
        assert total(before) <= SLACK * total(full.prefill)
        assert before.cost.rounds <= SLACK * full.prefill.cost.rounds
        assert seconds(before, network) <= SLACK * seconds(full.prefill, network)


def selects(settings: MPCacheSettings, prompt_tokens: int, network: str) -> tuple[bool, bool]:
    """(whether tokens are evicted, whether a pair of layers selects) after a prompt."""
    policy = policy_class(settings.name)(
        settings, MODEL, PlainBackend(round_bytes=NETWORKS[network].round_bytes), prompt_tokens
    )
    assert isinstance(policy, MPCache)
    policy.past = prompt_tokens
    kept, pair = policy.keep(), range(1, 3)
    return kept < prompt_tokens, policy.pays(pair, kept) if settings.only_if_cheaper else policy.selects(pair, kept)


def test_what_pays_depends_on_length_and_network() -> None:
    default = MPCacheSettings()
    assert selects(default, 100, "lan") == (False, False)
    assert selects(default, 492, "loopback") == (False, True)
    assert selects(default, 492, "wan") == (False, False), "there a round is dear"
    assert selects(default, 8192, "wan") == (True, True)


def test_whoever_asks_decides_for_the_same_number_of_layers() -> None:
    """A price from few layers stands for the whole model: so what is decided once is decided before."""
    short, long = (
        settled(MODEL, GenerationRequest(prompt_tokens=n, max_new_tokens=2, policy=policy_settings("mpcache"))).policy
        for n in (200, 8192)
    )
    assert isinstance(short, MPCacheSettings) and isinstance(long, MPCacheSettings)
    assert (short.keep_ratio, long.keep_ratio) == (1.0, 0.25)
    assert not short.evict_if_cheap and not long.evict_if_cheap


def test_a_policy_that_is_told_to_always_evicts_and_selects() -> None:
    always = MPCacheSettings(only_if_cheaper=False, evict_if_cheap=False)
    assert selects(always, 100, "wan") == (True, False), "25 tokens are kept, of which the budget has 27"
    assert selects(always, 492, "wan") == (True, True)
