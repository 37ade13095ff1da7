"""Many streams at once give the bytes of each by itself, and packing them those of `ring.pack`."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.protocols.drawing import Streams, elements, packed, reduced
from mpcache.protocols.randomness import Stream, new_key
from mpcache.protocols.ring import pack, reduce_bits

numbers = st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(numbers, st.integers(1, 100))
def test_streams_drawn_together_are_each_streams_own(numbered: list[int], nbytes: int) -> None:
    key = new_key()
    together = Streams(key).begin(numbered, nbytes)
    assert [row.tobytes() for row in together] == [Stream(key, n).raw(nbytes).tobytes() for n in numbered]


@pytest.mark.parametrize("nbytes", [(1 << 18) - 1, 1 << 18, (1 << 18) + 17])
@pytest.mark.parametrize("numbered", [[3], [3, 1 << 40]])
def test_long_streams_as_well(numbered: list[int], nbytes: int) -> None:
    key = new_key()
    together = Streams(key).begin(numbered, nbytes)
    assert [row.tobytes() for row in together] == [Stream(key, n).raw(nbytes).tobytes() for n in numbered]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 64), st.integers(1, 20), st.integers(0, 9), st.integers(1, 3))
def test_elements_are_those_that_a_party_draws_and_packs(bits: int, count: int, before: int, several: int) -> None:
    key, numbered = new_key(), list(range(several))
    width = elements(np.zeros((1, 8), np.uint8), 0, 1, bits).itemsize
    drawn = elements(Streams(key).begin(numbered, before + count * width), before, count, bits)
    rows = packed(drawn, bits)
    for i, number in enumerate(numbered):
        stream = Stream(key, number)
        stream.raw(before)
        own = stream.elements((count,), bits)
        assert torch.equal(torch.from_numpy(reduced(drawn, bits)[i].astype(np.int64)), reduce_bits(own, bits))
        assert rows[i].tobytes() == pack(own, bits)
