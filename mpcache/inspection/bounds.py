"""Where a private computation bounds a value: beyond, the answer is wrong, and nothing shows it.

Values live in rings of public widths, and a protocol is right while they fit. Each limit here follows from the
protocols' own constants; docs/protocols.md has the same table. They are those of the `mpc` backend.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mpcache.protocols.activation import LARGEST
from mpcache.protocols.backends.mpc import (
    EMBED_BITS,
    EXTREME_BITS,
    LOGIT_FRACTION_BITS,
    LOGIT_WIDTH,
    SELECT_FRACTION_BITS,
    SELECT_WIDTH,
    WEIGHTED_BITS,
)
from mpcache.protocols.normalisation import HIGH
from mpcache.protocols.reciprocal import RECIPROCAL_BITS
from mpcache.protocols.ring import FRACTION_BITS, PRODUCT_BITS, RING_BITS
from mpcache.protocols.softmax import COARSE_BITS, DIFFERENCE_BITS, MASKED
from mpcache.protocols.stream import WIDE_BITS

SHOWN = 8
"""Lines that are printed of a longer list."""


@dataclass(frozen=True)
class Bound:
    """A place, and the limit that sizes stay below there."""

    name: str
    limit: float
    why: str


def _truncated(bits: int, fraction_bits: int) -> float:
    """What a truncation modulo 2^bits bears (protocols/truncation.py), at this scale."""
    return 2.0 ** (bits - 2 - fraction_bits)


def _compared(bits: int, fraction_bits: int) -> float:
    """What two values may differ by when they are compared on so many bits (protocols/comparison.py)."""
    return 2.0 ** (bits - 1 - fraction_bits)


_PRODUCT = _truncated(PRODUCT_BITS, 2 * FRACTION_BITS)
_LINEAR = f"truncated modulo 2^{PRODUCT_BITS}, two scales; bias included"
_TRUNCATED = f"truncated modulo 2^{PRODUCT_BITS}, two scales"

WEIGHT = Bound(
    "weight",
    _truncated(PRODUCT_BITS, FRACTION_BITS),
    f"times one unit of its input, 2^-{FRACTION_BITS}, it is a product",
)
EMBEDDING = Bound(
    "embedding's element",
    _truncated(EMBED_BITS, FRACTION_BITS),
    f"looked up modulo 2^{EMBED_BITS}, which is a product's ring at scale 2^{FRACTION_BITS}",
)
STREAM = Bound(
    "residual stream",
    2.0 ** ((HIGH - FRACTION_BITS) / 2),
    f"the root of a norm's sum of squares, a table up to 2^{HIGH - FRACTION_BITS}; KeyDiff's keys as well",
)
STREAM_ELEMENT = Bound("element of the residual stream", _PRODUCT, _TRUNCATED + ", when a norm reads it")
NORMED = Bound(
    "layer of what is not yet normed",
    _truncated(WIDE_BITS, 2 * FRACTION_BITS),
    f"W x before its division by x's root mean square, truncated modulo 2^{WIDE_BITS}, where rounds are dear",
)
QKV = Bound("queries, keys and values", _PRODUCT, _LINEAR)
ROTATED = Bound("rotated queries and keys", _PRODUCT, _TRUNCATED)
SCORE = Bound(
    "score beside masked ones",
    float(-MASKED),
    f"the largest of a row, in size, as what is masked counts as {MASKED:,}; a token that sees all has no such bound",
)
SCORE_DIFFERENCE = Bound(
    "difference of scores",
    _compared(DIFFERENCE_BITS, FRACTION_BITS),
    f"within a row, q.k / sqrt(d), on {DIFFERENCE_BITS} bits",
)
WEIGHTED = Bound(
    "exponentials times values",
    _truncated(WEIGHTED_BITS, 2 * FRACTION_BITS),
    f"their sum before the division, truncated modulo 2^{WEIGHTED_BITS}; each exponential at most 1.65 = exp(1/2)",
)
ATTENTION = Bound(
    "attention's output",
    _truncated(RING_BITS, RECIPROCAL_BITS + FRACTION_BITS),
    f"divided at {RECIPROCAL_BITS + FRACTION_BITS} fractional bits",
)
PROJECTION = Bound("attention's projection", _PRODUCT, _LINEAR)
FIRST = Bound("feed forward's first layer", _PRODUCT, _LINEAR)
ACTIVATION = Bound("input of SiLU or GELU", LARGEST, "compared with 3 fractional bits on 16 bits")
GATED = Bound("gate times up", _PRODUCT, _TRUNCATED)
SECOND = Bound("feed forward's second layer", _PRODUCT, _LINEAR)
LOGITS = Bound(
    "difference of logits",
    _compared(LOGIT_WIDTH, LOGIT_FRACTION_BITS),
    f"noise of sampling included, compared on {LOGIT_WIDTH} bits",
)
RECEIVED = Bound(
    "attention received",
    2.0,
    "in multiples of the largest that `retain` or `argmin` is told; KeyDiff's differences as well",
)
SELECTION = Bound(
    "difference of clusters' scores",
    _compared(SELECT_WIDTH, SELECT_FRACTION_BITS),
    f"queries times what stands for a cluster, page or token, compared on {SELECT_WIDTH} bits",
)
EXTREME = Bound(
    "maximum or minimum",
    _truncated(EXTREME_BITS, FRACTION_BITS),
    f"of keys, and of Quest's products, lifted by a truncation modulo 2^{EXTREME_BITS}",
)
SCALED = Bound("scaled sum", _PRODUCT, _TRUNCATED + ": a cluster's mean, KeyDiff's and InfLLM's means")
POLICY_PRODUCT = Bound("policy's product", _PRODUCT, _TRUNCATED + ": Quest's, InfLLM's and KeyDiff's")

BOUNDS = (
    WEIGHT,
    EMBEDDING,
    STREAM,
    STREAM_ELEMENT,
    NORMED,
    QKV,
    ROTATED,
    SCORE,
    SCORE_DIFFERENCE,
    WEIGHTED,
    ATTENTION,
    PROJECTION,
    FIRST,
    ACTIVATION,
    GATED,
    SECOND,
    LOGITS,
    RECEIVED,
    SELECTION,
    EXTREME,
    SCALED,
    POLICY_PRODUCT,
)
"""In the order in which a block computes; the last five are the cache policies'."""

