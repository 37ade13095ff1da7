"""Shapes that the plan knows without torch are torch's."""

from collections.abc import Callable

import pytest
import torch

from mpcache.protocols.plan import ShapeArithmetic


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.int64, device="meta")


KNOWN: dict[str, Callable[[], torch.Tensor]] = {
    "broadcast": lambda: meta(3, 1, 5) + meta(4, 1),
    "number": lambda: 7 - meta(3, 4),
    "remainder": lambda: meta(3, 4) % 5,
    "named operand": lambda: torch.add(meta(3, 1), other=meta(4)),
    "where": lambda: torch.where(meta(3, 1) > 0, meta(4), 0),
    "take": lambda: meta(9).take(meta(3, 2)),
    "gather": lambda: meta(3, 9).gather(1, meta(3, 2)),
    "gather, named": lambda: torch.gather(meta(3, 9), 1, index=meta(3, 2)),
    "cat": lambda: torch.cat([meta(3, 4), meta(3, 2)], -1),
    "cat, dim 0": lambda: torch.cat([meta(3, 4), meta(1, 4)]),
    "cat, named": lambda: torch.cat(tensors=[meta(3, 4), meta(3, 2)], dim=1),
    "stack": lambda: torch.stack([meta(3, 4), meta(3, 4)], -1),
    "matmul": lambda: meta(2, 3, 4) @ meta(4, 5),
    "matmul, batches": lambda: torch.matmul(meta(2, 1, 3, 4), meta(6, 4, 5)),
    "matmul, a vector": lambda: meta(2, 3, 4) @ meta(4),
    "mv": lambda: torch.mv(meta(3, 4), meta(4)),
    "sum": lambda: meta(3, 4, 5).sum(),
    "sum, last": lambda: meta(3, 4, 5).sum(-1),
    "sum, kept": lambda: meta(3, 4, 5).sum((0, -1), keepdim=True),
    "sum of one": lambda: meta().sum(),
    "sum, typed": lambda: meta(3, 4).sum(dim=1, dtype=torch.int64),
    "cumsum": lambda: meta(3, 4).cumsum(1),
    "index_add": lambda: meta(3, 4).index_add(-1, meta(2), meta(3, 2)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_shapes_are_those_that_torch_gives(name: str) -> None:
    with ShapeArithmetic():
        known = KNOWN[name]()
    assert known.shape == KNOWN[name]().shape


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: meta(3, 4) @ meta(5, 6),
        lambda: torch.cat([meta(3, 4), meta(3, 5)]),
        lambda: torch.stack([meta(3), meta(4)]),
        lambda: meta(3) + meta(4),
    ],
)
def test_what_torch_refuses_a_plan_refuses(wrong: Callable[[], torch.Tensor]) -> None:
    with ShapeArithmetic(), pytest.raises((RuntimeError, ValueError)):
        wrong()
