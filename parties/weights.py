"""Masked weights between runs: the owner keeps a key for each model and client, the client keeps W - B."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mpcache.files import written_whole
from mpcache.model.checkpoint import Checkpoint, weight_shapes
from mpcache.model.config import ModelConfig
from mpcache.parties.certificates import require_private
from mpcache.protocols.backends.mpc import encoded_weight, masked_weight, weight_bits
from mpcache.protocols.errors import ConfigError, HandshakeError
from mpcache.protocols.randomness import KEY_BYTES, derive_key, new_key

KEPT_MODELS = 4
"""Of one owner."""
STALE_SECONDS = 24 * 3600.0
_DRAWN = b"AES-128-CTR, an element in the next power of two of bytes\n"
"""How masks are drawn from a key: drawn otherwise, the same bytes would mask other elements."""


def encoded_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """The model with its weights encoded once, for all sessions; biases and positions stay real."""
    tensors = checkpoint.tensors
    encoded = {name: encoded_weight(name, tensors[name]) for name in weight_shapes(checkpoint.config)}
    return Checkpoint(checkpoint.config, {**tensors, **encoded}, checkpoint.digest)


def encoded_digest(config: ModelConfig, tensors: Mapping[str, torch.Tensor]) -> str:
    """Fingerprint of the weights (real or encoded) as they are masked: folded, encoded, in rings of such widths.

    A weight key is for these alone. Two versions of MPCache may fold the same checkpoint differently, and one mask
    for two weights would give their difference away.
    """
    digest = hashlib.sha256(_DRAWN)
    for name in weight_shapes(config):
        digest.update(f"{name} {weight_bits(name)}\n".encode())
        digest.update(hashlib.sha256(encoded_weight(name, tensors[name]).contiguous().numpy().data).digest())
    return digest.hexdigest()


def weight_key(state: Path, encoded: str, client: str) -> bytes:
    """The owner's key of these weights (`encoded_digest`) and this client (a certificate's fingerprint), made when
    first asked for."""
    path = state / "weight-keys" / f"{encoded[:32]}-{client[:32]}.key"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            partial = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
            try:
                with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(new_key())
                with contextlib.suppress(FileExistsError):  # whoever comes first wins
                    os.link(partial, path)
            finally:
                partial.unlink(missing_ok=True)
        require_private(path)
        key = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the weight keys in {state} cannot be read or written: {error}") from None
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{path} is damaged: delete it, and the client is sent newly masked weights")
    return key


def check_size(config: ModelConfig, tokens: int, role: str, max_gib: float) -> None:
    """Raises HandshakeError if a model's masked weights, and the rows of so many cached tokens with their masks, need
    more memory than `role` allows."""
    shapes = weight_shapes(config).items()
    weights = sum(math.prod(shape) * (4 if weight_bits(name) <= 32 else 8) for name, shape in shapes)
    cache = 2 * 2 * 8 * config.layers * tokens * config.key_value_heads * config.head_size
    gib = (weights + cache) / 2**30
    if gib > max_gib:
        raise HandshakeError(
            f"the model's masked weights and cache take {gib:,.1f} GiB, and the {role} allows {max_gib:g}: "
            f"raise max_model_gib in the {role}'s settings if it has the memory"
        )


def weights_fingerprint(key: bytes) -> str:
    """Names a set of masked weights; says nothing of the key (HKDF)."""
    return derive_key(key, "fingerprint").hex()


def masked_weights(
    config: ModelConfig, key: bytes, tensors: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, W - B), one at a time, in the order in which they are sent."""
    for name in weight_shapes(config):
        yield name, masked_weight(key, name, tensors[name])


def save_masked_weights(
    state: Path, fingerprint: str, owner: str, model_digest: str, tensors: dict[str, torch.Tensor]
) -> None:
    """Keep received masked weights for later sessions; whole or not at all. Of one owner, by its certificate, the
    latest KEPT_MODELS alone: it chooses digests, and must not fill the disk."""
    try:
        path = _path(state, owner, model_digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_room(path)
        with written_whole(path) as partial:
            save_file(tensors, partial, {"fingerprint": fingerprint})
    except (OSError, SafetensorError) as error:  # a full disk may be either
        raise ConfigError(f"the masked weights cannot be kept in {state}: {error}") from None


def _make_room(path: Path) -> None:
    """Remove the oldest of an owner's files, and what a process that was killed left half-written."""
    for partial in path.parent.glob("*.partial"):
        if time.time() - _last_used(partial) > STALE_SECONDS:
            partial.unlink(missing_ok=True)
    others = [p for p in path.parent.glob(f"{path.name.split('-')[0]}-*.safetensors") if p != path]
    for old in sorted(others, key=_last_used, reverse=True)[KEPT_MODELS - 1 :]:
        old.unlink(missing_ok=True)


def _last_used(path: Path) -> float:
    """Now, if another process has just taken it away."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def load_masked_weights(state: Path, owner: str, model_digest: str) -> tuple[str, dict[str, torch.Tensor]]:
    """(fingerprint, weights) kept for an owner's model; ("", {}) if there are none."""
    path = _path(state, owner, model_digest)
    if not path.exists():
        return "", {}
    try:
        os.utime(path)  # used last
        with safe_open(str(path), framework="pt") as file:
            fingerprint = (file.metadata() or {}).get("fingerprint", "")
            return fingerprint, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return "", {}


def _path(state: Path, owner: str, model_digest: str) -> Path:
    return state / "masked-weights" / f"{owner[:32]}-{model_digest[:32]}.safetensors"
