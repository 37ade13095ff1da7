"""Every policy on secret shares against plaintext: the same decisions, attention and tokens, as planned to the byte,
and a transcript that does not depend on the prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mpcache.generation.loop import steps
from mpcache.model.checkpoint import Checkpoint, weight_shapes
from mpcache.model.decoder import Decoder
from mpcache.policies import PolicySettings, available_policies
from mpcache.protocols.backends.mpc import MpcBackend
from mpcache.protocols.local import run_parties
from mpcache.protocols.ring import RING_BITS, decode
from mpcache.protocols.session import Cost, Session
from mpcache.protocols.shares import Secret
from tests.asking import asked
from tests.mpcache.policies.driving import attention, random_case, small_config
from tests.mpcache.policies.matrix import SETTINGS, small
from tests.mpcache.policies.private import (
    LOGIT_ERROR,
    Recording,
    compare_decisions,
    generate_plain,
    generate_privately,
    planning_in_full,
    recording_plain,
    recording_private,
    sharing,
    smallest_gap,
    watch,
)
from tests.mpcache.policies.reference import Case

pytestmark = pytest.mark.slow  # minutes; test_models.py and test_openings.py run every policy privately as well
DECIDING = ("h2o", "tova", "snapkv", "keydiff", "quest", "infllm", "mpcache", "recall")


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_same_decisions_and_attention_as_in_plaintext(settings: PolicySettings) -> None:
    case, plain, expected = decisive_case(settings)

    def program(session: Session) -> tuple[list[Any], Any]:
        backend = recording_private(MpcBackend(session), session)
        out = attention(case, backend, sharing(session))
        opened = [session.run(session.open(torch.stack([x.share for x in step]), RING_BITS)) for step in out]
        return [decode(x) for x in opened], backend.decisions

    (actual, decisions), _ = run_parties(program)
    assert compare_decisions(decisions, plain.decisions) == len(plain.decisions)
    assert bool(decisions) == (settings.name in DECIDING)
    for ours, theirs in zip(actual, expected, strict=True):
        assert (ours - torch.stack(theirs)).abs().max() < 2e-3


def decisive_case(settings: PolicySettings) -> tuple[Case, Recording, list[Any]]:
    """The first random case without a near tie, and what plaintext does with it."""
    for seed in range(500):
        case, plain = random_case(settings, 34, 10, layers=3, seed=seed), recording_plain()
        expected = attention(case, plain)
        if smallest_gap(plain.decisions) > 1:
            return case, plain, expected
    raise AssertionError("every case has a near tie")


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_what_is_sent_follows_from_public_values_alone(settings: PolicySettings) -> None:
    """Two prompts of one length: the same messages and correlations, in the same order, and those of the plan."""
    session = planning_in_full()
    planned = watch(session)
    attention(random_case(settings, 22, 5, layers=3, head_size=32), MpcBackend(session), meta)
    for seed in (1, 2):
        case = random_case(settings, 22, 5, layers=3, head_size=32, seed=seed)
        transcript, cost = run_parties(lambda s, case=case: watch_attention(case, s))[0]  # type: ignore[misc]
        assert transcript == planned
        assert cost == session.cost


def watch_attention(case: Case, session: Session) -> tuple[list[Any], Cost]:
    transcript = watch(session)
    attention(case, MpcBackend(session), sharing(session))
    return transcript, session.cost


def meta(x: torch.Tensor) -> Secret:
    return Secret(torch.empty(x.shape, dtype=torch.int64, device="meta"), 0)


@pytest.mark.parametrize("name", available_policies())
def test_a_generation_equals_plaintext_and_its_plan(name: str) -> None:
    checkpoint, plan = random_checkpoint(), asked(22, 4, prefill_block=16, policy=small(name))
    prompt = [10, 4, 12, 1, 2, 3, 11, 1, 6, 1, 2, 13, 13, 2, 7, 2, 13, 1, 3, 7, 1, 12]
    session = planning_in_full()
    planned = watch(session)
    list(steps(Decoder(checkpoint.config, MpcBackend(session)), plan, None))
    private, plain = (
        generate_privately(checkpoint, plan, prompt, record=False),
        generate_plain(checkpoint, plan, prompt),
    )
    assert private.transcript == planned
    assert private.cost == session.cost
    assert min(plain.margins) > LOGIT_ERROR, "the test's own model is too close to a tie"
    assert private.tokens == plain.tokens


def random_checkpoint() -> Checkpoint:
    config = small_config(3, 4, 2, 8)
    generator = torch.Generator().manual_seed(17)
    shapes = weight_shapes(config)
    tensors = {n: torch.randn(s, generator=generator) / s[1] ** 0.5 for n, s in shapes.items()}
    return Checkpoint(config, tensors, "")
