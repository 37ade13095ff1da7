"""What a party sees under each cache policy is noise, and permutations, whatever queries, keys and values are.

Heads are the rows of tests/protocols/noise.py: all alike. What a policy decides for all of a layer's heads at once has
one block, of which only the permutation is checked.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from mpcache.policies import PolicySettings, available_policies, policy_class, reading
from mpcache.protocols.backends.mpc import MpcBackend
from mpcache.protocols.local import run_parties
from mpcache.protocols.session import Session
from mpcache.protocols.shares import Secret
from mpcache.protocols.softmax import DIFFERENCE_BITS
from tests.mpcache.policies.driving import small_config
from tests.mpcache.policies.matrix import fitting
from tests.protocols.noise import FAR_OUT, Seen, assert_noise, cyclic, destinations, watch

HEADS, HEAD_SIZE, LAYERS = 128, 2, 2
PROMPT, NEW = 8, 2
ONE, QUERY = 1 << 16, (1 << 16) // HEAD_SIZE

SMALL: dict[str, Any] = dict(
    budget=6,
    sinks=1,
    recent=1,
    keep_ratio=0.7,
    clusters=(2,),
    unshared_layers=0,
    share_heads=False,
    only_if_cheaper=False,
    evict_if_cheap=False,
    page=2,
    representatives=1,
    window=2,
    kernel=3,
    cluster=1,
    called=1,
)
SETTINGS = {name: fitting(name, **SMALL) for name in available_policies()} | {
    "mpcache, per head": fitting("mpcache", **SMALL, per_head=True),
    "mpcache, extremes": fitting("mpcache", **SMALL, representative="extremes"),
}
"""Whatever is listed: a new policy is tried by being there."""

TOKENS = {
    "a maximum that is none": (torch.tensor([8000, -9000] + [1.95] * (PROMPT + NEW - 2)) * ONE).long(),
    f"a circle of 2^{DIFFERENCE_BITS}": cyclic(PROMPT + NEW, DIFFERENCE_BITS),
    "ones": torch.full((PROMPT + NEW,), ONE),
    **{f"{value}": torch.full((PROMPT + NEW,), value) for value in FAR_OUT},
    **{f"a circle of 2^{bits}": cyclic(PROMPT + NEW, bits) for bits in (48, 63)},
}
"""An element of each token's key and value, and its score. Of the first ones, each of 8,000, -9,000 and the rest beats
another on the circle of 2^15 that a softmax's maximum is found on: it comes out as 0, and 1.95 above it wraps."""
RETAINING = ("h2o", "tova", "snapkv", "keydiff", "mpcache")
"""Policies that reveal destinations."""
USUAL = {(name, what) for name in available_policies() for what in list(TOKENS)[: 2 if name in RETAINING else 1]}
CASES = [
    pytest.param(settings, tokens, id=f"{name}: {what}", marks=[] if (name, what) in USUAL else [pytest.mark.slow])
    for (name, settings), (what, tokens) in itertools.product(SETTINGS.items(), TOKENS.items())
]


BLOCKS = (5,)
"""Where blocks of the prompt end, but the last one."""


def drive(
    session: Session, settings: PolicySettings, tokens: torch.Tensor, blocks: tuple[int, ...] = BLOCKS
) -> list[Seen]:
    """A prompt in blocks, then new tokens. Maxima are those of large blocks."""
    prompt, session.round_bytes = len(tokens) - NEW, 10**8
    seen, backend = watch(session, HEADS), MpcBackend(session)
    config = small_config(LAYERS, HEADS, HEADS, HEAD_SIZE)
    cache = policy_class(settings.name)(settings, config, backend, prompt)

    def secret(x: torch.Tensor) -> Secret:
        return Secret(session.constant(x[:, None].expand(HEADS, -1, HEAD_SIZE)), session.party)

    for start, end in itertools.pairwise((0, *blocks, *range(prompt, len(tokens) + 1))):
        for layer in range(LAYERS):
            queries, keys, values = torch.full((end - start,), QUERY), tokens[start:end], tokens[start:end]
            cache.attend(layer, *(secret(x) for x in (queries, keys, values)))
        cache.advance(end - start)
    return seen


@pytest.mark.parametrize(("settings", "tokens"), CASES)
def test_what_a_party_sees_is_noise_whatever_the_values(settings: PolicySettings, tokens: torch.Tensor) -> None:
    for seen in run_parties(lambda session: drive(session, settings, tokens)):
        assert_noise(seen)
        assert bool(destinations(seen)) == (settings.name in RETAINING)


@pytest.mark.parametrize(
    "what", [*list(TOKENS)[:2], *(pytest.param(w, marks=pytest.mark.slow) for w in list(TOKENS)[2:])]
)
def test_what_a_party_sees_of_clusters_that_are_kept_and_called_is_noise(what: str) -> None:
    """Of twelve clusters of a token each stripe keeps one of three, and a step calls one of the eight others."""
    settings = fitting("recall", **{**SMALL, "budget": 8})
    tokens = TOKENS[what].repeat(2)[: 15 + NEW]
    for seen in run_parties(lambda session: drive(session, settings, tokens)):
        assert_noise(seen)
        assert not destinations(seen)


READING = dict(SINKS=1, RECENT=1, CLUSTER=2, STRIPES=2, SPAN=4, LEAST=6, ALONE=0)
"""Sizes of a sparse prefill: of the 11 tokens before its third block, four clusters of two are picked from, by one
choice for both layers."""
READ = [
    pytest.param(
        name, tokens, id=f"{name}: {what}", marks=[] if number < 2 and name == "snapkv" else [pytest.mark.slow]
    )
    for name, (number, (what, tokens)) in itertools.product(("snapkv", "h2o"), enumerate(TOKENS.items()))
]


@pytest.mark.parametrize(("name", "tokens"), READ)
def test_what_a_party_sees_of_a_prompt_read_with_a_budget_is_noise(
    monkeypatch: pytest.MonkeyPatch, name: str, tokens: torch.Tensor
) -> None:
    for size, value in READING.items():
        monkeypatch.setattr(reading, size, value)
    monkeypatch.setattr("mpcache.policies.base.LEAST", READING["LEAST"])
    picked: list[int] = []

    def program(session: Session) -> list[Seen]:
        return drive(session, fitting(name, **SMALL, prefill_budget=7), tokens.repeat(2)[: 15 + NEW], (5, 11, 13))

    gather_runs = MpcBackend.gather_runs

    def counted(backend: MpcBackend, cached: Any, start: int, end: int, choice: Secret) -> Any:
        picked.append(choice.shape[-2])
        return gather_runs(backend, cached, start, end, choice)

    monkeypatch.setattr(MpcBackend, "gather_runs", counted)
    for seen in run_parties(program):
        assert_noise(seen)
        assert bool(destinations(seen)) == (name in RETAINING)
    assert picked == [1] * 2 * LAYERS  # by each party, in each layer
