"""Plans a CrypTen program by running it on zeros."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

import torch

from mpcache.protocols.correlation import Correlation, Shape, Tensors, has, tensors
from mpcache.protocols.plan import PlanSession
from mpcache.protocols.public import Factor
from mpcache.protocols.ring import FRACTION_BITS
from mpcache.protocols.session import Opening, Session

T = TypeVar("T")


class DryRunSession(PlanSession):
    """Plans a CrypTen program by running it on zeros: what CrypTen sends follows from shapes alone.

    CrypTen mixes its own CPU tensors into a computation, so the `meta` device of `PlanSession` is closed to it. A dry
    run therefore computes, but waits for nobody. The party is 0, which has zeros for whatever it should know.
    """

    device = torch.device("cpu")

    def run(self, protocol: Awaitable[T], part: str = "other") -> T:
        return Session.run(self, protocol, part)

    def take(self, correlation: Correlation) -> Tensors:
        super().take(correlation)
        return tensors(correlation.layout.fields, lambda field: _zeros(field.shape) if has(0, field) else None)

    def public(self, x: Factor, fraction_bits: int = FRACTION_BITS) -> torch.Tensor:
        super().public(x, fraction_bits)
        return Session.public(self, x, fraction_bits)

    def _round(self, requests: list[Opening]) -> None:
        super()._round(requests)
        for request in requests:
            if request.result is not None:
                request.result = _zeros(request.shape)


def _zeros(shape: Shape) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64)
