"""What the profiler measures: which function is which kind of work, and which part of the computation it is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpcache.protocols.correlation import Correlation

PRODUCTS, RANDOMNESS, TABLES, PACKING, ARITHMETIC = "products", "randomness", "tables", "packing", "arithmetic"
GRPC, PLANNING, PYTHON = "gRPC", "planning", "Python"
KINDS = {
    PRODUCTS: "products of matrices modulo 2^bits",
    RANDOMNESS: "AES streams, and their bytes as ring elements",
    TABLES: "lookup tables: made by the dealer, looked up by the parties",
    PACKING: "ring elements to bytes and back, and messages joined of them",
    ARITHMETIC: "the rest of the protocols: sums, shifts and choices of tensors, and torch's calls",
    GRPC: "messages: links, gRPC, TLS, and the hand-over between threads",
    PLANNING: "the dealer's plan of what comes next",
    PYTHON: "everything else of a session: model, policies, correlations' fields",
}
OUTSIDE = "outside"
"""The part of what is done for no part alone."""

Arguments = Sequence[Any]
Named = Mapping[str, Any]


@dataclass(frozen=True)
class Work:
    """A function, or a class's, and its kind of work; of all that it calls, too, which is no work of its own.

    part: the part that it is for, from its arguments; without, it is for the part that asked.
    """

    module: str
    function: str
    kind: str | Callable[[Arguments], str]
    part: Callable[[Arguments, Named], str] | None = None


def _run_kind(arguments: Arguments) -> str:
    return PLANNING if arguments[0].planning else ARITHMETIC


def _run_part(arguments: Arguments, named: Named) -> str:
    """Session.run(self, protocol, part)."""
    return str(arguments[2] if len(arguments) > 2 else named.get("part", "other"))


def _dealt_part(arguments: Arguments, named: Named) -> str:
    """Correlation.deal(self, ...): the protocol's module."""
    return type(arguments[0]).__module__.rpartition(".")[2]


_P, _PARTIES = "mpcache.protocols", "mpcache.parties"
WORK = (
    Work(f"{_PARTIES}.owner", "OwnerService._serve", PYTHON),
    Work(f"{_PARTIES}.running", "Running._work", PYTHON),
    Work(f"{_PARTIES}.dealer", "DealerService._make", PYTHON),
    Work(f"{_PARTIES}.dealer", "DealerService._deal", PLANNING),  # which asks the plan for its correlations
    Work(f"{_P}.session", "Session.run", _run_kind, _run_part),
    Work(f"{_P}.correlation", "Dealer.corrections", ARITHMETIC),
    Work(f"{_P}.correlation", "PartyCorrelations.take", PYTHON),
    Work(f"{_P}.session", "Session._round", PACKING),
    Work(f"{_P}.ring", "pack", PACKING),
    Work(f"{_P}.ring", "unpack", PACKING),
    Work(f"{_P}.drawing", "packed", PACKING),
    Work(f"{_P}.drawing", "Streams.begin", RANDOMNESS),
    Work(f"{_P}.drawing", "elements", RANDOMNESS),
    Work(f"{_P}.randomness", "Stream.next", RANDOMNESS),
    Work(f"{_P}.randomness", "Stream.elements", RANDOMNESS),
    Work(f"{_P}.products", "times_rows", PRODUCTS),
    Work(f"{_P}.products", "heads_product", PRODUCTS),
    Work(f"{_P}.lookup", "LessThan.deal", TABLES),
    Work(f"{_P}.lookup", "_lookup", TABLES),
    Work(f"{_P}.polynomial", "deal_tables", TABLES),
    Work(f"{_P}.polynomial", "evaluate", TABLES),
    Work(f"{_P}.softmax", "_exponential_table", TABLES),
    Work(f"{_PARTIES}.link", "Link.send", GRPC),
    Work(f"{_PARTIES}.link", "Link.receive", GRPC),
    Work(f"{_PARTIES}.dealer_link", "DealerLink.read", GRPC),
    Work(f"{_PARTIES}.chunks", "BoundedChunks.put", GRPC),
)


def all_work() -> list[Work]:
    """The table, and what the dealer computes for each correlation."""
    deals = [kind for kind in _kinds_of(Correlation) if "deal" in vars(kind)]
    return [*WORK, *(Work(kind.__module__, f"{kind.__qualname__}.deal", ARITHMETIC, _dealt_part) for kind in deals)]


def _kinds_of(base: type) -> list[type]:
    below: list[type] = base.__subclasses__()
    return [*below, *(kind for each in below for kind in _kinds_of(each))]
