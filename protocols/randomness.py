"""Randomness: AES-128 in counter mode, keyed per party, session and purpose.

Every mask comes from here; OpenSSL does the work through the `cryptography` package. A key is derived by HKDF-SHA256
from a party's seed with a purpose string; one key serves many streams, each with its own counter range: the upper
half of the initial counter block is the stream's number, the lower half counts blocks, so two streams of one key
never meet before 2^64 blocks.
"""

from __future__ import annotations

import math
import os
from copy import copy
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 16
_ZEROS = memoryview(bytes(1 << 16))
_BLOCK = 16
_ENDED = "this stream ended when the next one of its key began"
_DTYPES = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}


def new_key() -> bytes:
    """A fresh AES-128 key from the operating system."""
    return os.urandom(KEY_BYTES)


def derive_key(seed: bytes, *purpose: str) -> bytes:
    """A key for one purpose; other purposes give independent keys (HKDF-SHA256, RFC 5869)."""
    info = "\x1f".join(("mpcache", *purpose)).encode()
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=info).derive(seed)


class Stream:
    """One AES-128-CTR stream: the same key and number give the same elements, in order."""

    def __init__(self, key: bytes, number: int = 0) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"an AES-128 key has {KEY_BYTES} bytes, not {len(key)}")
        self._encryptor: Any = Cipher(algorithms.AES(key), modes.CTR(_counter(number))).encryptor()

    def next(self, number: int) -> Stream:
        """The key's stream of that number, from its beginning. This one ends: to draw from it raises ValueError.

        The cipher stays set up, which takes eight times as long as to set its counter.
        """
        following = copy(self)
        self._encryptor = None
        following._encryptor.reset_nonce(_counter(number))
        return following

    def raw(self, count: int) -> np.ndarray:
        """`count` pseudorandom bytes."""
        if self._encryptor is None:
            raise ValueError(_ENDED)
        out = np.empty(count + _BLOCK - 1, dtype=np.uint8)  # update_into wants room for a block more
        if count <= len(_ZEROS):
            self._encryptor.update_into(_ZEROS[:count], out.data)
            return out[:count]
        view, step = memoryview(out.data), len(_ZEROS)
        for start in range(0, count, step):
            size = min(step, count - start)
            self._encryptor.update_into(_ZEROS[:size], view[start : start + size + _BLOCK - 1])
        return out[:count]

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """`data` under as many bytes of the stream; a stream from its beginning decrypts it again."""
        if self._encryptor is None:
            raise ValueError(_ENDED)
        encrypted: bytes = self._encryptor.update(data)
        return encrypted

    def elements(self, shape: tuple[int, ...], bits: int = 64) -> torch.Tensor:
        """Ring elements, uniform modulo 2^bits (the bits above are not meaningful: reduce before use as integers)."""
        width = next(w for w in _DTYPES if 8 * w >= bits)
        drawn = self.raw(math.prod(shape) * width).view(_DTYPES[width])
        return torch.from_numpy(drawn.astype(np.int64, copy=False).reshape(shape))


def _counter(number: int) -> bytes:
    return number.to_bytes(_BLOCK // 2, "big") + bytes(_BLOCK // 2)
