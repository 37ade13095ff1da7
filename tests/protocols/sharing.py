"""Share test values, run a protocol as both parties, reconstruct."""

from collections.abc import Callable
from typing import Any

import torch

from mpcache.protocols.local import run_parties, shares_of
from mpcache.protocols.ring import encode, signed
from mpcache.protocols.session import Cost


def run_ring(protocol: Callable[..., Any], *values: torch.Tensor, width: int = 64, **options: Any) -> torch.Tensor:
    """The signed result modulo 2^width of protocol(session, *shares, **options)."""
    return run_counted(protocol, *values, width=width, **options)[0]


def run_counted(
    protocol: Callable[..., Any], *values: torch.Tensor, width: int = 64, **options: Any
) -> tuple[torch.Tensor, Cost]:
    """The result as in `run_ring`, and party 0's cost."""
    shared = [shares_of(v) for v in values]

    def program(session: Any) -> tuple[torch.Tensor, Cost]:
        result = session.run(protocol(session, *[s[session.party] for s in shared], **options))
        return result, session.cost

    (a, cost), (b, _) = run_parties(program)
    return signed(a + b, width), cost


def run_real(protocol: Callable[..., Any], x: torch.Tensor, **options: Any) -> torch.Tensor:
    """A fixed-point protocol on real numbers, decoded."""
    return run_ring(protocol, encode(x), **options).double() / 2**16
