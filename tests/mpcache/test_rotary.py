"""Rotary tables: transformers' up to the rounding of float32, and made for the positions that are asked for alone."""

from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpcache.model import rotary
from mpcache.model.decoder import Decoder
from mpcache.model.rotary import CHUNK, rotary_tables
from mpcache.model.shapes import model_shape
from mpcache.protocols.backends.mpc import MpcBackend
from mpcache.protocols.plan import PlanSession
from tests.mpcache.policies.driving import small_config


@pytest.mark.parametrize(("theta", "head_size"), [(1e4, 128), (1e5, 64), (5e5, 64), (1e6, 80), (500.0, 8)])
def test_tables_are_those_of_transformers(theta: float, head_size: int) -> None:
    """Its power is off by one unit in the last place at times, and so are angles, which grow with the position."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(rope_theta=theta, head_dim=head_size, max_position_embeddings=2048)
    positions = torch.arange(2048)[None]
    reference = LlamaRotaryEmbedding(config)
    theirs = torch.stack(reference(torch.zeros(1), positions))[:, 0]
    ours = torch.stack(rotary_tables(theta, head_size, 0, 2048))
    assert ours.shape == (2, 2048, head_size)
    frequency = reference.inv_freq.repeat(2)
    unit = torch.from_numpy(np.spacing(frequency.numpy()))
    assert torch.all((ours - theirs).abs() < 2e-7 + 2 * unit * positions[0, :, None])
    assert (ours - theirs).abs().max() < 3e-4
    assert (ours - theirs).abs().mean() < 2e-6


@given(st.integers(0, 1 << 17), st.sampled_from([64, 128, 10]), st.sampled_from([1e4, 5e5, 1e6]), st.data())
def test_an_entry_is_the_cosine_of_the_float32_angle(
    position: int, head_size: int, theta: float, data: st.DataObject
) -> None:
    i = data.draw(st.integers(0, head_size // 2 - 1))
    with mpmath.workdps(60):
        power = np.float32(float(mpmath.mpf(theta) ** float(np.float32(2 * i) / np.float32(head_size))))
        angle = float(np.float32(position) * (np.float32(1) / power))
        expected = [float(mpmath.nint(f(angle) * 2**30)) / 2**30 for f in (mpmath.cos, mpmath.sin)]
    tables = rotary_tables(theta, head_size, position, position + 1)
    assert [float(t[0, i]) for t in tables] == [float(t[0, i + head_size // 2]) for t in tables] == expected


@given(st.integers(0, 3 * CHUNK), st.integers(1, 3 * CHUNK))
def test_any_run_of_positions_is_a_part_of_the_whole(start: int, count: int) -> None:
    whole = rotary_tables(1e4, 8, 0, 6 * CHUNK)
    for part, table in zip(rotary_tables(1e4, 8, start, start + count), whole, strict=True):
        assert torch.equal(part, table[start : start + count])


def test_only_what_is_asked_for_is_computed() -> None:
    before = rotary._chunk.cache_info().misses
    rotary_tables(1e4, 16, 5_000_000, 5_000_003)
    assert rotary._chunk.cache_info().misses == before + 1


def test_a_model_that_claims_millions_of_positions_takes_no_memory_for_them() -> None:
    before = rotary._chunk.cache_info().misses
    Decoder(replace(small_config(1, 2, 1, 16), max_positions=1 << 24), MpcBackend(PlanSession()))
    assert rotary._chunk.cache_info().misses == before


def test_tables_have_the_precision_of_float32() -> None:
    model = model_shape("llama-7b", 1, 64)
    cos, sin = rotary_tables(model.rope_theta, model.head_size, 0, 64)
    assert (cos**2 + sin**2 - 1).abs().max() < 2e-9
