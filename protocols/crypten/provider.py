"""CrypTen's provider of correlated randomness: triples from our dealer, so planned and counted like all others.

A triple is never cached: used twice, it would open the difference of what it masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mpcache.protocols.correlation import Corrected, Correlation, Dealer, Dealt, Fields, Random, Shape, Tensors
from mpcache.protocols.crypten.session import current_session, require_cpu, unsupported

PROVIDER = "mpcache"

_PRODUCTS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mul": torch.mul,
    "matmul": torch.matmul,
}


@dataclass(frozen=True)
class Triple(Correlation):
    """Beaver's triple: a, b and their product, elementwise or of matrices, in the whole ring."""

    operation: str
    left: Shape
    right: Shape
    product: Shape

    def fields(self) -> Fields:
        return {"a": Random(self.left), "b": Random(self.right), "c": Corrected(self.product)}

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        return {"c": _PRODUCTS[self.operation](randoms.a, randoms.b)}


@dataclass(frozen=True)
class SquarePair(Correlation):
    """r and its square."""

    shape: Shape

    def fields(self) -> Fields:
        return {"r": Random(self.shape), "r_squared": Corrected(self.shape)}

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        return {"r_squared": randoms.r * randoms.r}


@dataclass(frozen=True)
class BinaryTriple(Correlation):
    """64 triples of bits an element: a, b and a & b, shared by xor."""

    left: Shape
    right: Shape
    product: Shape

    def fields(self) -> Fields:
        a, b = Random(self.left, xor=True), Random(self.right, xor=True)
        return {"a": a, "b": b, "c": Corrected(self.product, xor=True)}

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        return {"c": randoms.a & randoms.b}


@dataclass(frozen=True)
class BitPair(Correlation):
    """A random bit, shared by xor and in the ring: turns a bit shared one way into the other."""

    shape: Shape

    def fields(self) -> Fields:
        return {"bit": Random(self.shape, bits=1, xor=True), "in_ring": Corrected(self.shape)}

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        return {"in_ring": randoms.bit}


class DealerProvider:
    """CrypTen's source of triples: the session's correlations."""

    NAME = PROVIDER

    def generate_additive_triple(
        self, size0: Sequence[int], size1: Sequence[int], op: str, device: Any = None, *args: Any, **options: Any
    ) -> tuple[Any, Any, Any]:
        require_cpu(device)
        if op not in _PRODUCTS or args or options:
            raise unsupported(f"a triple for {op}")
        left, right = tuple(size0), tuple(size1)
        product = _PRODUCTS[op](torch.empty(left, device="meta"), torch.empty(right, device="meta"))
        triple = self._take(Triple(op, left, right, tuple(product.shape)))
        return _arithmetic(triple.a), _arithmetic(triple.b), _arithmetic(triple.c)

    def square(self, size: Sequence[int], device: Any = None) -> tuple[Any, Any]:
        require_cpu(device)
        pair = self._take(SquarePair(tuple(size)))
        return _arithmetic(pair.r), _arithmetic(pair.r_squared)

    def generate_binary_triple(
        self, size0: Sequence[int], size1: Sequence[int], device: Any = None
    ) -> tuple[Any, Any, Any]:
        require_cpu(device)
        left, right = tuple(size0), tuple(size1)
        triple = self._take(BinaryTriple(left, right, tuple(torch.broadcast_shapes(left, right))))
        return _binary(triple.a), _binary(triple.b), _binary(triple.c)

    def B2A_rng(self, size: Sequence[int], device: Any = None) -> tuple[Any, Any]:
        require_cpu(device)
        pair = self._take(BitPair(tuple(size)))
        return _arithmetic(pair.in_ring), _binary(pair.bit & 1)  # a stream's bits above the width mean nothing

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise unsupported(f"provider.{name}")

    @staticmethod
    def _take(correlation: Correlation) -> Tensors:
        return current_session().session.take(correlation)


def _arithmetic(share: torch.Tensor) -> Any:
    from crypten.mpc.primitives import ArithmeticSharedTensor  # as importing.py made it

    return ArithmeticSharedTensor.from_shares(share, precision=0)


def _binary(share: torch.Tensor) -> Any:
    from crypten.mpc.primitives import BinarySharedTensor

    return BinarySharedTensor.from_shares(share, precision=0)
