"""A plan cut into stretches gives the bytes that one dealer gives, wherever it is cut and whoever makes a stretch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpcache.generation.plan import correlations
from mpcache.model.config import ModelConfig
from mpcache.policies import available_policies, policy_class
from mpcache.protocols.beaver import Forget, Mask, MaskProduct, MaskRows, MaskRuns, SquareSum
from mpcache.protocols.correlation import (
    Corrected,
    Correlation,
    Dealer,
    Dealt,
    Fields,
    Random,
    Tensors,
    Uses,
    corrections,
)
from mpcache.protocols.errors import PlanError
from mpcache.protocols.stretches import FIRST_BYTES, Stretches
from tests.asking import asked
from tests.mpcache.policies.matrix import SETTINGS, small

SEEDS, KEY = (bytes(range(16)), bytes(range(1, 17))), bytes(range(2, 18))
MODELS = {
    "llama": ModelConfig("llama", 64, 16, 24, 3, 4, 2, 4, 128, 1e-5, "silu", 10_000.0),
    "gpt2": ModelConfig("gpt2", 64, 16, 32, 3, 4, 4, 4, 128, 1e-5, "gelu_tanh"),
}
MORE = [("gpt2", "full", "crypten"), *(("llama", name, "mpc") for name in SETTINGS if name not in available_policies())]
CASES = [
    *itertools.product(MODELS, available_policies(), ["mpc"]),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE),
]


@cache
def plan(family: str, policy: str, backend: str) -> list[Correlation]:
    """A prompt of three blocks and four tokens, drawn with a temperature, or as many passes with drafts where a policy
    takes them: every policy evicts, selects and goes on."""
    settings = SETTINGS[policy]
    draft = 2 if backend == "mpc" and not policy_class(settings.name).refuses_drafts(settings) else 0
    temperature = 0.5 if backend == "mpc" else 0.0
    request = asked(37, 4, policy=settings, backend=backend, temperature=temperature, draft=draft)
    return list(correlations(MODELS[family], request))


@cache
def made_by_one(family: str, policy: str, backend: str) -> bytes:
    dealer = Dealer(SEEDS, KEY)
    return b"".join(dealer.correction(correlation) for correlation in plan(family, policy, backend))


def made_by(dealers: list[Dealer], stretches: Stretches, plan: list[Correlation]) -> bytes:
    made = []
    for stretch in stretches.cut(plan):
        made.append(stretch.corrections(dealers[stretch.place]))
        assert len(made[-1]) == stretch.nbytes
    return b"".join(made)


class Careful(Dealer):
    """A dealer that gives a correlation what it says that it uses, and nothing else: it makes them one by one."""

    uses = Uses()

    def corrections(self, numbered: Sequence[tuple[int, Correlation]]) -> list[bytes]:
        made = []
        for number, correlation in numbered:
            self.uses = correlation.uses()
            made += super().corrections([(number, correlation)])
        return made

    def keep(self, handle: int, mask: torch.Tensor) -> None:
        assert handle == self.uses.keeps
        super().keep(handle, mask)

    def kept(self, handle: int) -> torch.Tensor:
        assert handle in self.uses.masks
        return super().kept(handle)

    def grow(self, handle: int, rows: torch.Tensor, dim: int) -> torch.Tensor:
        assert handle in self.uses.masks
        return super().grow(handle, rows, dim)

    def forget(self, handle: int) -> None:
        assert handle in self.uses.forgets
        super().forget(handle)

    def weight_mask(self, name: str, shape: tuple[int, ...], bits: int) -> torch.Tensor:
        assert name == self.uses.weight
        return super().weight_mask(name, shape, bits)

    @property
    def has(self) -> set[int]:
        return set(self._kept)

    @property
    def weights(self) -> set[str]:
        return set(self._weight_masks)


class Chosen(Stretches):
    """Each correlation is made where somebody chose, if it does not matter."""

    def __init__(self, places: Sequence[int]) -> None:
        super().__init__(2, 1 << 20, lambda: 0, small_bytes=1 << 40)
        self._choice = iter(places)

    def _wanted(self, uses: Uses) -> int | None:
        must = super()._wanted(uses)
        return next(self._choice) if must is None else must


@pytest.mark.parametrize(("family", "policy", "backend"), CASES)
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data(), places=st.integers(2, 4), small=st.sampled_from([0, 500, 1 << 40]))
def test_every_cut_gives_the_same_bytes(
    data: st.DataObject, places: int, small: int, family: str, policy: str, backend: str
) -> None:
    most = data.draw(st.sampled_from([1, 300, 5_000, 100_000, 1 << 20]), "most bytes")
    order = data.draw(st.lists(st.integers(0, places - 1), min_size=1, max_size=7), "where what is free is made")
    free = itertools.cycle(order)
    kind = data.draw(st.sampled_from([Dealer, Careful]), "all of a stretch at once, or one by one")
    dealers = [kind(SEEDS, KEY) for _ in range(places)]
    made = made_by(dealers, Stretches(places, most, lambda: next(free), small), plan(family, policy, backend))
    assert made == made_by_one(family, policy, backend)


@pytest.mark.parametrize("places", [2, 3])
@pytest.mark.parametrize("cheap", [0, 1 << 40])
@pytest.mark.parametrize("most", [1, 5_000, 1 << 20])
def test_every_cut_of_a_sparse_prefill_gives_the_same_bytes(places: int, cheap: int, most: int) -> None:
    """Runs of cached masks, laid out at a place that may lack them or have more of them."""
    turns = itertools.cycle(range(places))
    dealers: list[Dealer] = [Careful(SEEDS, KEY) for _ in range(places)]
    made = made_by(dealers, Stretches(places, most, lambda: next(turns), cheap), sparse())
    assert made == b"".join(corrections(Dealer(SEEDS, KEY), sparse()))


@cache
def sparse() -> list[Correlation]:
    """Two blocks of the prompt pick of what is cached, and another one follows."""
    model = replace(MODELS["llama"], layers=1, max_positions=512)
    request = asked(448, 1, prefill_block=64, policy=small("snapkv", prefill_budget=200))
    found = list(correlations(model, request))
    assert sum(isinstance(correlation, MaskRuns) for correlation in found) >= 4
    return found


def test_what_a_place_lacks_is_made_again_and_forgotten_after() -> None:
    """Rows that grow at one place and are joined at another; their source is gone by then; and a query."""
    rows, query = Mask((2, 3), 48, 1, append=0), Mask((2, 3), 48, 2)
    joined, gone = MaskRows(3, ((1, 0, 1), (1, 2, 4))), Forget((1,))
    product = MaskProduct("matmul_transposed", 2, 3, (2, 3), 48, forget=(2,))
    plan = [rows, rows, joined, gone, query, product, SquareSum(3, (3, 1))]
    one = Dealer(SEEDS)
    expected = b"".join(one.correction(correlation) for correlation in plan)
    for places in itertools.product(range(2), repeat=len(plan)):
        dealers, stretches = [Careful(SEEDS) for _ in range(2)], Chosen(places)
        assert made_by(dealers, stretches, plan) == expected
        assert sum(len(dealer.has) for dealer in dealers) <= 2  # the joined rows, and their source until it is told


def test_the_weights_of_a_layer_are_at_one_place_and_its_cache_grows_at_one() -> None:
    dealers = [Careful(SEEDS, KEY) for _ in range(2)]
    stretches = Stretches(2, 1 << 14, lambda: 0)
    assert made_by(dealers, stretches, plan("gpt2", "full", "mpc")) == made_by_one("gpt2", "full", "mpc")
    layers = [{name.rpartition(".")[0] for name in dealer.weights} for dealer in dealers]
    assert layers[0] | layers[1] == {"", "layers.0", "layers.1", "layers.2"} and not layers[0] & layers[1] - {""}
    grow = list(
        dict.fromkeys(c.handle for c in plan("gpt2", "full", "mpc") if isinstance(c, Mask) and c.append is not None)
    )
    keys_and_values = [set(grow[:2]), set(grow[2:4]), set(grow[4:])]
    assert [dealer.has & set(grow) for dealer in dealers] == [
        keys_and_values[1],
        keys_and_values[0] | keys_and_values[2],
    ]


def test_the_first_stretch_is_small_and_the_others_grow() -> None:
    sizes = [stretch.nbytes for stretch in Stretches(1, 1 << 20, lambda: 0).cut(plan("llama", "full", "mpc"))]
    limits = [min(FIRST_BYTES << i, 1 << 20) for i in range(len(sizes))]
    largest = max(correlation.correction_bytes() for correlation in plan("llama", "full", "mpc"))
    assert all(limit <= size < limit + largest for size, limit in zip(sizes[:-1], limits, strict=False))


def test_a_mask_that_is_kept_and_deals_something_cannot_be_made_twice() -> None:
    class Both(Correlation):
        def fields(self) -> Fields:
            return {"a": Random((1,)), "b": Corrected((1,))}

        def uses(self) -> Uses:
            return Uses(keeps=1)

        def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
            return {"b": randoms.a}

    with pytest.raises(PlanError, match="cannot be made twice"):
        list(Stretches(2, 1, lambda: 0).cut([Both()]))
