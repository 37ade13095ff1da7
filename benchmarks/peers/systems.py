"""Measure one case on one system, by its name: `spu-aby3`, `spu-semi2k`, `crypten`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mpcache.benchmarks.peers import crypten_peer, spu_peer
from mpcache.benchmarks.peers.case import Case, Figures, Record, measured, not_measured
from mpcache.protocols.errors import MpcacheError


@dataclass(frozen=True)
class System:
    """absence: why a case cannot be measured here, or None; measure: raises MpcacheError."""

    name: str
    protocol: str
    absence: Callable[[Case], str | None]
    measure: Callable[[str, Case], Figures]


SYSTEMS = {
    **{
        f"spu-{protocol.lower()}": System(spu_peer.SYSTEM, protocol, spu_peer.absence, spu_peer.measure)
        for protocol in spu_peer.PARTIES
    },
    "crypten": System(crypten_peer.SYSTEM, crypten_peer.PROTOCOL, crypten_peer.absence, crypten_peer.measure),
}


def measure_case(name: str, case: Case) -> Record:
    """The record of a case, whatever became of it."""
    system = SYSTEMS[name]
    reason = system.absence(case)
    if reason is not None:
        return not_measured(system.name, system.protocol, case, "absent", reason)
    try:
        figures = system.measure(system.protocol, case)
    except MpcacheError as error:
        return not_measured(system.name, system.protocol, case, "failed", str(error))
    return measured(system.name, system.protocol, case, figures)
