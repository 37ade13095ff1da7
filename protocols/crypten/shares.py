"""The value type of the private backends: one party's arithmetic share of a secret tensor, at scale 2^16.

It is CrypTen's arithmetic sharing with what costs no message: sums, data movement, opening. Whatever multiplies,
divides, compares or rescales is refused, because it would run a protocol of CrypTen's where one of ours is meant, or
its local truncation. So a cost always shows as a backend's method, and where a product is missing the error says
which method to use.

Sums and data movement need no session, work on the `meta` device, and cost a few microseconds above torch. Opening
(`reveal`, `get_plain_text`) and CrypTen's functions need one: `with active(session):`, see session.py.
CrypTen mutates a tensor's encoder in place while it opens a value, so no encoder object is ever shared: each tensor
has a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from mpcache.protocols.crypten.importing import import_crypten
from mpcache.protocols.ring import FRACTION_BITS, encode, wrap

_crypten = import_crypten()
_FixedPointEncoder = _crypten.mpc.mpc.FixedPointEncoder
ArithmeticSharedTensor: Any = _crypten.mpc.primitives.ArithmeticSharedTensor

Public = int | float | torch.Tensor


class Secret(ArithmeticSharedTensor):
    """One party's share. Values are immutable: every operation gives a new one (which may share memory)."""

    _encoder: Any = None

    def __init__(self, share: torch.Tensor, party: int) -> None:
        self._tensor = share
        self.party = party

    # ------------------------------------------------------------ what CrypTen asks of a sharing

    @property
    def rank(self) -> int:
        return self.party

    @property
    def encoder(self) -> Any:
        """Made when first asked for, and never shared: CrypTen changes it in place while it opens a value."""
        if self._encoder is None:
            self._encoder = _FixedPointEncoder(precision_bits=FRACTION_BITS)
        return self._encoder

    @property
    def shape(self) -> torch.Size:
        return self._tensor.shape

    @property
    def data(self) -> torch.Tensor:
        return self._tensor

    def shallow_copy(self) -> Secret:
        return Secret(self._tensor, self.party)

    def clone(self) -> Secret:
        return Secret(self._tensor.clone(), self.party)

    def __repr__(self) -> str:
        return f"Secret(shape={tuple(self.shape)}, party={self.party})"

    def __bool__(self) -> NoReturn:
        raise TypeError("a secret has no truth value: nothing may branch on it")

    # ------------------------------------------------------------ sums

    def __add__(self, other: Secret | Public) -> Secret:
        if type(other) is Secret:
            return Secret(self._tensor + other._tensor, self.party)
        return Secret(self._plus(other, 1), self.party)

    def __sub__(self, other: Secret | Public) -> Secret:
        if type(other) is Secret:
            return Secret(self._tensor - other._tensor, self.party)
        return Secret(self._plus(other, -1), self.party)

    def __rsub__(self, other: Public) -> Secret:
        return -self + other

    def __neg__(self) -> Secret:
        return Secret(-self._tensor, self.party)

    def _plus(self, other: Any, sign: int) -> torch.Tensor:
        """The share of self + sign * other, where other is public (party 0 adds its encoding) or a CrypTen sharing."""
        if isinstance(other, ArithmeticSharedTensor):
            if other.encoder.scale != self.encoder.scale:
                raise TypeError(
                    f"cannot add a sharing of scale {other.encoder.scale} to a secret of scale {self.encoder.scale}"
                )
            return self._tensor + sign * other.share
        if self._encoder is not None and self._encoder.scale == 1:
            raise TypeError("a public value cannot be added while CrypTen has suspended the encoding")
        if isinstance(other, int | float):
            return self._tensor + wrap(sign * round(other * 2**FRACTION_BITS)) if self.party == 0 else self._tensor
        if not isinstance(other, torch.Tensor):
            raise TypeError(f"cannot add {type(other).__name__} to a secret")
        encoded = encode(other).to(self._tensor.device)
        if self.party != 0:  # nothing to add, but the same shape at both parties
            return torch.broadcast_tensors(self._tensor, encoded)[0]
        return self._tensor + sign * encoded

    add = __radd__ = __iadd__ = __add__  # `x += y` gives x a new value
    sub = __isub__ = __sub__
    neg = __neg__

    def sum(self, *args: Any, **options: Any) -> Secret:
        return Secret(self._tensor.sum(*args, **options), self.party)

    # ------------------------------------------------------------ data movement, the frequent ones without detours

    def __getitem__(self, index: Any) -> Secret:
        return Secret(self._tensor[index], self.party)

    def reshape(self, *shape: Any) -> Secret:
        return Secret(self._tensor.reshape(*shape), self.party)

    def transpose(self, first: int, second: int) -> Secret:
        return Secret(self._tensor.transpose(first, second), self.party)

    @staticmethod
    def cat(parts: Sequence[Secret], dim: int = 0) -> Secret:
        return Secret(torch.cat([_secret(p)._tensor for p in parts], dim), parts[0].party)

    @staticmethod
    def stack(parts: Sequence[Secret], dim: int = 0) -> Secret:
        return Secret(torch.stack([_secret(p)._tensor for p in parts], dim), parts[0].party)


