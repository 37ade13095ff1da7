import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpcache.protocols.ring import (
    _MANY,
    decode,
    encode,
    pack,
    packed_bytes,
    reduce_bits,
    shift_right,
    signed,
    unpack,
    unpack_sum,
)

int64 = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(int64, max_size=20), st.integers(1, 64))
def test_packing_keeps_values_modulo_two_to_the_width(values: list[int], bits: int) -> None:
    x = torch.tensor(values, dtype=torch.int64)
    data = pack(x, bits)
    assert len(data) == packed_bytes(len(values), bits)
    assert torch.equal(unpack(data, x.shape, bits), reduce_bits(x, bits))


@pytest.mark.parametrize("count", [_MANY - 1, _MANY, _MANY + 1, 3 * _MANY + 5])
@pytest.mark.parametrize("bits", [1, 8, 12, 20, 24, 31, 36, 40, 48, 56, 63, 64])
def test_long_values_are_packed_as_short_ones(count: int, bits: int) -> None:
    x = (torch.arange(1, count + 1) * -7046029254386353131).reshape(count, 1)
    width = (bits + 7) // 8
    data = pack(x, bits)
    if bits > 1:
        expected = b"".join((int(v) % 2**bits).to_bytes(width, "little") for v in x.flatten())
        assert data == expected
    for message in (data, bytearray(data), memoryview(b"?" + data + b"?")[1:-1]):  # at odd places, among others
        assert torch.equal(unpack(message, x.shape, bits), reduce_bits(x, bits))


@given(st.lists(st.tuples(int64, int64), max_size=20), st.integers(1, 64), st.booleans())
def test_a_sum_with_packed_values_is_that_of_the_values(pairs: list[tuple[int, int]], bits: int, xor: bool) -> None:
    mine, theirs = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    before = mine.clone()
    total = unpack_sum(pack(theirs, bits), mine, bits, xor=xor)
    assert torch.equal(total, reduce_bits(mine ^ theirs if xor else mine + theirs, bits))
    assert torch.equal(mine, before)


@pytest.mark.parametrize("bits", [1, 8, 12, 20, 24, 31, 40, 48, 63, 64])
def test_values_of_any_layout_and_type_are_packed(bits: int) -> None:
    """Transposed, repeated without a copy, and of 32 bits."""
    x = (torch.arange(1, 25) * -7046029254386353131).reshape(4, 6)
    for layout in (x.t(), x[:, ::2], x[:1].expand(3, 6), x[0, 0]):
        assert pack(layout, bits) == pack(layout.clone(memory_format=torch.contiguous_format), bits)
        assert torch.equal(unpack_sum(pack(layout, bits), layout, bits), reduce_bits(2 * layout, bits))
    if bits <= 32:
        assert pack(x.to(torch.int32), bits) == pack(x, bits)


def test_unpacked_values_may_be_changed() -> None:
    """They share nothing with the message."""
    data = bytearray(pack(torch.arange(5_000), 64))
    x = unpack(data, (5_000,), 64)
    data[:8] = b"\xff" * 8
    assert x[0] == 0
    x += 1


@given(int64, st.integers(2, 64))
def test_signed_is_the_representative_around_zero(value: int, bits: int) -> None:
    result = int(signed(torch.tensor(value), bits))
    assert (result - value) % 2**bits == 0
    assert -(2 ** (bits - 1)) <= result < 2 ** (bits - 1)


@given(int64, st.integers(2, 64), st.integers(0, 30))
def test_shift_right_is_logical(value: int, bits: int, shift: int) -> None:
    shift = min(shift, bits - 1)
    assert int(shift_right(torch.tensor(value), shift, bits)) % 2**64 == (value % 2**bits) >> shift


@pytest.mark.parametrize("value", [0.0, 1.0, -1.5, 3.14159, -8000.25])
def test_encoding_rounds_to_half_a_unit(value: float) -> None:
    assert abs(float(decode(encode(torch.tensor(value)))) - value) <= 2**-11
