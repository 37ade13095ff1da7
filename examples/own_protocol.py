"""A new protocol: the square of a shared value, with one opening. Its plan is the protocol itself, run on shapes."""

from dataclasses import dataclass

import torch

from mpcache.protocols.correlation import Corrected, Correlation, Dealer, Dealt, Fields, Random, Shape, Tensors
from mpcache.protocols.local import run_shared
from mpcache.protocols.plan import plan_of
from mpcache.protocols.session import Session


@dataclass(frozen=True)
class SquarePair(Correlation):
    """A mask and its square."""

    shape: Shape

    def fields(self) -> Fields:
        return {"a": Random(self.shape), "a_squared": Corrected(self.shape)}

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        return {"a_squared": randoms.a * randoms.a}


async def square(session: Session, x: torch.Tensor) -> torch.Tensor:
    """Shares of x^2 modulo 2^64. Rounds: 1. Opened: x - a, with a uniform and used once."""
    shares = session.take(SquarePair(tuple(x.shape)))
    f = await session.open(x - shares.a, 64)
    return session.constant(f * f) + 2 * f * shares.a + shares.a_squared  # (f + a)^2


print(run_shared(square, torch.tensor([3, -5, 1 << 20])))
print(plan_of(square, (3,)).cost())
