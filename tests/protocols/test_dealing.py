"""Corrections that are made together, or before their turn, are those of one by one."""

import hashlib
from collections.abc import Iterable

import pytest

from mpcache.generation.plan import correlations
from mpcache.generation.request import GenerationRequest
from mpcache.model.shapes import SHAPES, model_shape
from mpcache.protocols import correlation, linear
from mpcache.protocols.correlation import Correlation, Dealer, corrections
from mpcache.protocols.errors import TooLarge
from mpcache.protocols.sampling import GumbelNoise
from mpcache.protocols.truncation import TruncationMask
from tests.mpcache.policies.matrix import SETTINGS, TAKING_DRAFTS

SEEDS, KEY = (bytes(16), bytes(range(16))), bytes(range(1, 17))


def digest(data: Iterable[bytes]) -> str:
    whole = hashlib.sha256()
    for part in data:
        whole.update(part)
    return whole.hexdigest()


def one_by_one(plan: list[Correlation]) -> str:
    dealer = Dealer(SEEDS, KEY)
    return digest(dealer.correction(each) for each in plan)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_plans_corrections_are_those_of_one_by_one(name: str, temperature: float) -> None:
    request = GenerationRequest(
        prompt_tokens=21, max_new_tokens=4, temperature=temperature, policy=SETTINGS[name], prefill_block=12
    )
    plan = list(correlations(model_shape("tiny", 3), request))
    assert digest(corrections(Dealer(SEEDS, KEY), plan)) == one_by_one(plan)


@pytest.mark.parametrize("name", TAKING_DRAFTS)
def test_corrections_of_passes_with_drafts_are_those_of_one_by_one(name: str) -> None:
    request = GenerationRequest(prompt_tokens=21, max_new_tokens=4, policy=SETTINGS[name], block=12, draft=2)
    plan = list(correlations(model_shape("tiny", 3), request))
    assert digest(corrections(Dealer(SEEDS, KEY), plan)) == one_by_one(plan)


@pytest.mark.parametrize("horizon", [1, 7, 1 << 14])
@pytest.mark.parametrize("nbytes", [1, 3000, 1 << 30])
def test_whatever_is_made_together(monkeypatch: pytest.MonkeyPatch, horizon: int, nbytes: int) -> None:
    plan = list(correlations(SHAPES["tiny"], GenerationRequest(prompt_tokens=9, max_new_tokens=4)))
    expected = one_by_one(plan)
    monkeypatch.setattr(correlation, "FIRST", horizon)
    monkeypatch.setattr(correlation, "MOST", 2 * horizon)
    for bound in ("EARLY_BYTES", "FIRST_BYTES", "TOGETHER_BYTES"):
        monkeypatch.setattr(correlation, bound, nbytes)
    assert digest(corrections(Dealer(SEEDS, KEY), plan)) == expected


def test_a_weight_is_multiplied_once_for_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    times_rows = linear.times_rows

    def counted(x, weight, bits):  # type: ignore[no-untyped-def]
        rows.append(x[..., 0].numel())
        return times_rows(x, weight, bits)

    monkeypatch.setattr(linear, "times_rows", counted)
    plan = correlations(SHAPES["tiny"], GenerationRequest(prompt_tokens=9, max_new_tokens=30))
    for _ in corrections(Dealer(SEEDS, KEY), plan):
        pass
    assert max(rows) >= 10


def test_what_the_dealer_draws_for_itself_neither_party_draws() -> None:
    layout = GumbelNoise((5,), 1.0, 12).layout
    assert layout.starts == [[None, None, 0], [0, None, None]] and layout.drawn_bytes == [40, None, 40]


def test_a_correlation_that_is_too_large_is_refused_among_others() -> None:
    plan = [TruncationMask((4,), 48, 16), TruncationMask((1 << 20,), 48, 16)]
    with pytest.raises(TooLarge):
        list(corrections(Dealer(SEEDS, KEY, largest_bytes=1 << 20), plan))
