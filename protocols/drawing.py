"""Many streams at once, and what is cut out of them: the randomness of correlations that are made together.

The bytes are those of `randomness.Stream`, AES-128 in counter mode. Here the counter blocks of many streams are written
down and encrypted in one call: a decode step has hundreds of correlations of a few hundred bytes, and a cipher of its
own for each would cost more than they do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from mpcache.protocols.randomness import Stream
from mpcache.protocols.ring import packed_bytes

_BLOCK = 16
_LONG = 1 << 18
"""Bytes from which a stream has a cipher of its own: writing its counters would cost more."""


def element_bytes(bits: int) -> int:
    """What an element modulo 2^bits takes in a stream."""
    return next(width for width in (1, 2, 4, 8) if 8 * width >= bits)


class Streams:
    """All streams of a key."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # of counters, each once: that is CTR

    def begin(self, numbers: Sequence[int], nbytes: int) -> np.ndarray:
        """The first `nbytes` of each of these streams, (streams, nbytes) uint8."""
        if len(numbers) == 1 and nbytes >= _LONG:
            return Stream(self._key, numbers[0]).raw(nbytes)[None]
        blocks = -(-nbytes // _BLOCK)
        counters = np.empty((len(numbers), blocks, 2), dtype=">u8")
        counters[:, :, 0] = np.asarray(numbers, dtype=np.uint64)[:, None]
        counters[:, :, 1] = np.arange(blocks, dtype=np.uint64)
        out = np.empty(counters.nbytes + _BLOCK - 1, dtype=np.uint8)  # update_into wants room for a block more
        self._encryptor.update_into(counters.reshape(-1).view(np.uint8).data, out.data)
        return out[: counters.nbytes].reshape(len(numbers), -1)[:, :nbytes]


def elements(drawn: np.ndarray, start: int, count: int, bits: int) -> np.ndarray:
    """(streams, count) elements from byte `start` on, unsigned and as wide as they are drawn; their upper bits are not
    meaningful: see `reduced`."""
    width = element_bytes(bits)
    part = drawn[:, start : start + count * width]
    if len(drawn) > 1 or start % width:  # numbers lie on multiples of their size
        part = part.copy()
    return part.view(f"u{width}")


def reduced(x: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned elements modulo 2^bits."""
    return x if bits == 8 * x.itemsize else x & x.dtype.type((1 << bits) - 1)


def packed(x: np.ndarray, bits: int) -> np.ndarray:
    """Rows of `ring.pack`'s bytes, (rows, bytes) uint8, from unsigned elements (rows, count) of that width."""
    if bits == 1:
        return np.packbits(x & x.dtype.type(1), axis=1, bitorder="little")
    rows, count = x.shape
    out = reduced(x, bits)
    nbytes = packed_bytes(count, bits)
    cut = out.view(np.uint8).reshape(rows, count, x.itemsize)[:, :, : (bits + 7) // 8]
    return cut.reshape(rows, nbytes)
