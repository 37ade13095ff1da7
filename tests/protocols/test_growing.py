import pytest
import torch

from mpcache.protocols.growing import Growing


@pytest.mark.parametrize("dim", [0, 1])
def test_appended_rows_equal_a_concatenation_and_earlier_views_stay(dim: int) -> None:
    parts = [torch.randint(0, 100, (3, n) if dim else (n, 3)) for n in (4, 1, 1, 30, 1)]
    growing, views = Growing(parts[0], dim), [parts[0]]
    views += [growing.append(part) for part in parts[1:]]
    for i, view in enumerate(views):
        assert torch.equal(view, torch.cat(parts[: i + 1], dim))
