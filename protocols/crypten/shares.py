"""Shares to CrypTen's tensors and back, without copying.

CrypTen mutates a tensor's encoder in place while it opens a value, so no encoder object is ever shared: each tensor
has a new one.
"""

from __future__ import annotations

from typing import Any

import torch

from mpcache.protocols.crypten.importing import import_crypten
from mpcache.protocols.ring import FRACTION_BITS

_crypten = import_crypten()
ArithmeticSharedTensor: Any = _crypten.mpc.primitives.ArithmeticSharedTensor


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
    share: torch.Tensor = tensor.share
    return share << missing if missing else share
