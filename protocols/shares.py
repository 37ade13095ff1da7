"""The value type of the private backends: one party's arithmetic share of a secret tensor, at scale 2^16.

It does what costs no message: sums and data movement. Whatever multiplies, divides, compares or rescales is refused, so
that a cost always shows as a backend's method, and where a product is missing the error says which method to use.

A secret needs no session, works on the `meta` device, and costs a few microseconds above torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from mpcache.protocols.ring import FRACTION_BITS, encode, wrap

Public = int | float | torch.Tensor


class Secret:
    """One party's share. Values are immutable: every operation gives a new one (which may share memory)."""

    __slots__ = ("party", "share")

    def __init__(self, share: torch.Tensor, party: int) -> None:
        self.share = share
        self.party = party

    def __repr__(self) -> str:
        return f"Secret(shape={tuple(self.shape)}, party={self.party})"

    def __bool__(self) -> NoReturn:
        raise TypeError("a secret has no truth value: nothing may branch on it")

    if not TYPE_CHECKING:  # a type checker finds such a name itself

        def __getattr__(self, name: str) -> NoReturn:
            """Refuse, by name, everything that is not known to be local, so that no product slips in."""
            if name.startswith("_"):
                raise AttributeError(name)
            raise TypeError(_refusal(name, _INSTEAD.get(name.rstrip("_"), "")))

    # ------------------------------------------------------------ its shape

    @property
    def shape(self) -> torch.Size:
        return self.share.shape

    @property
    def device(self) -> torch.device:
        return self.share.device

    def __len__(self) -> int:
        return len(self.share)

    def dim(self) -> int:
        return self.share.dim()

    def numel(self) -> int:
        return self.share.numel()

    # ------------------------------------------------------------ sums

    def __add__(self, other: Secret | Public) -> Secret:
        if isinstance(other, Secret):
            return Secret(self.share + other.share, self.party)
        return Secret(self._plus(other, 1), self.party)

    def __sub__(self, other: Secret | Public) -> Secret:
        if isinstance(other, Secret):
            return Secret(self.share - other.share, self.party)
        return Secret(self._plus(other, -1), self.party)

    def __rsub__(self, other: Public) -> Secret:
        return -self + other

    def __neg__(self) -> Secret:
        return Secret(-self.share, self.party)

    def _plus(self, other: Any, sign: int) -> torch.Tensor:
        """The share of self + sign * other, where other is public: party 0 adds its encoding."""
        if isinstance(other, int | float):
            return self.share + wrap(sign * round(other * 2**FRACTION_BITS)) if self.party == 0 else self.share
        if not isinstance(other, torch.Tensor):
            raise TypeError(f"cannot add {type(other).__name__} to a secret")
        encoded = encode(other).to(self.share.device)
        if self.party != 0:  # nothing to add, but the same shape at both parties
            share: torch.Tensor = torch.broadcast_tensors(self.share, encoded)[0]
            return share
        return self.share + sign * encoded

    __radd__ = __iadd__ = __add__  # `x += y` gives x a new value
    __isub__ = __sub__

    def sum(self, *args: Any, **options: Any) -> Secret:
        return Secret(self.share.sum(*args, **options), self.party)

    def cumsum(self, dim: int) -> Secret:
        return Secret(self.share.cumsum(dim), self.party)

    # ------------------------------------------------------------ data movement, as torch does it

    def __getitem__(self, index: Any) -> Secret:
        return Secret(self.share[index], self.party)

    def clone(self) -> Secret:
        return Secret(self.share.clone(), self.party)

    def reshape(self, *shape: Any) -> Secret:
        return Secret(self.share.reshape(*shape), self.party)

    def view(self, *shape: Any) -> Secret:
        return Secret(self.share.view(*shape), self.party)

    def flatten(self, first: int = 0, last: int = -1) -> Secret:
        return Secret(self.share.flatten(first, last), self.party)

    def transpose(self, first: int, second: int) -> Secret:
        return Secret(self.share.transpose(first, second), self.party)

    def t(self) -> Secret:
        return Secret(self.share.t(), self.party)

    def permute(self, *dims: Any) -> Secret:
        return Secret(self.share.permute(*dims), self.party)

    def expand(self, *shape: Any) -> Secret:
        return Secret(self.share.expand(*shape), self.party)

    def repeat(self, *times: Any) -> Secret:
        return Secret(self.share.repeat(*times), self.party)

    def unsqueeze(self, dim: int) -> Secret:
        return Secret(self.share.unsqueeze(dim), self.party)

    def squeeze(self, dim: int) -> Secret:
        return Secret(self.share.squeeze(dim), self.party)

    def index_select(self, dim: int, index: torch.Tensor) -> Secret:
        return Secret(self.share.index_select(dim, index), self.party)

    def split(self, size: int | list[int], dim: int = 0) -> tuple[Secret, ...]:
        return tuple(Secret(part, self.party) for part in torch.split(self.share, size, dim))

    def unbind(self, dim: int = 0) -> tuple[Secret, ...]:
        return tuple(Secret(part, self.party) for part in self.share.unbind(dim))

    @staticmethod
    def cat(parts: Sequence[Secret], dim: int = 0) -> Secret:
        return Secret(torch.cat([_secret(p).share for p in parts], dim), parts[0].party)

    @staticmethod
    def stack(parts: Sequence[Secret], dim: int = 0) -> Secret:
        return Secret(torch.stack([_secret(p).share for p in parts], dim), parts[0].party)


def cat(parts: Sequence[Secret], dim: int) -> Secret:
    """Join along a dimension."""
    return Secret.cat(parts, dim)


def _secret(value: Any) -> Secret:
    if not isinstance(value, Secret):
        raise TypeError(f"only secrets can be joined with secrets, not {type(value).__name__}")
    return value


# ---------------------------------------------------------------- what is refused

_INSTEAD = {
    "mul": "backend.multiply(x, y)",
    "matmul": "backend.linear(x, weight), or backend.attend(queries, cached, visible)",
    "square": "backend.multiply(x, x)",
    "div": "backend.rms_norm or attend; fold a public factor into a weight",
    "mean": "backend.scale(x.sum(dim), factor)",
    "var": "backend.rms_norm",
    "where": "backend.multiply by a secret bit, or `visible` of backend.attend",
    "dot": "backend.multiply(x, y).sum()",
    "prod": "backend.multiply(x, y)",
    "comparison": "backend.next_tokens, or mpcache.protocols.comparison",
}
_OPERATORS = {
    "mul": ("__mul__", "__rmul__", "__imul__"),
    "matmul": ("__matmul__", "__rmatmul__", "__imatmul__"),
    "div": ("__div__", "__truediv__", "__rtruediv__", "__itruediv__", "__floordiv__", "__mod__"),
    "square": ("__pow__",),
    "comparison": ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"),
    "assignment": ("__setitem__",),
}


def _refusal(operation: str, instead: str) -> str:
    hint = f": use {instead}" if instead else " (values are immutable and of one scale)"
    return f"{operation} is not an operation of a secret{hint}"


def _refuse(kind: str) -> Callable[..., NoReturn]:
    def refuse(*args: object) -> NoReturn:
        raise TypeError(_refusal(kind, _INSTEAD.get(kind, "")))

    return refuse


for _kind, _names in _OPERATORS.items():
    for _name in _names:
        setattr(Secret, _name, _refuse(_kind))
