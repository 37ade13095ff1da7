"""Products of shared values through masks (Beaver, CRYPTO 1991), where a value that is used again keeps its mask.

To multiply, each operand x is opened once under a mask: F = x - a. Then x y = F G + F b + a G + a b, where the dealer
shares the product of the masks. A cached key or value row is masked once, when it enters the cache; a product with it
opens the fresh operand alone. The dealer keeps a mask under its number until it is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mpcache.protocols.correlation import Corrected, Correlation, Dealer, Dealt, Fields, Random, Shape, Tensors
from mpcache.protocols.growing import Growing
from mpcache.protocols.products import matmul
from mpcache.protocols.ring import PRODUCT_BITS
from mpcache.protocols.session import Session, together


@dataclass(frozen=True)
class Mask(Correlation):
    """A uniform mask modulo 2^bits, kept under `handle`, or appended there along dimension `append`."""

    shape: Shape
    bits: int
    handle: int
    append: int | None = None

    def renamed(self, handle: Callable[[int], int], weight: Callable[[str], str]) -> Correlation:
        return Mask(self.shape, self.bits, handle(self.handle), self.append)

    def fields(self) -> Fields:
        return {"a": Random(self.shape, self.bits)}

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        a = randoms.a if self.append is None else dealer.grow(self.handle, randoms.a, self.append)
        dealer.keep(self.handle, a)
        return {}


PRODUCTS: dict[str, Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]] = {
    "multiply": lambda x, y, bits: x * y,
    "matmul": matmul,
    "matmul_transposed": lambda x, y, bits: matmul(x, y.transpose(-1, -2), bits),
    "transposed_matmul": lambda x, y, bits: matmul(x.transpose(-1, -2), y, bits),
}
"""Products by name, right modulo 2^bits."""


@dataclass(frozen=True)
class MaskProduct(Correlation):
    """Shares of the product of two kept masks; `forget` frees them at the dealer."""

    operation: str
    left: int
    right: int
    shape: Shape
    bits: int
    forget: tuple[int, ...] = ()

    def renamed(self, handle: Callable[[int], int], weight: Callable[[str], str]) -> Correlation:
        return MaskProduct(
            self.operation,
            handle(self.left),
            handle(self.right),
            self.shape,
            self.bits,
            tuple(map(handle, self.forget)),
        )

    def fields(self) -> Fields:
        return {"a_b": Corrected(self.shape, self.bits)}

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        a_b = PRODUCTS[self.operation](dealer.kept(self.left), dealer.kept(self.right), self.bits)
        for handle in self.forget:
            dealer.forget(handle)
        return {"a_b": a_b}


@dataclass(frozen=True)
class MaskRows(Correlation):
    """Nothing is dealt: the dealer joins rows (dimension -2) of kept masks under a new number.

    parts: (number, first row, end) in order.
    """

    new_handle: int
    parts: tuple[tuple[int, int, int], ...]

    def renamed(self, handle: Callable[[int], int], weight: Callable[[str], str]) -> Correlation:
        return MaskRows(handle(self.new_handle), tuple((handle(h), start, end) for h, start, end in self.parts))

    def fields(self) -> Fields:
        return {}

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        joined = torch.cat([dealer.kept(h)[..., start:end, :] for h, start, end in self.parts], -2)
        dealer.keep(self.new_handle, joined)
        return {}


@dataclass(frozen=True)
class Forget(Correlation):
    """Nothing is dealt: the dealer forgets masks that no product will refer to again."""

    handles: tuple[int, ...]

    def renamed(self, handle: Callable[[int], int], weight: Callable[[str], str]) -> Correlation:
        return Forget(tuple(map(handle, self.handles)))

    def fields(self) -> Fields:
        return {}

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        for handle in self.handles:
            dealer.forget(handle)
        return {}


@dataclass(frozen=True)
class SquareSum(Correlation):
    """Shares of the sum over the last dimension of a kept mask's squares."""

    handle: int
    shape: Shape

    def renamed(self, handle: Callable[[int], int], weight: Callable[[str], str]) -> Correlation:
        return SquareSum(handle(self.handle), self.shape)

    def fields(self) -> Fields:
        return {"a_squared": Corrected(self.shape)}

    def deal(self, randoms: Tensors, dealer: Dealer) -> Dealt:
        a = dealer.kept(self.handle)
        return {"a_squared": (a * a).sum(-1, keepdim=True)}


