import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from mpcache.protocols.activation import activation
from mpcache.protocols.randomness import Stream, derive_key, new_key
from mpcache.protocols.ring import encode
from mpcache.protocols.softmax import softmax
from tests.protocols.sharing import run_ring


def test_a_stream_is_aes_128_in_counter_mode() -> None:
    key = bytes(range(16))
    counter = (7).to_bytes(8, "big") + bytes(8)
    expected = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor().update(bytes(200_000))
    stream = Stream(key, 7)
    assert stream.raw(16).tobytes() + stream.raw(199_984).tobytes() == expected


def test_keys_differ_by_purpose_and_streams_by_number() -> None:
    seed = new_key()
    keys = {derive_key(seed, "a"), derive_key(seed, "b"), derive_key(seed, "a", "b"), derive_key(new_key(), "a")}
    assert len(keys) == 4
    assert Stream(seed, 0).raw(32).tobytes() != Stream(seed, 1).raw(32).tobytes()


def test_the_next_stream_of_a_key_is_that_of_its_number_and_ends_the_one_before() -> None:
    key = new_key()
    first = Stream(key, 3)
    first.raw(100)
    second = first.next(4)
    expected = Stream(key, 4)
    assert second.raw(100_000).tobytes() == expected.raw(100_000).tobytes()
    assert torch.equal(second.elements((7, 3), 20), expected.elements((7, 3), 20))
    with pytest.raises(ValueError, match="ended"):
        first.raw(16)
    with pytest.raises(ValueError, match="ended"):
        first.next(5)
    assert second.next(3).raw(32).tobytes() == Stream(key, 3).raw(32).tobytes()


@pytest.mark.parametrize("bits", [1, 8, 16, 32, 48, 64])
def test_drawn_elements_share_no_memory(bits: int) -> None:
    """What was drawn is a mask for good: nothing later writes to it."""
    stream = Stream(new_key())
    first = stream.elements((50,), bits)
    kept = first.clone()
    stream.elements((50,), bits).zero_()
    assert torch.equal(first, kept)


def test_elements_are_spread_over_the_whole_ring() -> None:
    x = Stream(new_key()).elements((100_000,))
    assert x.min() < -(2**62) and x.max() > 2**62
    for bit in range(64):
        assert abs(((x >> bit) & 1).double().mean() - 0.5) < 0.01


@pytest.fixture
def no_other_randomness(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every generator that is not AES refuses to work."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("randomness that is not the AES generator's")

    for name in ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"):
        monkeypatch.setattr(torch, name, refuse)
    for name in ("random_", "uniform_", "normal_", "bernoulli_"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    for name in ("random", "randint", "bytes", "default_rng", "RandomState", "Generator"):
        monkeypatch.setattr(np.random, name, refuse)
    for name in ("random", "randint", "getrandbits", "randbytes"):
        monkeypatch.setattr(random, name, refuse)
    yield


def test_masks_come_from_the_aes_generator_alone(no_other_randomness: None) -> None:
    x = encode(torch.linspace(-4, 4, 40))
    run_ring(softmax, x)
    run_ring(activation, x, kind="silu")


def test_seeding_other_generators_changes_no_mask() -> None:
    key = new_key()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    first = Stream(key).elements((8,))
    torch.manual_seed(2), random.seed(2), np.random.seed(2)
    assert torch.equal(first, Stream(key).elements((8,)))
    assert new_key() != new_key()
