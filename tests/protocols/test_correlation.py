"""Fields have names: what is declared, dealt and used by name must agree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from mpcache.protocols.correlation import Corrected, Correlation, Dealer, Dealt, Fields, Random, Tensors, leaves
from mpcache.protocols.errors import PlanError
from mpcache.protocols.local import run_parties
from mpcache.protocols.session import Session

ONE = (1,)
VALUE = torch.zeros(ONE, dtype=torch.int64)


@dataclass(frozen=True)
class Declared(Correlation):
    declared: Any
    dealt: Any = field(default_factory=dict)

    def fields(self) -> Fields:
        return self.declared  # type: ignore[no-any-return]

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        return self.dealt  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Nested(Correlation):
    """Random and corrected values in a list, a part, and a list of parts; a part may be empty."""

    def fields(self) -> Fields:
        pair: Fields = {"r": Random(ONE, 8), "twice": Corrected(ONE, 8)}
        return {
            "r": Random(ONE, 8),
            "multiples": [Corrected(ONE, 8)] * 2,
            "part": pair,
            "parts": [pair, pair],
            "no": [],
        }

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        def twice(of: Tensors) -> Dealt:
            return {"twice": 2 * of.r}

        return {
            "no": [],
            "parts": [twice(part) for part in randoms.parts("parts")],
            "part": twice(randoms.part("part")),
            "multiples": [2 * randoms.r, 3 * randoms.r],
        }


def test_values_arrive_under_the_names_that_they_were_dealt_by_whatever_the_order() -> None:
    def program(session: Session) -> list[torch.Tensor]:
        shares = session.take(Nested())
        parts = [shares.part("part"), *shares.parts("parts")]
        return [shares.r, *shares.each("multiples"), *(x for part in parts for x in (part.r, part.twice))]

    r, twice, thrice, *pairs = [(a + b) % 256 for a, b in zip(*run_parties(program), strict=True)]
    assert torch.equal(twice, 2 * r % 256) and torch.equal(thrice, 3 * r % 256)
    for value, double in zip(pairs[::2], pairs[1::2], strict=True):
        assert torch.equal(double, 2 * value % 256)
    assert [type(f) for f in leaves(Nested().fields())] == [Random, Corrected, Corrected] + [Random, Corrected] * 3


MISMATCHES: dict[str, Declared] = {
    "another name": Declared({"r": Random(ONE), "b": Corrected(ONE)}, {"c": VALUE}),
    "nothing": Declared({"b": Corrected(ONE)}),
    "one too many": Declared({"b": Corrected(ONE)}, {"b": VALUE, "c": VALUE}),
    "a random one": Declared({"r": Random(ONE), "b": Corrected(ONE)}, {"r": VALUE, "b": VALUE}),
    "a list that is too short": Declared({"b": [Corrected(ONE)] * 2}, {"b": [VALUE]}),
    "a list that is too long": Declared({"b": [Corrected(ONE)]}, {"b": [VALUE] * 2}),
    "one for a list": Declared({"b": [Corrected(ONE)]}, {"b": VALUE}),
    "a list for one": Declared({"b": Corrected(ONE)}, {"b": [VALUE]}),
    "another name in a part": Declared({"p": {"b": Corrected(ONE)}}, {"p": {"c": VALUE}}),
    "another name in parts": Declared({"p": [{"b": Corrected(ONE)}]}, {"p": [{"c": VALUE}]}),
    "one for a part": Declared({"p": {"b": Corrected(ONE)}}, {"p": VALUE}),
}


@pytest.mark.parametrize("correlation", MISMATCHES.values(), ids=MISMATCHES)
def test_values_dealt_by_other_names_than_declared_are_refused(correlation: Declared) -> None:
    with pytest.raises(PlanError):
        Dealer((bytes(16), bytes(16))).correction(correlation)


@pytest.mark.parametrize("holder", [0, 1])
def test_a_field_that_is_not_there_is_named(holder: int) -> None:
    def program(session: Session) -> None:
        shares = session.take(Declared({"r": Random(ONE, holder=holder)}))
        with pytest.raises(PlanError, match="no field s, but r"):
            _ = shares.s
        if session.party == holder:
            assert shares.r.shape == ONE
        else:
            with pytest.raises(PlanError, match="r is no tensor here"):
                _ = shares.r

    run_parties(program)