@dataclass
class Masked:
    """A shared value with its mask: `opened` = value - mask is public, `mask` is this party's share of it."""

    opened: torch.Tensor
    mask: torch.Tensor
    handle: int
    bits: int
    growing: tuple[Growing, Growing] | None = None
    """The storage of both, if rows are appended."""

    @property
    def shape(self) -> torch.Size:
        return self.opened.shape


async def mask(session: Session, x: torch.Tensor, bits: int = PRODUCT_BITS) -> Masked:
    """Open x under a fresh mask. Rounds: 1. Online: ceil(bits/8) bytes an element and direction. Correction: none.

    Opened: x - a with a uniform modulo 2^bits, from both parties' seeds, never used for another opening.
    """
    handle = session.new_handle()
    a = session.take(Mask(tuple(x.shape), bits, handle)).a
    return Masked(await session.open(x - a, bits), a, handle, bits)


async def extend(
    session: Session, masked: Masked | None, x: torch.Tensor, dim: int, bits: int = PRODUCT_BITS
) -> Masked:
    """Append rows to a masked value along `dim`, for good: only the new rows are opened, under new masks. Costs as
    `mask`."""
    handle = masked.handle if masked else session.new_handle()
    a = session.take(Mask(tuple(x.shape), bits, handle, dim if dim >= 0 else x.dim() + dim)).a
    opened = await session.open(x - a, bits)
    if masked is None:
        return Masked(opened, a, handle, bits)
    growing = masked.growing or (Growing(masked.opened, dim), Growing(masked.mask, dim))
    return Masked(growing[0].append(opened), growing[1].append(a), handle, bits, growing)


def rows(session: Session, parts: Sequence[tuple[Masked, int, int]]) -> Masked:
    """Rows (dimension -2) of masked values joined, under the masks that they have. Costs nothing; the values stay.

    parts: (value, first row, end) in order, all public.
    """
    handle = session.new_handle()
    session.take(MaskRows(handle, tuple((masked.handle, start, end) for masked, start, end in parts)))
    opened = torch.cat([masked.opened[..., start:end, :] for masked, start, end in parts], -2)
    mask = torch.cat([masked.mask[..., start:end, :] for masked, start, end in parts], -2)
    return Masked(opened, mask, handle, parts[0][0].bits)


def forget(session: Session, *values: Masked) -> None:
    """Let the dealer forget the masks of values that no product will use again."""
    session.take(Forget(tuple(value.handle for value in values)))


def unmask(session: Session, masked: Masked) -> torch.Tensor:
    """Shares of a masked value, valid modulo 2^bits of its mask. Local."""
    return session.constant(masked.opened) + masked.mask


def multiply_masked(
    session: Session, x: Masked, y: Masked, operation: str = "multiply", forget: Sequence[Masked] = ()
) -> torch.Tensor:
    """Shares of x * y (or the matrix product) modulo 2^bits, scales added, nothing truncated.

    Rounds: 0. Correction: ceil(bits/8) bytes an element of the result.
    """
    bits = min(x.bits, y.bits)
    product = PRODUCTS[operation]
    opened = y.opened + y.mask if session.party == 0 else y.mask
    result = product(x.opened, opened, bits) + product(x.mask, y.opened, bits)
    handles = tuple(m.handle for m in forget)
    return result + session.take(MaskProduct(operation, x.handle, y.handle, tuple(result.shape), bits, handles)).a_b


async def multiply(
    session: Session, x: torch.Tensor, y: torch.Tensor, bits: int = PRODUCT_BITS, operation: str = "multiply"
) -> torch.Tensor:
    """Shares of x * y modulo 2^bits, scales added, nothing truncated. Rounds: 1."""
    a, b = await together(mask(session, x, bits), mask(session, y, bits))
    return multiply_masked(session, a, b, operation, (a, b))


def square_sum(session: Session, x: Masked) -> torch.Tensor:
    """Shares of the sum of squares over the last dimension (kept, of size 1). Rounds: 0. Correction: 8 bytes a row."""
    result = 2 * (x.opened * x.mask).sum(-1, keepdim=True)
    a_squared = session.take(SquareSum(x.handle, tuple(result.shape))).a_squared
    return result + a_squared + session.constant((x.opened * x.opened).sum(-1, keepdim=True))
