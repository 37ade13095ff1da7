"""Exact products of matrices modulo 2^bits: the one place where ring elements meet in great number.

What multiplies is chosen by shape and machine (choice.py) among kernels that all give the same (kernels.py, limbs.py).
"""

from __future__ import annotations

import torch

from mpcache.protocols.products.choice import kernel_for
from mpcache.protocols.products.kernels import KERNELS, heads_product

__all__ = ["matmul", "times_rows"]


def times_rows(x: torch.Tensor, matrix: torch.Tensor, bits: int) -> torch.Tensor:
    """x (..., in) times the transpose of matrix (out, in), int64 or int32: (..., out) in int64, right modulo 2^bits."""
    rows = x.reshape(-1, x.shape[-1])
    if x.is_meta:
        out = rows @ matrix.transpose(0, 1)
    else:
        name = kernel_for("matrix", (1, rows.shape[0], matrix.shape[1], matrix.shape[0]), bits)
        out = KERNELS[name](rows, matrix, bits)
    return out.reshape(*x.shape[:-1], matrix.shape[0])


def matmul(x: torch.Tensor, y: torch.Tensor, bits: int) -> torch.Tensor:
    """x (heads, a, inner) times y (heads, inner, b), right modulo 2^bits; of other dimensions as torch does it."""
    if x.is_meta or x.dim() != 3 or y.dim() != 3 or x.shape[0] != y.shape[0]:
        return torch.matmul(x, y)
    name = kernel_for("heads", (x.shape[0], x.shape[1], x.shape[2], y.shape[2]), bits)
    return heads_product(name, x, y, bits)
