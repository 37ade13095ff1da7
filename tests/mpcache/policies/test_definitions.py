"""Every policy in plaintext against its definition (reference.py): the same positions attended to, the same weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mpcache.policies import PolicySettings, available_policies
from mpcache.protocols.backends.plain import PlainBackend
from tests.mpcache.policies import reference
from tests.mpcache.policies.driving import attention, random_case
from tests.mpcache.policies.matrix import SETTINGS, small


def compare(case: reference.Case) -> None:
    expected = reference.run(case)
    actual = attention(case, PlainBackend())
    assert len(actual) == len(expected) == case.total - case.n
    for step, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        weights = torch.stack(ours).numpy()[..., : case.total]
        assert np.array_equal(weights > 0, theirs > 0), f"other positions at generated token {step}"
        assert np.abs(weights - theirs).max() < 1e-5


def test_the_reference_covers_every_policy() -> None:
    assert set(reference.POLICIES) == set(available_policies())
    assert {settings.name for settings in SETTINGS.values()} == set(available_policies())


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(("heads", "key_value_heads"), [(4, 2), (2, 2)], ids=["grouped queries", "one query a key"])
def test_positions_and_weights(settings: PolicySettings, heads: int, key_value_heads: int) -> None:
    """Three layers: a group of two and one that is left over; enough tokens for clusters to close while decoding."""
    compare(random_case(settings, 40, 20, heads, key_value_heads, layers=3))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("n", [1, 2, 5, 13, 29], ids=lambda n: f"{n} prompt tokens")
def test_short_prompts(settings: PolicySettings, n: int) -> None:
    """A single token, fewer than a cluster, no multiple of one; the cache then grows through every size."""
    compare(random_case(settings, n, 30, layers=2, seed=n))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_equal_scores_go_by_position(settings: PolicySettings) -> None:
    """No query tells two keys apart, and every other key equals its neighbour."""
    case = random_case(settings, 30, 12, layers=2)
    case.queries[:] = 0
    case.keys[:, :, 1::2] = case.keys[:, :, ::2]
    compare(case)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_budget_of_all_tokens_equals_full(settings: PolicySettings) -> None:
    case = random_case(replace(settings, budget=60), 40, 20, layers=2)
    whole = attention(replace_settings(case, small("full")), PlainBackend())
    for ours, theirs in zip(attention(case, PlainBackend()), whole, strict=True):
        assert torch.allclose(torch.stack(ours), torch.stack(theirs), atol=1e-6)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_policy_attends_to_as_many_tokens_as_it_says(settings: PolicySettings) -> None:
    """And to no more than the budget and the tokens generated so far; a skipped layer is exempt."""
    case = random_case(settings, 40, 20, layers=2)
    announced: list[int] = []
    budget, skipped = settings.budget_tokens(case.n), getattr(settings, "skip_layers", 0)
    for step, weights in enumerate(attention(case, PlainBackend(), announced=announced)):
        seen = (torch.stack(weights) > 0).sum(-1)[skipped:]
        assert (seen == announced[step]).all()
        assert settings.name == "full" or announced[step] <= budget + step + 1


def replace_settings(case: reference.Case, settings: PolicySettings) -> reference.Case:
    return replace(case, settings=settings)
