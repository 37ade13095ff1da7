"""Public constants changed by one unit, as another processor's would be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import pytest
import torch

from mpcache.model import rotary
from mpcache.policies import PolicySettings
from mpcache.protocols import polynomial, softmax
from mpcache.protocols.public import reciprocals
from tests.mpcache.policies.matrix import small

Tamper = Callable[[pytest.MonkeyPatch], None]


def _rotary(patch: pytest.MonkeyPatch) -> None:
    original = rotary._chunk

    def changed(*arguments: Any) -> torch.Tensor:
        chunk = original(*arguments).clone()
        chunk[0, 5, 1] += 1
        return chunk

    patch.setattr(rotary, "_chunk", changed)


def _exponentials(patch: pytest.MonkeyPatch) -> None:
    table = softmax.exponential_powers().clone()
    table[77] += 1
    patch.setattr(softmax, "exponential_powers", lambda: table)


def _powers(patch: pytest.MonkeyPatch) -> None:
    original = polynomial.powers

    def changed(*arguments: Any) -> Iterator[torch.Tensor]:
        for power in original(*arguments):
            yield power + 1

    patch.setattr(polynomial, "powers", changed)


def fractions(module: str) -> Tamper:
    def tamper(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(f"mpcache.policies.{module}.Fraction", lambda *parts: Fraction(*parts) + UNIT)

    return tamper


def _reciprocals(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("mpcache.policies.infllm.reciprocals", lambda counts: reciprocals(counts) + float(UNIT))


UNIT = Fraction(1, 1 << 16)
TABLES: dict[str, Tamper] = {"rotary": _rotary, "exponentials": _exponentials, "powers": _powers}
FACTORS: dict[str, tuple[PolicySettings, Tamper]] = {
    "mpcache, mean": (small("mpcache"), fractions("mpcache")),
    "mpcache, extremes": (small("mpcache", representative="extremes"), fractions("mpcache")),
    "keydiff": (small("keydiff"), fractions("keydiff")),
    "infllm": (small("infllm"), _reciprocals),
    "recall": (small("recall"), fractions("recall")),
}
