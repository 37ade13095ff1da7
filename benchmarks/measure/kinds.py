"""What a stack is at work on: a kind of work, and the protocol that asked for it. The table of the profiler.

A stack is a list of places, the innermost first. The innermost place that the table knows decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from mpcache.protocols.correlation import Correlation

PRODUCTS, RANDOMNESS, TABLES, PACKING, ARITHMETIC = "products", "randomness", "tables", "packing", "arithmetic"
GRPC, PLANNING, PYTHON = "gRPC", "planning", "Python"
KINDS = {
    PRODUCTS: "products of matrices modulo 2^bits",
    RANDOMNESS: "AES streams, and their bytes as ring elements",
    TABLES: "lookup tables: made by the dealer, looked up by the parties",
    PACKING: "ring elements to bytes, and back",
    ARITHMETIC: "the rest of the protocols: sums, shifts and choices of tensors, and torch's calls",
    GRPC: "messages: links, gRPC, TLS, and the hand-over between threads",
    PLANNING: "the plan of what comes next",
    PYTHON: "everything else: model, policies, correlations' fields, interpreter",
}


class Place(NamedTuple):
    """A function on a stack. correlation: what it draws or deals at that moment, if it is a function that does."""

    module: str
    function: str
    correlation: Correlation | None = None


_P = "mpcache.protocols"
_FUNCTIONS = {
    (f"{_P}.ring", "pack"): PACKING,
    (f"{_P}.ring", "unpack"): PACKING,
    (f"{_P}.session", "_round"): PACKING,
    (f"{_P}.softmax", "_exponential_table"): TABLES,
    (f"{_P}.correlation", "_total"): ARITHMETIC,
    (f"{_P}.correlation", "correction"): ARITHMETIC,  # values less party 0's shares, its own lines
}
_MODULES = {
    f"{_P}.products": PRODUCTS,
    f"{_P}.randomness": RANDOMNESS,
    f"{_P}.lookup": TABLES,
    f"{_P}.polynomial": TABLES,
    f"{_P}.correlation": PYTHON,
    f"{_P}.session": PYTHON,
    f"{_P}.transport": GRPC,
    f"{_P}.ring": None,  # whoever asked
    _P: ARITHMETIC,
    "mpcache.parties.generated": GRPC,
    "mpcache.parties.link": GRPC,
    "mpcache.parties.dealer_link": GRPC,
    "mpcache.parties.chunks": GRPC,
    "grpc": GRPC,
    "mpcache": PYTHON,
}
"""By module; what stands in a folder is in its module too, unless it has a line of its own."""

PROTOCOLS = tuple(
    "activation beaver comparison linear normalisation rank reciprocal sampling shares shuffle softmax threshold "
    "truncation".split()
)
ROUNDS, OUTSIDE = "rounds", "outside"
"""Messages of all protocols together; what no protocol asked for."""


def kind_of(stack: Sequence[Place]) -> str:
    if any(place.module == "mpcache.generation.plan" for place in stack):
        return PLANNING
    known = (_known(place.module, place.function) for place in stack)
    return next((kind for kind in known if kind is not None), PYTHON)


def protocol_of(stack: Sequence[Place]) -> str:
    """The innermost protocol, or that of the correlation that is drawn or dealt."""
    for place in stack:
        if place.module == "mpcache.generation.plan":
            return OUTSIDE
        if place.correlation is not None:
            return type(place.correlation).__module__.rpartition(".")[2]
        package, _, name = place.module.rpartition(".")
        if package == _P and name in PROTOCOLS:
            return name
        if (place.module, place.function) == (f"{_P}.session", "_round"):
            return ROUNDS
    return OUTSIDE


@cache
def _known(module: str, function: str) -> str | None:
    if (module, function) in _FUNCTIONS:
        return _FUNCTIONS[module, function]
    while module:
        if module in _MODULES:
            return _MODULES[module]
        module = module.rpartition(".")[0]
    return None
