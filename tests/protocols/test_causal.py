import pytest

from mpcache.protocols.causal import Causal


@pytest.mark.parametrize("described", [Causal(1, 0, 1), Causal(5, 0, 2), Causal(3, 7, 1), Causal(16, 48, 3)])
def test_a_described_mask_has_the_shape_and_the_places_of_the_mask(described: Causal) -> None:
    mask = described.mask()
    assert described.shape == mask.shape and described.count() == int(mask.sum())


def test_a_query_sees_what_came_before_and_itself() -> None:
    assert Causal(2, 1, 2).mask().tolist() == [[True, True, False], [True, True, True]] * 2
