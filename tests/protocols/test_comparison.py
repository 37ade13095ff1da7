import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.protocols.comparison import is_negative, less_than, negative_part
from mpcache.protocols.maximum import maximum
from tests.protocols.sharing import run_counted, run_ring


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([2, 5, 8, 13, 19, 20, 25, 31, 48, 55, 64]), st.data())
def test_comparison_is_exact(bits: int, data: st.DataObject) -> None:
    half = 2 ** (bits - 1)
    values = [*data.draw(st.lists(st.integers(-half, half - 1), min_size=1, max_size=20)), 0, -1, half - 1, -half]
    x = torch.tensor(values)
    assert torch.equal(run_ring(is_negative, x, bits=bits), (x < 0).long())


def test_thresholds_share_one_opening() -> None:
    x = torch.arange(-50, 50)
    thresholds = (-30, 0, 7)

    async def protocol(session: object, share: torch.Tensor) -> torch.Tensor:
        return await less_than(session, share, 12, thresholds)  # type: ignore[arg-type]

    result, cost = run_counted(protocol, x)
    assert torch.equal(result, torch.stack([x < t for t in thresholds], -1).long())
    assert cost.rounds == 3
    assert cost.sent_bytes == 100 * 2 + 300 * 1 + (300 + 7) // 8


@pytest.mark.parametrize("bits", [8, 19, 25, 33])
def test_negative_part_and_a_payload_need_no_further_round(bits: int) -> None:
    x = torch.tensor([0, 1, -1, 2 ** (bits - 2), -(2 ** (bits - 2))])
    payload = torch.tensor([7, -3, 100, 5, -(2**14)])

    async def protocol(session: object, share: torch.Tensor, payload: torch.Tensor, part: int) -> torch.Tensor:
        parts = await negative_part(session, share, bits, payload, 16)  # type: ignore[arg-type]
        result = parts[part]
        assert result is not None
        return result

    assert torch.equal(run_ring(protocol, x, payload, part=0, width=8), (x < 0).long())
    result, cost = run_counted(protocol, x, payload, part=1, width=bits)
    assert torch.equal(result, x.clamp(max=0))
    assert cost.rounds == (3 if bits <= 25 else 4)
    assert torch.equal(run_ring(protocol, x, payload, part=2, width=16), payload * (x < 0))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.data())
def test_flat_comparisons_take_three_rounds_whatever_their_width(bits: int, data: st.DataObject) -> None:
    bits = min(bits, 46)
    half = 2 ** (bits - 1)
    values = [*data.draw(st.lists(st.integers(-half, half - 1), min_size=1, max_size=4)), 0, -1, half - 1, -half]
    x = torch.tensor(values)

    async def protocol(session: object, share: torch.Tensor) -> torch.Tensor:
        return (await less_than(session, share, bits, flat=True))[..., 0]  # type: ignore[arg-type]

    result, cost = run_counted(protocol, x)
    assert torch.equal(result, (x < 0).long())
    assert cost.rounds <= 3


@pytest.mark.parametrize("n", [1, 2, 3, 64, 101])
def test_maximum_is_exact(n: int) -> None:
    x = torch.randint(-(2**17), 2**17, (4, n))
    x[0] = 5

    async def protocol(session: object, share: torch.Tensor) -> torch.Tensor:
        return await maximum(session, share, 19)  # type: ignore[arg-type]

    assert torch.equal(run_ring(protocol, x, width=19), x.amax(-1, keepdim=True))


def test_a_comparison_of_19_bits_costs_what_its_docstring_says() -> None:
    async def protocol(session: object, share: torch.Tensor) -> torch.Tensor:
        return await is_negative(session, share, 19)  # type: ignore[arg-type]

    _, cost = run_counted(protocol, torch.zeros(800, dtype=torch.int64))
    assert cost.rounds == 3
    assert cost.sent_bytes == 800 * 4 + 100
    assert cost.correction_bytes == 800 * (36 + 8) + 100
