import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.protocols.ring import signed
from mpcache.protocols.truncation import drop_low_bits, truncate
from tests.protocols.sharing import run_counted, run_ring, shares_of


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([20, 33, 40, 48, 56, 64]), st.integers(0, 16), st.data())
def test_truncation_is_off_by_one_unit_at_most(bits: int, shift: int, data: st.DataObject) -> None:
    bound = 2 ** (bits - 2) - 1
    values = [*data.draw(st.lists(st.integers(-bound, bound), min_size=1, max_size=30)), bound, -bound, 0, -1, 1]
    z = torch.tensor(values)
    assert set((run_ring(truncate, z, shift=shift, bits=bits) - (z >> shift)).tolist()) <= {0, 1}


@pytest.mark.slow
def test_none_of_a_hundred_million_products_up_to_two_to_the_forty_is_off() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        x = torch.randint(-(2**20), 2**20 + 1, (1_000_000,), generator=generator)
        z = x * torch.randint(-(2**20), 2**20 + 1, (1_000_000,), generator=generator)
        error = run_ring(truncate, z) - (z >> 16)
        assert int(error.min()) >= 0 and int(error.max()) <= 1


def test_truncation_costs_what_its_docstring_says() -> None:
    _, cost = run_counted(truncate, torch.zeros(1000, dtype=torch.int64))
    assert (cost.rounds, cost.sent_bytes, cost.correction_bytes) == (1, 6000, 12000)


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=20), st.integers(1, 30))
def test_low_bits_are_dropped_locally_to_one_unit(values: list[int], shift: int) -> None:
    z = torch.tensor(values)
    a, b = shares_of(z)
    error = signed(drop_low_bits(a, shift) + drop_low_bits(b, shift) - (z >> shift), 64 - shift)
    assert set(error.tolist()) <= {-1, 0}
