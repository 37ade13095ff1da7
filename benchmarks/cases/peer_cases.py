"""Other systems' decode steps (benchmarks/peers) as cases of the suite, measured in the same run as ours."""

from __future__ import annotations

from collections.abc import Sequence

from mpcache.benchmarks.measure.runner import Case
from mpcache.benchmarks.peers.case import Case as PeerCase
from mpcache.benchmarks.peers.systems import SYSTEMS, measure_case
from mpcache.benchmarks.records.record import Record

LIMIT_SECONDS = {"attention": 300, "selection": 300, "block": 300, "model": 900}
_OUTER = ("bench", "settings", "load_average")


def peer_cases(
    what: str, tokens: Sequence[int], policies: Sequence[str], repeat: int, systems: Sequence[str] = tuple(SYSTEMS)
) -> list[Case]:
    """Decode steps of a part, a block or the whole model; a system that is not installed gives a record to say so."""

    def case(system: str, peer: PeerCase) -> Case:
        settings = {"bench": "peers", "system": system, "label": peer.policy, **peer.to_dict()}
        name = f"{system} {peer.what} {peer.policy} {peer.tokens} tokens"
        return Case(name, settings, lambda: _measure(system, peer))

    wanted = [PeerCase(what, n, policy, repeat, LIMIT_SECONDS[what]) for n in tokens for policy in policies]
    return [case(system, peer) for peer in wanted for system in systems]


def _measure(system: str, peer: PeerCase) -> Record:
    record = {key: value for key, value in measure_case(system, peer).items() if key not in _OUTER}
    if "versions" in record:
        record["system_versions"] = record.pop("versions")
    if "reason" in record:
        record["error"] = record.pop("reason")
    return record
