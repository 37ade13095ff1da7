import os
import resource
import signal
import stat
from pathlib import Path

import pytest
import torch

from mpcache.model.checkpoint import weight_shapes
from mpcache.model.config import ModelConfig
from mpcache.parties.weights import encoded_digest, load_masked_weights, masked_weights, save_masked_weights, weight_key
from mpcache.protocols.backends.mpc import weight_bits
from mpcache.protocols.correlation import weight_mask
from mpcache.protocols.errors import ConfigError, IdentityError
from mpcache.protocols.ring import encode, signed

CONFIG = ModelConfig("llama", 11, 8, 12, 1, 2, 1, 4, 32, 1e-5, "silu")


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in weight_shapes(CONFIG).items()}


def test_a_key_is_kept_for_the_same_weights_and_client_alone(tmp_path: Path) -> None:
    """One mask never covers two values: weights that are folded otherwise get a key of their own."""
    first, changed = (encoded_digest(CONFIG, tensors(seed)) for seed in (0, 1))
    key = weight_key(tmp_path, first, "a" * 64)
    assert weight_key(tmp_path, first, "a" * 64) == key
    assert weight_key(tmp_path, changed, "a" * 64) != key
    assert weight_key(tmp_path, first, "b" * 64) != key


def test_a_weight_key_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    weight_key(tmp_path, "0" * 64, "a" * 64)
    (path,) = tmp_path.rglob("*.key")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        weight_key(tmp_path, "0" * 64, "a" * 64)


def test_masked_weights_are_the_encoded_ones_less_the_keys_masks(tmp_path: Path) -> None:
    weights = tensors(0)
    key = weight_key(tmp_path, encoded_digest(CONFIG, weights), "a" * 64)
    sent = dict(masked_weights(CONFIG, key, weights))
    assert list(sent) == list(weight_shapes(CONFIG))
    for name, shape in weight_shapes(CONFIG).items():
        bits = weight_bits(name)
        assert sent[name].dtype == (torch.int32 if bits == 32 else torch.int64)
        opened = sent[name] + weight_mask(key, name, shape, bits)
        assert torch.equal(signed(opened.to(torch.int64), bits), encode(weights[name]))


def test_a_key_is_kept_for_the_same_widths_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn at another width, a key's bytes would mask other elements."""
    before = encoded_digest(CONFIG, tensors(0))
    monkeypatch.setattr("mpcache.parties.weights.weight_bits", lambda name: 64)
    assert encoded_digest(CONFIG, tensors(0)) != before


def test_a_client_keeps_the_latest_models_of_each_owner_alone(tmp_path: Path) -> None:
    """An owner chooses digests: with a new one each time it would fill the disk."""
    weights = {"w": torch.zeros(3, dtype=torch.int64)}
    first, second = "a" * 64, "b" * 64
    save_masked_weights(tmp_path, "f", second, "0" * 64, weights)
    folder = tmp_path / "masked-weights"
    old, new = (folder / f"x.safetensors.{i}.partial" for i in (1, 2))
    for partial in (old, new):
        partial.write_bytes(b"half")
    os.utime(old, (0, 0))
    for i in range(7):
        save_masked_weights(tmp_path, str(i), first, f"{i:064x}"[::-1], weights)
        newest = max(folder.glob("a*"), key=lambda p: p.stat().st_mtime_ns)
        os.utime(newest, (1000 + i, 1000 + i))
    assert len(list(folder.glob("a*"))) == 4 and new.exists() and not old.exists()
    assert load_masked_weights(tmp_path, first, f"{6:064x}"[::-1])[0] == "6"
    assert load_masked_weights(tmp_path, first, f"{0:064x}"[::-1]) == ("", {})
    assert load_masked_weights(tmp_path, second, "0" * 64)[0] == "f", "another owner's stay"


def test_a_disk_without_room_is_said_and_keeps_no_half(tmp_path: Path) -> None:
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(ConfigError, match="cannot be kept"):
            save_masked_weights(tmp_path, "f", "a" * 64, "0" * 64, {"x": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
