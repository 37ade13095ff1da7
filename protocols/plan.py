"""Planning: the same protocols on shape-only tensors, with a counting transport.

A plan session runs any protocol on torch's `meta` device. It yields, without touching a value, every correlation in
order and every message's size: what the dealer works from, what `mpcache plan` prices, and what a real run is held
against, byte for byte.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from protocols.correlation import Corrected, Correlation, Random
from protocols.session import Cost, Opening, Session

T = TypeVar("T")


@dataclass
class Plan:
    """Correlations in order, messages as (bytes from party 0, bytes from party 1), and their sums."""

    correlations: list[Correlation] = field(default_factory=list)
    messages: list[tuple[int, int]] = field(default_factory=list)

    def cost(self) -> Cost:
        """The cost as party 0 counts it."""
        return Cost(
            sum(m[0] for m in self.messages),
            sum(m[1] for m in self.messages),
            sum(c.correction_bytes() for c in self.correlations),
            len(self.messages),
        )


_ELEMENTWISE = {
    getattr(torch.Tensor, f"__{name}__")
    for name in ("add", "radd", "sub", "rsub", "mul", "rmul", "and", "rand", "xor", "rxor", "or", "lshift", "rshift")
} | {torch.add, torch.sub, torch.mul, torch.Tensor.add, torch.Tensor.sub, torch.Tensor.mul}


class ShapeArithmetic(TorchFunctionMode):
    """Elementwise arithmetic of int64 `meta` tensors by their shapes alone: 20 times faster than torch."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _ELEMENTWISE and len(args) == 2 and not kwargs:
            x, y = args
            if isinstance(y, torch.Tensor):
                if x.dtype == y.dtype == torch.int64 and x.device.type == y.device.type == "meta":
                    shape = x.shape if x.shape == y.shape else torch.broadcast_shapes(x.shape, y.shape)
                    return torch.empty(shape, dtype=torch.int64, device="meta")
            elif isinstance(y, int) and x.dtype == torch.int64 and x.device.type == "meta":
                return torch.empty(x.shape, dtype=torch.int64, device="meta")
        return func(*args, **(kwargs or {}))


class PlanSession(Session):
    """A session without a peer: runs on `meta` tensors and writes the plan."""

    device = torch.device("meta")
    planning = True

    def __init__(self) -> None:
        self.party = 0
        self.cost = Cost()
        self.parts = {}
        self._handles = 0
        self.plan = Plan()

    def run(self, protocol: Awaitable[T], part: str = "other") -> T:
        with ShapeArithmetic():
            return super().run(protocol, part)

    def take(self, correlation: Correlation) -> list[torch.Tensor | None]:
        self.plan.correlations.append(correlation)
        self.cost.correction_bytes += correlation.correction_bytes()
        return [
            None if isinstance(f, Random) and f.holder == 1 else torch.empty(f.shape, dtype=torch.int64, device="meta")
            for f in correlation.fields()
            if isinstance(f, Random | Corrected)
        ]

    def _round(self, requests: list[Opening]) -> None:
        sent = sum(r.nbytes() for r in requests if r.receiver != 0)
        received = sum(r.nbytes() for r in requests if r.receiver != 1)
        self.plan.messages.append((sent, received))
        self._count(sent, received)
        for r in requests:
            if r.receiver != 1:
                r.result = torch.empty(r.shape, dtype=torch.int64, device="meta")

    def next_part(self) -> Plan:
        """The plan since the last call; forgets it, so that a long plan needs little memory."""
        part, self.plan = self.plan, Plan()
        return part