EXPONENTIAL = math.exp(2.0**-COARSE_BITS)
"""No exponential is larger, as the maximum is only known coarsely."""


@dataclass(frozen=True)
class Reading:
    """How large values were, or could be, at a place; layer None: outside of the layers, or in several at once."""

    bound: Bound
    layer: int | None
    size: float

    @property
    def share(self) -> float:
        return self.size / self.bound.limit

    @property
    def passed(self) -> bool:
        return self.size >= self.bound.limit

    @property
    def place(self) -> str:
        return self.bound.name if self.layer is None else f"layer {self.layer}, {self.bound.name}"

    def to_dict(self) -> dict[str, Any]:
        """size: None if it was infinite or no number."""
        size = self.size if math.isfinite(self.size) else None
        return {"place": self.bound.name, "layer": self.layer, "size": size, "limit": self.bound.limit}

    def __str__(self) -> str:
        relation = "beyond" if self.passed else "of"
        return f"{self.place}: {written(self.size)}, {relation} {written(self.bound.limit)}"


def written(size: float) -> str:
    return f"{size:,.0f}" if 100 <= size < 1e12 else f"{size:.3g}"


class Sizes:
    """The largest size at each place, layer by layer."""

    def __init__(self) -> None:
        self._sizes: dict[tuple[Bound, int | None], float] = {}

    def note(self, bound: Bound, layer: int | None, size: float) -> None:
        """What is no number counts as infinite."""
        size = math.inf if math.isnan(size) else size
        self._sizes[bound, layer] = max(size, self._sizes.get((bound, layer), 0.0))

    def readings(self) -> list[Reading]:
        """Nearest to its limit first."""
        every = [Reading(bound, layer, size) for (bound, layer), size in self._sizes.items()]
        return sorted(every, key=lambda reading: -reading.share)

    def passed(self) -> list[Reading]:
        return [reading for reading in self.readings() if reading.passed]

    def to_dict(self) -> dict[str, Any]:
        """`passed`: how many places were; all of them, nearest first."""
        return {"passed": len(self.passed()), "places": [reading.to_dict() for reading in self.readings()]}

    def lines(self) -> list[str]:
        """What a person should know: what was passed, or else what came nearest to its limit."""
        passed, readings = self.passed(), self.readings()
        if passed:
            told = [f"{reading}: the private answer is not to be trusted" for reading in passed[:SHOWN]]
            return [*told, *([f"... and in {len(passed) - SHOWN} more places"] if len(passed) > SHOWN else [])]
        return [f"all values within their bounds; nearest: {readings[0]} ({readings[0].share:.1%})"] if readings else []
