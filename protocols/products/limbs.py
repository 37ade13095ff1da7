"""Exact products modulo 2^bits by floating point: signed limbs in float64, multiplied by the BLAS.

Both operands are cut into signed limbs, p = sum of p_i 2^(o_i) and s = sum of s_j 2^(o_j), so small that no sum of
products passes 2^53: float64 holds every such integer, so the result is exact in whatever order a BLAS adds. Limb i of
one operand meets the other one modulo 2^(bits - o_i) alone, cut as coarsely as limb i allows: at 48 bits and an inner
length of 768, limbs of 29 and 19 bits meet 3 and 1. That is 4 products, where equal limbs need 6. (As in Ozaki's
scheme, Numerical Algorithms 59, 2012, for integers.)

Nothing is kept between products: limbs are cut anew in blocks that stay in the processor's cache. With 64 rows that is
a quarter of the work; kept limbs would take 16 bytes a weight. Everything here runs on any device that has float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from mpcache.protocols.ring import wrap

EXACT_BITS = 53
"""float64 holds every integer up to 2^53 in size."""

LONGEST_INNER = 1 << 11
"""Longer sums are taken in parts: they would need more limbs."""

BLOCK_ELEMENTS = 1 << 17
"""Elements of the larger operand that are cut at a time: 1 MiB for a limb."""

_LARGEST_LIMB = 50  # below 52, see `_cut`
_TWO_52 = 0x433 << 52
"""The bits of 2^52 in float64. An integer v below 2^52 put into its low bits makes it 2^52 + v."""


@dataclass(frozen=True)
class Limb:
    """A limb of the first operand, at 2^offset, and the widths of the limbs of the second that it meets."""

    offset: int
    width: int
    meets: tuple[int, ...]


@lru_cache
def limbs_for(bits: int, inner: int) -> tuple[Limb, ...]:
    """The limbs that need the fewest products for sums of `inner` terms, and of these the fewest of the first operand.

    A limb of a bits is 2^(a-1) in size at most, so `inner` products of such of a and c bits sum up to
    inner 2^(a+c-2) at most.
    """
    both = EXACT_BITS + 2 - (inner - 1).bit_length()
    plans: dict[int, tuple[int, tuple[Limb, ...]]] = {bits: (0, ())}
    for offset in reversed(range(bits)):
        options = []
        for width in range(1, min(bits - offset, both - 1, _LARGEST_LIMB) + 1):
            meets = _widths(bits - offset, min(both - width, _LARGEST_LIMB))
            products, rest = plans[offset + width]
            options.append((products + len(meets), (Limb(offset, width, meets), *rest)))
        plans[offset] = min(options, key=lambda option: (option[0], len(option[1])))
    return plans[0][1]


def _widths(bits: int, largest: int) -> tuple[int, ...]:
    """`bits` in equal parts of at most `largest`, the last one as long as is left."""
    count = -(-bits // largest)
    width = -(-bits // count)
    return (*[width] * (count - 1), bits - width * (count - 1))


def product(x: torch.Tensor, y: torch.Tensor, bits: int) -> torch.Tensor:
    """x y^T modulo 2^bits for x (n, inner) and y (m, inner) of integers of any type: (n, m), int64."""
    if x.shape[0] < y.shape[0]:
        return product(y, x, bits).transpose(0, 1)
    out = torch.zeros((x.shape[0], y.shape[0]), dtype=torch.int64, device=x.device)
    for first in range(0, x.shape[1], LONGEST_INNER):
        part = slice(first, first + LONGEST_INNER)
        _add_product(out, x[:, part], y[:, part], bits)
    return out


def _add_product(out: torch.Tensor, x: torch.Tensor, y: torch.Tensor, bits: int) -> None:
    """out += x y^T, block by block of x; an inner length of at most LONGEST_INNER."""
    (n, m), inner = out.shape, x.shape[1]
    limbs = limbs_for(bits, inner)
    met = [_joined(y, limb.meets).transpose(0, 1) for limb in limbs]
    step = min(n, max(1, BLOCK_ELEMENTS // inner))
    scratch = torch.empty((2, step, inner), dtype=torch.int64, device=x.device)
    sums = torch.empty((2, step * m * max(len(limb.meets) for limb in limbs)), dtype=torch.int64, device=x.device)
    for start in range(0, n, step):
        block = x[start : start + step]
        rows, cuts = block.shape[0], _cut(block, tuple(limb.width for limb in limbs), scratch[:, : block.shape[0]])
        for limb, cut, others in zip(limbs, cuts, met, strict=True):
            real, whole = (part[: rows * others.shape[1]].view(rows, -1) for part in sums)
            whole.copy_(torch.mm(cut, others, out=real.view(torch.float64)))
            shift = limb.offset
            for j, width in enumerate(limb.meets):
                out[start : start + step].add_(whole[:, j * m : (j + 1) * m], alpha=wrap(1 << shift))
                shift += width


def _joined(y: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor:
    """All limbs of y, one below the other: (limbs * m, inner)."""
    joined = torch.empty((len(widths), *y.shape), dtype=torch.float64, device=y.device)
    for place, cut in zip(joined, _cut(y, widths), strict=True):
        place.copy_(cut)
    return joined.flatten(0, 1)


def _cut(x: torch.Tensor, widths: tuple[int, ...], scratch: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
    """x's signed limbs of these widths, the lowest first, in float64: x modulo 2^(sum of widths) is their sum.

    Each limb is overwritten by the next one. scratch: int64, two times x's shape.

    Halves of all limbs are added first, so that each limb is its bits less its half, and nothing is carried.
    """
    raised, limb = torch.empty((2, *x.shape), dtype=torch.int64, device=x.device) if scratch is None else scratch
    offsets = [sum(widths[:i]) for i in range(len(widths))]
    halves = sum(1 << (offset + width - 1) for offset, width in zip(offsets, widths, strict=True))
    raised.copy_(x).add_(wrap(halves))
    before = 0
    for offset, width in zip(offsets, widths, strict=True):
        torch.bitwise_and(raised.bitwise_right_shift_(offset - before), (1 << width) - 1, out=limb)
        before = offset
        yield limb.bitwise_or_(_TWO_52).view(torch.float64).sub_(float((1 << 52) + (1 << (width - 1))))
