"""The ring Z_2^64 in torch's int64, fixed-point numbers in it, and packing at an effective width.

A share is an int64 tensor; arithmetic wraps, which is arithmetic modulo 2^64. A value that is only needed modulo 2^k
is sent as ceil(k/8) bytes (k = 1: eight elements a byte).
"""

from __future__ import annotations

import math

import numpy as np
import torch

RING_BITS = 64
_MANY = 1 << 11
"""Elements that are worth an operation more when they are unpacked."""
_UNSIGNED = {width: np.dtype(f"<u{width}") for width in (1, 2, 4, 8)}
"""Numbers of so many bytes."""
FRACTION_BITS = 16
"""Fractional bits of a fixed-point value, CrypTen's default (its encoder's scale is 2^16)."""

PRODUCT_BITS = 48
"""Width of a product of two fixed-point values, scale 2^32: exact while the product is below 2^14 in size."""


def encode(x: torch.Tensor, fraction_bits: int = FRACTION_BITS) -> torch.Tensor:
    """Real numbers to ring elements of scale 2^fraction_bits, rounded to the nearest."""
    return (x.to(torch.float64) * 2.0**fraction_bits).round().to(torch.int64)


def decode(x: torch.Tensor, fraction_bits: int = FRACTION_BITS) -> torch.Tensor:
    """Ring elements (signed) of scale 2^fraction_bits to real numbers."""
    return x.to(torch.float64) / 2.0**fraction_bits


def wrap(value: int) -> int:
    """The int64 that represents `value` modulo 2^64."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def reduce_bits(x: torch.Tensor, bits: int) -> torch.Tensor:
    """x modulo 2^bits, in [0, 2^bits); the whole ring element for bits = 64."""
    return x if bits == RING_BITS else x & ((1 << bits) - 1)


def signed(x: torch.Tensor, bits: int) -> torch.Tensor:
    """x modulo 2^bits, in [-2^(bits-1), 2^(bits-1))."""
    return x if bits == RING_BITS else (x << (RING_BITS - bits)) >> (RING_BITS - bits)


def shift_right(x: torch.Tensor, shift: int, bits: int = RING_BITS) -> torch.Tensor:
    """floor((x mod 2^bits) / 2^shift), a logical shift, in [0, 2^(bits-shift))."""
    return (x >> shift) & ((1 << (bits - shift)) - 1) if shift else reduce_bits(x, bits)


def stored(x: torch.Tensor, bits: int) -> torch.Tensor:
    """x in the smaller of the two types whose wrapping arithmetic is exact modulo 2^bits: int32 or int64."""
    return x.to(torch.int32 if bits <= 32 else torch.int64)


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` elements take on the wire at an effective width of `bits`."""
    return (count + 7) // 8 if bits == 1 else count * ((bits + 7) // 8)


def pack(x: torch.Tensor, bits: int) -> bytes:
    """The low `bits` bits of each element, little endian, ceil(bits/8) bytes each (bits = 1: packed eight a byte).

    Bits of the last byte above `bits` are cleared: they would carry a sum's overflow.
    """
    whole, width = x.numpy().reshape(-1), (bits + 7) // 8
    if bits == 1:
        return np.packbits(whole.astype(np.uint8) & np.uint8(1), bitorder="little").tobytes()
    if width in _UNSIGNED:
        narrow = whole.astype(_UNSIGNED[width])
        if bits % 8:
            narrow &= _UNSIGNED[width].type((1 << bits) - 1)
        return narrow.tobytes()
    wide = whole.astype(np.int64, copy=False)
    return _low_bytes(np.ascontiguousarray(wide & ((1 << bits) - 1) if bits % 8 else wide), width).tobytes()


def _low_bytes(whole: np.ndarray, width: int) -> np.ndarray:
    """The first `width` bytes of each of int64 elements, a view: one item each, so that numpy copies items, not
    bytes."""
    return np.ndarray(len(whole), dtype=f"V{width}", buffer=whole, strides=(8,))


def unpack(data: bytes | bytearray | memoryview, shape: torch.Size | tuple[int, ...], bits: int) -> torch.Tensor:
    """Inverse of `pack`: elements in [0, 2^bits)."""
    return torch.from_numpy(_unpacked(data, math.prod(shape), bits).reshape(shape))


def unpack_sum(
    data: bytes | bytearray | memoryview, share: torch.Tensor, bits: int, *, xor: bool = False
) -> torch.Tensor:
    """`share` and what is packed in `data`, summed (or xored) in [0, 2^bits): as `unpack` and a sum, in one place."""
    total = _unpacked(data, share.numel(), bits)
    (np.bitwise_xor if xor else np.add)(total, share.numpy().reshape(-1), out=total)
    if bits != RING_BITS:
        total &= (1 << bits) - 1
    return torch.from_numpy(total.reshape(share.shape))


def _unpacked(data: bytes | bytearray | memoryview, count: int, bits: int) -> np.ndarray:
    raw, width = np.frombuffer(data, dtype=np.uint8), (bits + 7) // 8
    if bits == 1:
        return np.unpackbits(raw, count=count, bitorder="little").astype(np.int64)
    return raw.view(_UNSIGNED[width]).astype(np.int64) if width in _UNSIGNED else _widened(raw, width)


def _widened(raw: np.ndarray, width: int) -> np.ndarray:
    """Elements of `width` bytes each as int64. All but the last few are read with the bytes that follow, 8 at a time,
    and lose them again: several times as fast as copying items."""
    count = len(raw) // width
    out = np.zeros(count, dtype=np.int64)
    ahead = max(0, (len(raw) - 8) // width + 1) if count >= _MANY else 0
    if ahead:
        read = np.ndarray(ahead, dtype="<i8", buffer=raw, strides=(width,))
        np.bitwise_and(read, (1 << (8 * width)) - 1, out=out[:ahead])
    _low_bytes(out[ahead:], width)[:] = raw[ahead * width :].view(f"V{width}")
    return out