def cat(parts: Sequence[Secret], dim: int) -> Secret:
    """Join along a dimension."""
    return Secret.cat(parts, dim)


def _secret(value: Any) -> Secret:
    if type(value) is not Secret:
        raise TypeError(f"only secrets can be joined with secrets, not {type(value).__name__}")
    return value


# ---------------------------------------------------------------- what CrypTen's class has beyond that

_INHERITED = {
    "cumsum", "device", "dim", "expand", "flatten", "flip", "gather", "get_plain_text", "index_select", "is_cuda",
    "narrow", "nelement", "numel", "permute", "repeat", "reveal", "reveal_batch", "roll", "share", "size", "split",
    "squeeze", "t", "take", "trace", "unbind", "unfold", "unsqueeze", "view", "__len__",
}  # fmt: skip
"""Local operations (and opening) that CrypTen's class does right on any share, through `shallow_copy`."""

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
    "comparison": "backend.next_token, or mpcache.protocols.comparison",
}
_OPERATORS = {
    "mul": ("__mul__", "__rmul__", "__imul__"),
    "matmul": ("__matmul__", "__rmatmul__", "__imatmul__"),
    "div": ("__div__", "__truediv__", "__rtruediv__", "__itruediv__", "__floordiv__", "__mod__"),
    "square": ("__pow__",),
    "comparison": ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"),
    "assignment": ("__setitem__",),
}


def _refuse(operation: str, instead: str) -> Callable[..., NoReturn]:
    def refuse(*args: object, **options: object) -> NoReturn:
        hint = f": use {instead}" if instead else " (values are immutable and of one scale)"
        raise TypeError(f"{operation} is not an operation of a secret{hint}")

    return refuse


def _close() -> None:
    """Refuse, by name, everything that is not known to be local, so that no product slips in with a new CrypTen."""
    own = set(vars(Secret)) | _INHERITED
    for name in dir(ArithmeticSharedTensor):
        if name not in own and not name.startswith("__"):
            setattr(Secret, name, _refuse(name, _INSTEAD.get(name.rstrip("_"), "")))
    for kind, names in _OPERATORS.items():
        for name in names:
            setattr(Secret, name, _refuse(kind, _INSTEAD.get(kind, "")))


_close()


# ---------------------------------------------------------------- to CrypTen's tensors and back, without copying


def to_mpc_tensor(share: torch.Tensor, fraction_bits: int = FRACTION_BITS) -> Any:
    """An MPCTensor on this party's int64 share, in the current session. The memory is shared, the encoder is new."""
    return _crypten.mpc.MPCTensor.from_shares(share, precision=fraction_bits)


def from_crypten(tensor: Any, fraction_bits: int = FRACTION_BITS) -> torch.Tensor:
    """This party's int64 share of an arithmetic tensor at scale 2^fraction_bits; no copy if it has that scale.

    CrypTen's comparisons give integers (scale 1), which are scaled up. Raises TypeError for binary shares and for a
    greater scale, which would have to be truncated.
    """
    if isinstance(tensor, _crypten.mpc.MPCTensor):
        tensor = tensor._tensor
    if not isinstance(tensor, ArithmeticSharedTensor):
        raise TypeError(
            f"{type(tensor).__name__} is not an arithmetic sharing: convert it with .to(crypten.mpc.arithmetic)"
        )
    missing = fraction_bits - (int(tensor.encoder.scale).bit_length() - 1)
    if missing < 0:
        raise TypeError(f"the tensor has {-missing} more fractional bits than {fraction_bits}")
    return tensor.share << missing if missing else tensor.share
