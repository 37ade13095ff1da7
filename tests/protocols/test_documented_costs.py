"""The table of costs in docs/protocols.md, row by row, against what the plan counts."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mpcache.protocols.activation import activation
from mpcache.protocols.backends.mpc import SCORE_BITS, WEIGHTED_BITS
from mpcache.protocols.beaver import extend, mask, multiply, multiply_masked, square_sum
from mpcache.protocols.comparison import is_negative, less_than, negative_part
from mpcache.protocols.gate import gate
from mpcache.protocols.linear import MaskedWeight, linear
from mpcache.protocols.maximum import argmax, maximum
from mpcache.protocols.normalisation import rms_norm
from mpcache.protocols.picking import Chosen, Layout, mask_choice, pick, place_masked
from mpcache.protocols.plan import PlanSession
from mpcache.protocols.rank import one_hot, ranks, striped_top_k, top_k
from mpcache.protocols.reciprocal import reciprocal, rsqrt
from mpcache.protocols.ring import RING_BITS
from mpcache.protocols.sampling import GumbelNoise
from mpcache.protocols.scaled import open_rows, scale_rows
from mpcache.protocols.session import Cost, Session
from mpcache.protocols.shuffle import compact, shuffle
from mpcache.protocols.softmax import divide, exponentials, softmax
from mpcache.protocols.stream import WIDE_BITS, normed_linear, stream_norm
from mpcache.protocols.stripes import Stripes
from mpcache.protocols.threshold import keep_largest
from mpcache.protocols.truncation import truncate

PAGE = Path(__file__).resolve().parents[2] / "docs" / "protocols.md"
MANY = 800
"""So that single bits count as what they are."""

Protocol = Callable[[Session, torch.Tensor], Awaitable[Any]]


def empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.int64, device="meta")


async def masked_products(session: Session, x: torch.Tensor) -> None:
    """A product of values that are masked already: what the cache saves."""
    held = await mask(session, x)
    session.cost = Cost()
    multiply_masked(session, held, held)


async def square_sums(session: Session, x: torch.Tensor) -> None:
    held = await mask(session, x, RING_BITS)
    session.cost = Cost()
    square_sum(session, held)


async def noise(session: Session, x: torch.Tensor) -> None:
    session.take(GumbelNoise(tuple(x.shape), 1.0, 12))


PAIRS, FOURS = Stripes(1024, 512, 512), Stripes(1024, 512, 256)


async def _masked_choice(session: Session) -> Chosen:
    """Of four, two in each stripe; what masking it costs is not counted."""
    chosen = await mask_choice(session, [empty(1, 256, 2, 4)], WEIGHTED_BITS)
    session.cost = Cost()
    return chosen


async def picked(session: Session, x: torch.Tensor) -> None:
    chosen = await _masked_choice(session)

    async def known() -> Chosen:
        return chosen

    await pick(session, FOURS, known(), x, SCORE_BITS)


async def placed(session: Session, x: torch.Tensor) -> None:
    """Of 12 heads, in clusters of four."""
    chosen = await _masked_choice(session)
    await place_masked(session, Layout((12, 1), 0, 4, FOURS), chosen, empty(12, 1, 0), x, WEIGHTED_BITS)


def known_weight(session: Session, x: torch.Tensor) -> Awaitable[torch.Tensor]:
    return linear(session, x, MaskedWeight("w", empty(3072, 768)))


def divided(session: Session, x: torch.Tensor) -> Awaitable[torch.Tensor]:
    return divide(session, x, empty(*x.shape[:-1], 1))


def with_(protocol: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Protocol:
    return lambda session, x: protocol(session, x, *arguments, **options)


async def dear(session: Session, x: torch.Tensor, protocol: Protocol) -> None:
    """As a slow network has it: fewer rounds for more bytes."""
    session.round_bytes = 10**6
    await protocol(session, x)


async def scaled(session: Session, x: torch.Tensor) -> None:
    await scale_rows(session, await open_rows(session, x, 56, 16), empty(*x.shape[:-1], 1))


def normed_layer(session: Session, x: torch.Tensor) -> Awaitable[torch.Tensor]:
    return normed_linear(session, x, 1e-5, MaskedWeight("w", empty(3072, 768), WIDE_BITS))


CASES: dict[str, tuple[Protocol, tuple[int, ...], int]] = {
    "truncation, 48 bits by 16": (truncate, (MANY,), MANY),
    "product of two values, 48 bits": (lambda s, x: multiply(s, x, x), (MANY,), MANY),
    "product of two masked values": (masked_products, (MANY,), MANY),
    "a row that enters a cache, an element": (lambda s, x: extend(s, None, x, 1), (1, MANY), MANY),
    "sum of squares of a masked row": (square_sums, (MANY, 5), MANY),
    "linear layer, 768 to 3,072": (known_weight, (1, 768), 1),
    "sign, 19 bits": (with_(is_negative, 19), (MANY,), MANY),
    "sign, 55 bits": (with_(is_negative, 55), (MANY,), MANY),
    "three thresholds, 36 bits": (with_(less_than, 36, (1, 2, 3)), (MANY,), MANY),
    "sign and negative part, 22 bits": (with_(negative_part, 22), (MANY,), MANY),
    "inverse root, fewer rounds": (with_(dear, with_(rsqrt, 8)), (1,), 1),
    "1/x, 6e-5 to 2^30": (reciprocal, (MANY,), MANY),
    "1/sqrt(x), 6e-5 to 2^30": (rsqrt, (MANY,), MANY),
    "exponentials and their sum, rows of 1,024": (with_(exponentials, out_bits=56), (12, 1024), 12 * 1024),
    "the same, fewer rounds": (with_(dear, with_(exponentials, out_bits=56)), (12, 1024), 12 * 1024),
    "rows of 64, truncated and scaled": (scaled, (MANY, 64), MANY * 64),
    "division by the sum, rows of 64": (divided, (MANY, 64), MANY * 64),
    "softmax, rows of 1,024": (softmax, (12, 1024), 12 * 1024),
    "RMSNorm, a row of 768": (with_(rms_norm, 1e-5), (64, 768), 64),
    "norm of the stream, a row of 768": (with_(stream_norm, 1e-5), (64, 768), 64),
    "normed layer, 768 to 3,072": (normed_layer, (1, 768), 1),
    "SiLU": (with_(activation, "silu"), (MANY,), MANY),
    "GELU": (with_(activation, "gelu"), (MANY,), MANY),
    "SiLU of a product, fewer rounds": (with_(gate, "silu", 48, 16), (MANY,), MANY),
    "GELU of a product, fewer rounds": (with_(gate, "gelu", 48, 16), (MANY,), MANY),
    "ranks of 16, 22 bits": (with_(ranks, 22), (MANY, 16), MANY),
    "top 8 of 64, 22 bits": (with_(top_k, 8, 22), (MANY, 64), MANY),
    "maximum of 1,024, 16 bits": (with_(maximum, 16), (12, 1024), 12),
    "maximum of 1,024, fewer rounds": (with_(dear, with_(maximum, 16)), (12, 1024), 12),
    "arg max of 50,257, 25 bits": (with_(argmax, 25), (1, 50_257), 1),
    "arg max of 50,257, fewer rounds": (with_(dear, with_(argmax, 25)), (1, 50_257), 1),
    "one-hot of 256": (with_(one_hot, 256), (MANY,), MANY),
    "top half of 1,024 in pairs, 22 bits, a candidate": (with_(striped_top_k, PAIRS, 22), (1, 1024), 1024),
    "top half of 1,024 in stripes of 4, 22 bits, a candidate": (with_(striped_top_k, FOURS, 22), (1, 1024), 1024),
    "pick half of 1,024 rows of 48, stripes of 4, an element": (picked, (1, 1024, 48), 1024 * 48),
    "put them back among other tokens, an element": (placed, (1, 512, 48), 1024 * 48),
    "keep 512 of 1,024, 28 bits": (with_(keep_largest, 512, 28), (8, 1024), 8),
    "shuffle, an element": (shuffle, (1, 100, 8), 800),
    "compaction of 1,024 rows of 128 to 512": (
        lambda s, x: compact(s, x, empty(1, 1024), 512),
        (1, 1024, 128),
        1,
    ),
    "Gumbel noise": (noise, (MANY,), MANY),
}


def documented() -> dict[str, tuple[str, str, str]]:
    """Rounds, online bytes and correction bytes, as written, by the row's name."""
    rows = re.findall(r"^\| [^|]*\| ([^|]+) \| (\d+) \| ([\d.,]+) \| ([\d.,]+) \|", PAGE.read_text(), re.M)
    return {name: (rounds, online, correction) for name, rounds, online, correction in rows}


def written(value: float) -> str:
    """Three significant digits, or whole."""
    if value == int(value) or value >= 1000:
        return f"{round(value):,}" if value < 1000 else f"{round(value, 2 - int(math.log10(value))):,.0f}"
    return f"{value:.3g}"


def counted(name: str) -> tuple[str, str, str]:
    protocol, shape, elements = CASES[name]
    session = PlanSession()
    session.run(protocol(session, empty(*shape)))
    cost = session.cost
    return str(cost.rounds), written(cost.online_bytes / elements), written(cost.correction_bytes / elements)


def test_every_row_is_counted() -> None:
    assert list(documented()) == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_documented_costs_are_those_that_are_counted(name: str) -> None:
    assert documented()[name] == counted(name)
