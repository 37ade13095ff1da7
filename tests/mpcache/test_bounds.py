"""Every bound is real: just inside, the private computation is right, beyond it is wrong, and the plain one, which
watches, says so. And docs/protocols.md has them all."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mpcache.inspection import bounds
from mpcache.inspection.bounds import BOUNDS, Bound, Reading, Sizes
from mpcache.inspection.watched import WatchedBackend
from mpcache.protocols.backends.mpc import MpcBackend, masked_weight
from mpcache.protocols.local import run_parties
from mpcache.protocols.randomness import new_key
from mpcache.protocols.ring import FRACTION_BITS, decode
from mpcache.protocols.session import Session
from mpcache.protocols.shares import Secret
from tests.mpcache.policies.private import sharing

PAGE = Path(__file__).resolve().parents[2] / "docs" / "protocols.md"
SIGNS = torch.tensor([[1.0], [-1.0]] * 32)
"""Both signs, many times."""
BEYOND = 1.9
"""So many times its limit a truncated value goes wrong in nearly one case of two: of 64 some, but for odds of 1e-16."""

Case = Callable[[Any, Callable[[torch.Tensor], Any], Callable[..., Any], float], Any]
"""A computation on a backend, whose value at one place is of the given size: (backend, share, weight, size)."""


def weight_case(b: Any, share: Any, weight: Any, size: float) -> Any:
    return b.linear(share(SIGNS * 2.0**-FRACTION_BITS), weight("layers.0.feed_forward_in", torch.tensor([[size]])))


def embedding_case(b: Any, share: Any, weight: Any, size: float) -> Any:
    tokens = list(range(64)) if b.name == "plain" or b.session.party == 1 else None
    return b.embed(tokens, 64, weight("embedding", SIGNS.t() * size))


def stream_case(b: Any, share: Any, weight: Any, size: float) -> Any:
    return b.rms_norm(share(SIGNS.expand(64, 64) * size / 8), 1e-5)


def stream_element_case(b: Any, share: Any, weight: Any, size: float) -> Any:
    return b.rms_norm(b.linear(share(SIGNS), weight("layers.0.attention_out", torch.tensor([[size], [0.0]]))), 1e-5)


def normed_case(b: Any, share: Any, weight: Any, size: float) -> Any:
    x = b.linear(share(SIGNS), weight("layers.0.attention_out", torch.full((2, 1), 1000.0)))
    return b.linear(b.rms_norm(x, 1e-5), weight("layers.0.feed_forward_in", torch.full((1, 2), size / 2000)))


def linear_case(name: str) -> Case:
    def case(b: Any, share: Any, weight: Any, size: float) -> Any:
        return b.linear(share(SIGNS), weight(f"layers.0.{name}", torch.tensor([[size]])))

    return case


def rotated_case(b: Any, share: Any, weight: Any, size: float) -> Any:
    half = torch.full((64, 2), round(math.sqrt(0.5) * 2**30) / 2**30, dtype=torch.float64)
    return b.rotate(share(SIGNS.expand(1, 64, 2) * size * torch.tensor([1.0, 0.0]) * math.sqrt(2)), half, half)


def attention(b: Any, share: Any, scores: torch.Tensor, values: torch.Tensor, visible: torch.Tensor | None) -> Any:
    """Of queries whose scores (queries, tokens) are given: each query is a row of scores, each key picks a column."""
    keys = torch.eye(scores.shape[-1])[None]
    cached, held = b.enter(None, share(scores[None]), share(keys), share(values[None]))
    return b.attend(held, cached, visible)


VALUES = torch.arange(16.0)[:, None]


def score_case(b: Any, share: Any, weight: Any, size: float) -> Any:
    return attention(b, share, SIGNS[:16] * size * torch.ones(16), VALUES, torch.ones(16, 16, dtype=torch.bool).tril())


def score_difference_case(b: Any, share: Any, weight: Any, size: float) -> Any:
    scores = (torch.eye(16) - 0.5) * size
    return attention(b, share, scores, VALUES, None)


def weighted_case(b: Any, share: Any, weight: Any, size: float) -> Any:
    n = 4096
    values = torch.full((1, n, 64), size / bounds.EXPONENTIAL / n) * SIGNS.flatten()
    queries, keys = torch.zeros(1, 1, 1), torch.zeros(1, n, 1)
    cached, held = b.enter(None, share(queries), share(keys), share(values))
    return b.attend(held, cached, None)


def attention_case(b: Any, share: Any, weight: Any, size: float) -> Any:
    return attention(b, share, torch.zeros(16, 2), torch.full((2, 64), size) * SIGNS.flatten(), None)


def activation_case(b: Any, share: Any, weight: Any, size: float) -> Any:
    return b.multiply(b.activation(share(SIGNS * size), "silu"), share(torch.ones(64, 1)))


def gated_case(b: Any, share: Any, weight: Any, size: float) -> Any:
    return b.multiply(b.activation(share(torch.full((64, 1), 128.0)), "gelu"), share(SIGNS * size / 128))


def logits_case(b: Any, share: Any, weight: Any, size: float) -> Any:
    logits = torch.linspace(-0.5, 0.5, 16) * size
    return b.next_tokens(share(torch.ones(1, 1)), weight("head", logits[:, None]), None, 16, 0.0)


def received_case(b: Any, share: Any, weight: Any, size: float) -> Any:
    largest = 1 - 2.0**-FRACTION_BITS  # what is in hand is then a factor of two, not more
    scores = torch.tensor([[0.98, 0.99, 0.1, 1.0]]) * largest * size
    return b.retain(share(scores), 1, largest, share(torch.arange(4.0)[None, :, None]))


def selection_case(b: Any, share: Any, weight: Any, size: float) -> Any:
    return b.gather(b.top_k(share(torch.linspace(-0.5, 0.5, 16)[None] * size), 1), share(VALUES[None]))


def extreme_case(b: Any, share: Any, weight: Any, size: float) -> Any:
    high, low = b.extremes(share(torch.linspace(-1, 1, 16)[:, None].expand(16, 64) * size))
    return b.concatenate([high, low], 0)


def scaled_case(b: Any, share: Any, weight: Any, size: float) -> Any:
    return b.scale(share(SIGNS * size * 4), 0.25)


def product_case(b: Any, share: Any, weight: Any, size: float) -> Any:
    return b.product(share(SIGNS[None] * size / 8), b.mask(share(torch.full((1, 64, 1), 8.0))), "multiply")


CASES: dict[Bound, Case] = {
    bounds.WEIGHT: weight_case,
    bounds.EMBEDDING: embedding_case,
    bounds.STREAM: stream_case,
    bounds.STREAM_ELEMENT: stream_element_case,
    bounds.NORMED: normed_case,
    bounds.QKV: linear_case("queries_keys_values"),
    bounds.ROTATED: rotated_case,
    bounds.SCORE: score_case,
    bounds.SCORE_DIFFERENCE: score_difference_case,
    bounds.WEIGHTED: weighted_case,
    bounds.ATTENTION: attention_case,
    bounds.PROJECTION: linear_case("attention_out"),
    bounds.FIRST: linear_case("feed_forward_in"),
    bounds.ACTIVATION: activation_case,
    bounds.GATED: gated_case,
    bounds.SECOND: linear_case("feed_forward_out"),
    bounds.LOGITS: logits_case,
    bounds.RECEIVED: received_case,
    bounds.SELECTION: selection_case,
    bounds.EXTREME: extreme_case,
    bounds.SCALED: scaled_case,
    bounds.POLICY_PRODUCT: product_case,
}


def run_plain(case: Case, size: float) -> tuple[torch.Tensor, Sizes]:
    backend = WatchedBackend()

    def weight(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return backend.weight(name, tuple(tensor.shape), tensor)

    out = case(backend, lambda x: x, weight, size)
    return torch.as_tensor(out).double(), backend.sizes()


def run_private(case: Case, size: float) -> torch.Tensor:
    key = new_key()

    def program(session: Session) -> Any:
        backend = MpcBackend(session, key if session.party == 0 else None)

        def weight(name: str, tensor: torch.Tensor) -> Any:
            backend._masked_weights[name] = masked_weight(key, name, tensor)
            return backend.weight(name, tuple(tensor.shape), tensor if session.party == 0 else None)

        out = case(backend, sharing(session), weight, size)
        return Secret(out.share, out.party) if isinstance(out, Secret) else out  # while the other party is there

    a, b = run_parties(program, weight_key=key)
    return decode(a.share + b.share) if isinstance(b, Secret) else torch.tensor(b).double()


def test_every_bound_is_tried() -> None:
    assert tuple(CASES) == BOUNDS


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: bound.name)
def test_just_inside_its_bound_a_value_is_right_and_beyond_it_is_wrong(bound: Bound) -> None:
    beyond = BEYOND * bounds.EXPONENTIAL if bound is bounds.WEIGHTED else BEYOND  # which equal scores have no need of
    for share, within in ((0.99, True), (beyond, False)):
        plain, sizes = run_plain(CASES[bound], share * bound.limit)
        (reading,) = [reading for reading in sizes.readings() if reading.bound is bound]
        assert reading.share == pytest.approx(share, rel=1e-3)
        assert reading.passed is not within
        private = run_private(CASES[bound], share * bound.limit)
        assert torch.allclose(private, plain, rtol=1e-3, atol=1e-2) is within


def test_attention_goes_wrong_where_scores_lie_below_what_masked_ones_count_as() -> None:
    """As every score of the row then counts as far below the maximum."""
    scores = torch.full((2, 2), -1.05 * bounds.SCORE.limit)

    def case(b: Any, share: Any, weight: Any, size: float) -> Any:
        return attention(b, share, scores, VALUES[:2] + 1, torch.ones(2, 2, dtype=torch.bool).tril())

    plain, sizes = run_plain(case, 0.0)
    assert [r.bound for r in sizes.passed()] == [bounds.SCORE]
    assert (run_private(case, 0.0)[0] - plain[0]).abs().max() > 0.5


def test_what_is_passed_by_values_of_no_size_is_passed() -> None:
    sizes = Sizes()
    sizes.note(bounds.GATED, 3, math.nan)
    sizes.note(bounds.GATED, 3, 5.0)
    (reading,) = sizes.passed()
    assert reading.size == math.inf and reading.to_dict()["size"] is None


def test_a_passed_place_is_named_with_its_layer_and_limit() -> None:
    sizes = Sizes()
    sizes.note(bounds.ACTIVATION, 3, 5210.0)
    sizes.note(bounds.ATTENTION, 0, 10.0)
    assert sizes.lines() == [
        "layer 3, input of SiLU or GELU: 5,210, beyond 4,080: the private answer is not to be trusted"
    ]
    assert str(Reading(bounds.LOGITS, None, 30.25)) == "difference of logits: 30.2, of 4,096"


def test_many_passed_places_are_counted() -> None:
    sizes = Sizes()
    for layer in range(20):
        sizes.note(bounds.STREAM, layer, 1e6 + layer)
    assert len(sizes.lines()) == bounds.SHOWN + 1 and sizes.lines()[-1] == "... and in 12 more places"


def test_the_documented_bounds_are_those_of_the_code() -> None:
    section = PAGE.read_text().partition("## Fixed point")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| ([\d,]+) \| ([^|]+) \|$", section, re.M)
    assert rows == [(bound.name, f"{bound.limit:,.0f}", bound.why) for bound in BOUNDS]
