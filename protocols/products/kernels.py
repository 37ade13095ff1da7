"""The ways to multiply matrices of ring elements. All are exact modulo 2^bits; they differ in speed alone.

A kernel gives x y^T, (n, m) in int64, for x (n, inner) and y (m, inner): rows meet rows, as weights are stored.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from mpcache.protocols.products import limbs

Kernel = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


def by_torch(x: torch.Tensor, y: torch.Tensor, bits: int) -> torch.Tensor:
    """In torch's integers, in the narrower type of the two, which holds all bits that are asked for.

    torch is two to three times faster in int64 with the larger matrix first (the other way it copies its transpose), in
    int32 with the larger matrix second.
    """
    narrow = y.dtype if x.dtype == torch.int64 else x.dtype
    if x.shape[0] < y.shape[0] and narrow != torch.int32:
        return by_torch(y, x, bits).transpose(0, 1)
    return (x.to(narrow) @ y.to(narrow).transpose(0, 1)).to(torch.int64)


def by_vectors(x: torch.Tensor, y: torch.Tensor, bits: int) -> torch.Tensor:
    """One product of a matrix and a vector for each row of the smaller operand, in torch's integers.

    A few rows are several times faster so: torch's products of integer matrices take as long for one row as for 30.
    """
    if x.shape[0] > y.shape[0]:
        return by_vectors(y, x, bits).transpose(0, 1)
    return torch.stack([torch.mv(y, row) for row in x.to(y.dtype)]).to(torch.int64)


KERNELS: dict[str, Kernel] = {"torch": by_torch, "vectors": by_vectors, "limbs": limbs.product}


def heads_product(name: str, x: torch.Tensor, y: torch.Tensor, bits: int) -> torch.Tensor:
    """x (heads, a, inner) times y (heads, inner, b), head by head: (heads, a, b), by the kernel of that name."""
    if name == "torch":
        return torch.matmul(x, y)
    if name == "vectors" and x.shape[1] == 1:  # a token's queries: short enough that every call shows
        return torch.stack([torch.mv(keys, query[0]) for keys, query in zip(y.transpose(1, 2), x, strict=True)])[
            :, None
        ]
    kernel = KERNELS[name]
    return torch.stack([kernel(queries, keys.transpose(0, 1), bits) for queries, keys in zip(x, y, strict=True)])
