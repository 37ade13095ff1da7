"""How near the plaintext twins of private runs came to what bounds these (mpcache/inspection/bounds.py)."""

from __future__ import annotations

import math
from collections.abc import Iterable

from mpcache.benchmarks.records.record import Record
from mpcache.inspection.bounds import Bound, Sizes

RANGES = (
    "the largest values of the run in plaintext, at every place where a private one bounds them, beside the limits; "
    "passed: at how many places they were beyond, so that private answers are not to be trusted"
)


def all_ranges(records: Iterable[Record]) -> Sizes:
    """Of all records that have them, together."""
    sizes = Sizes()
    for record in records:
        for place in (record.get("ranges") or {}).get("places", []):
            size = math.inf if place["size"] is None else place["size"]
            sizes.note(Bound(place["place"], place["limit"], ""), place["layer"], size)
    return sizes
