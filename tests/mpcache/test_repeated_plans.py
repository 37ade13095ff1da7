"""A plan that repeats what it planned before is the plan in full: correlation for correlation, message for message."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.generation.plan import plan_parts
from mpcache.generation.request import GenerationRequest
from mpcache.model.config import ModelConfig
from mpcache.model.shapes import SHAPES
from mpcache.protocols.backends.planned import planned_once
from mpcache.protocols.beaver import Masked, mask, multiply_masked
from mpcache.protocols.pending import Product
from mpcache.protocols.plan import Passages, Plan, PlanSession, ShapeArithmetic
from mpcache.protocols.public import Constants
from mpcache.protocols.session import Session
from mpcache.protocols.shares import Secret
from tests.mpcache.policies.matrix import SETTINGS, TAKING_DRAFTS

FAMILIES = {
    "llama": replace(SHAPES["tiny"], layers=5),
    "gpt2": replace(SHAPES["tiny"], family="gpt2", activation="gelu_tanh", key_value_heads=4, layers=4),
}


def in_full(model: ModelConfig, request: GenerationRequest) -> list[Plan]:
    """Nothing is repeated while public constants are noted."""
    return list(plan_parts(model, request, constants=Constants()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SETTINGS)
@settings(max_examples=3, deadline=None, derandomize=True)
@given(prompt=st.integers(17, 60), new=st.integers(2, 7), temperature=st.sampled_from([0.0, 0.7]))
def test_a_repeated_plan_is_the_plan_in_full(name: str, family: str, prompt: int, new: int, temperature: float) -> None:
    request = GenerationRequest(
        prompt_tokens=prompt, max_new_tokens=new, temperature=temperature, policy=SETTINGS[name], prefill_block=16
    )
    assert list(plan_parts(FAMILIES[family], request)) == in_full(FAMILIES[family], request)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", TAKING_DRAFTS)
def test_a_repeated_plan_of_passes_with_drafts_is_the_plan_in_full(name: str, family: str) -> None:
    request = GenerationRequest(prompt_tokens=40, max_new_tokens=5, policy=SETTINGS[name], block=16, draft=2)
    assert list(plan_parts(FAMILIES[family], request)) == in_full(FAMILIES[family], request)


class _OnSession:
    """A backend of which one method uses a mask that it is not given."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.hidden: list[Masked] = []

    @planned_once
    def opened(self, x: Secret) -> Masked:
        return self.session.run(mask(self.session, x.share))

    @planned_once
    def squared(self, x: Masked) -> Secret:
        return Secret(multiply_masked(self.session, x, x), self.session.party)

    @planned_once
    def with_hidden(self, x: Masked) -> Secret:
        return Secret(multiply_masked(self.session, x, self.hidden[-1]), self.session.party)

    @planned_once
    def product(self, x: Secret) -> Product:
        return Product(x.share, self.session)

    @planned_once
    def used(self, *values: Secret) -> Secret:
        return Secret(sum((x.share.sum(-1) for x in values), torch.tensor(0)), self.session.party)

    @planned_once
    def given_back(self, x: Secret) -> Secret:
        return x


def planned(noting: bool, *methods: str) -> Plan:
    session = PlanSession()
    session.constants = Constants() if noting else None
    backend = _OnSession(session)
    with ShapeArithmetic():
        for _ in range(3):
            backend.hidden.append(backend.opened(value()))
            for method in methods:
                getattr(backend, method)(backend.opened(value()))
    return session.next_part()


def value() -> Secret:
    return Secret(torch.empty(4, dtype=torch.int64, device="meta"), 0)


def test_masks_have_their_own_numbers_in_each_repetition() -> None:
    assert planned(False, "squared") == planned(True, "squared")
    handles = [c.left for c in planned(False, "squared").correlations if hasattr(c, "left")]  # type: ignore[attr-defined]
    assert len(set(handles)) == 3


def test_what_uses_a_mask_from_elsewhere_is_not_repeated() -> None:
    assert planned(False, "squared", "with_hidden") == planned(True, "squared", "with_hidden")


def truncations(use: Callable[[_OnSession], None], noting: bool = False) -> int:
    """Of three repetitions."""
    session = PlanSession()
    session.constants = Constants() if noting else None
    backend = _OnSession(session)
    with ShapeArithmetic():
        for _ in range(3):
            use(backend)
    return len(session.next_part().messages)


def used_twice(backend: _OnSession) -> None:
    x = backend.product(value())
    backend.used(x)
    backend.used(x)


def used_after_a_part(backend: _OnSession) -> None:
    x = backend.product(value())
    backend.used(x[:1])
    backend.used(x)
    backend.used(x[1:])


def used_as_one_or_two(backend: _OnSession) -> None:
    x = backend.product(value())
    backend.used(x, x)
    backend.used(backend.product(value()), backend.product(value()))


def used_as_it_was_given(backend: _OnSession) -> None:
    x = backend.product(value())
    backend.used(backend.given_back(x))
    backend.used(x)


@pytest.mark.parametrize(
    ("use", "each"), [(used_twice, 1), (used_after_a_part, 1), (used_as_one_or_two, 3), (used_as_it_was_given, 1)]
)
def test_a_product_is_truncated_once_in_each_repetition(use: Callable[[_OnSession], None], each: int) -> None:
    assert truncations(use) == truncations(use, noting=True) == 3 * each


def test_what_is_kept_is_the_next_sessions_own() -> None:
    passages = Passages()
    for _ in range(2):
        session = PlanSession(passages=passages)
        with ShapeArithmetic():
            product = _OnSession(session).product(value())
            assert len(product.share) == 4
        assert len(session.next_part().messages) == 1
