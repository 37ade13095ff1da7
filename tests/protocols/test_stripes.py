"""Choices in stripes: their public shape, what is picked, and where it is put back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.protocols.beaver import forget, unmask
from mpcache.protocols.picking import Layout, mask_choice, pick, place, place_masked
from mpcache.protocols.plan import plan_of
from mpcache.protocols.rank import RankMask, pairs_shape, striped_top_k
from mpcache.protocols.session import Session
from mpcache.protocols.stripes import Stripes, to_runs, to_tokens
from tests.protocols.sharing import run_ring

BITS = 22
FAR = 2 ** (BITS - 2)
scores_of = st.integers(-FAR + 1, FAR - 1) | st.sampled_from([0, 1, -FAR + 1, FAR - 1])


@st.composite
def shapes(draw: st.DrawFn, most: int = 40) -> Stripes:
    n = draw(st.integers(1, most))
    k = draw(st.integers(1, n))
    return Stripes(n, k, draw(st.integers(1, k)))


def largest_of_each_stripe(row: list[int], stripes: Stripes) -> list[int]:
    """By definition: the positions of what is picked, stripe by stripe, the largest first, ties by position."""
    out = []
    for stripe in range(stripes.count):
        members = list(range(stripe, len(row), stripes.count))
        picks = stripes.picked // stripes.count + (stripe < stripes.picked % stripes.count)
        if picks < len(members):
            members = sorted(members, key=lambda i: (-row[i], i))[:picks]
        out += members
    return out


def one_hot(positions: list[int], n: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(positions), n)


@settings(deadline=None)
@given(shapes(200))
def test_every_candidate_lies_in_a_stripe_and_k_are_picked(stripes: Stripes) -> None:
    groups = stripes.groups
    assert [g.first for g in groups] == [0, *[g.end for g in groups[:-1]]] and groups[-1].end == stripes.count
    assert sum(g.stripes * g.size for g in groups) == stripes.candidates
    assert sum(g.stripes * g.picks for g in groups) == stripes.picked
    assert all(1 <= g.picks <= g.size for g in groups) and len(groups) <= 3
    assert max(g.size for g in groups) - min(g.size for g in groups) <= 1


@settings(deadline=None)
@given(shapes(200))
def test_rows_are_split_by_stripe_and_joined_again(stripes: Stripes) -> None:
    x = torch.arange(2 * stripes.candidates * 3).reshape(2, stripes.candidates, 3)
    parts = stripes.split(x)
    assert torch.equal(stripes.join(parts), x)
    for group, part in zip(stripes.groups, parts, strict=True):
        assert part.shape == (2, group.stripes, group.size, 3)
        assert torch.equal(part[:, 0], x[:, group.first :: stripes.count])
    picked = x[:, : stripes.picked]
    assert torch.equal(stripes.join_picked(stripes.split_picked(picked)), picked)


@pytest.mark.parametrize("heads", [1, 4])
def test_runs_of_tokens_and_back(heads: int) -> None:
    x = torch.arange(4 * 2 * 6).reshape(4, 2, 6)
    runs = to_runs(x, 3, heads)
    assert runs.shape == (heads, 2, 4 * 2 * 3 // heads)
    assert set(runs[0, 1].tolist()) <= set(x[..., 3:].flatten().tolist())
    assert torch.equal(to_tokens(runs, 3, (4, 2)), x)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_in_each_stripe_the_largest_are_chosen_picked_and_put_back(data: st.DataObject) -> None:
    stripes = data.draw(shapes())
    n, k = stripes.candidates, stripes.picked
    rows = [data.draw(st.lists(scores_of, min_size=n, max_size=n)) for _ in range(2)]
    x = torch.tensor([[r, r] for r in rows]).transpose(1, 2) * 3 + torch.tensor([0, 1])  # (2, n, 2)

    async def protocol(session: Session, both: torch.Tensor) -> torch.Tensor:
        """Picked rows, rows put back, and the same in place between other tokens."""
        scores, values = both[..., 0], both[..., 1:]
        choice = await striped_top_k(session, scores, stripes, BITS, 56)
        chosen = await mask_choice(session, choice, 56)

        async def known() -> list:
            return chosen

        picked = await pick(session, stripes, known(), values, 32)
        back = await place(session, stripes, chosen, picked, 32)
        layout, outside = Layout((2, 1), 1, 2, stripes), torch.zeros_like(values[:, :1, :1]).expand(2, 1, 3)
        held, used = await place_masked(session, layout, chosen, outside, picked, 32)
        tokens = unmask(session, held)
        forget(session, held, *used)
        return torch.cat([picked.flatten(), back.flatten(), tokens.flatten()])

    both = torch.cat([torch.tensor(rows)[..., None], x], -1)
    found = run_ring(protocol, both, width=32)
    choice = torch.stack([one_hot(largest_of_each_stripe(r, stripes), n) for r in rows])
    picked, back, tokens = found.split([2 * k * 2, 2 * n * 2, 2 * (3 + 2 * n)])
    expected = choice @ x
    assert torch.equal(picked.reshape(2, k, 2), expected)
    expected = choice.transpose(1, 2) @ expected
    assert torch.equal(back.reshape(2, n, 2), expected)
    in_place = torch.nn.functional.pad(to_tokens(expected, 2, (2, 1)), (1, 2))
    assert torch.equal(tokens.reshape(2, 1, -1), in_place)


@pytest.mark.parametrize(("count", "rounds"), [(1, 4), (16, 4), (32, 3)])
def test_a_choice_takes_as_many_comparisons_as_its_stripes_have_pairs(count: int, rounds: int) -> None:
    stripes = Stripes(64, 32, count)

    async def protocol(session: Session, x: torch.Tensor) -> None:
        await striped_top_k(session, x, stripes, BITS)

    plan = plan_of(protocol, (1, 64))
    size = 64 // count
    assert len(plan.messages) == rounds
    compared = [pairs_shape(c.shape) for c in plan.correlations if isinstance(c, RankMask)]
    assert compared == [(1, count, size * (size - 1) // 2)] * (size > 2)


@pytest.mark.parametrize("n", [16, 1024, 65_536])
def test_a_choice_of_half_in_pairs_is_linear(n: int) -> None:
    async def protocol(session: Session, x: torch.Tensor) -> None:
        await striped_top_k(session, x, Stripes(n, n // 2, n // 2), BITS)

    cost = plan_of(protocol, (1, n)).cost()
    assert cost.rounds == 3 and (cost.online_bytes + cost.correction_bytes) / n < 50
