"""Other systems' decode steps (benchmarks/peers) as cases of the suite, measured in the same run as ours."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.peers.cases import Case as PeerCase
from benchmarks.peers.measure import SYSTEMS, measure_case
from benchmarks.records import Record
from benchmarks.runner import Case

LIMIT_SECONDS = 300
_OUTER = ("bench", "settings", "load_average")


def peer_cases(tokens: Sequence[int], policies: Sequence[str], repeat: int) -> list[Case]:
    """Blocks on every system; one that is not installed gives a record that says so."""

    def case(system: str, peer: PeerCase) -> Case:
        settings = {"bench": "peers", "system": system, "label": peer.policy, **peer.to_dict()}
        return Case(f"{system} {peer.policy} {peer.tokens} tokens", settings, lambda: _measure(system, peer))

    wanted = [PeerCase("block", n, policy, repeat, LIMIT_SECONDS) for n in tokens for policy in policies]
    return [case(system, peer) for peer in wanted for system in SYSTEMS]


def _measure(system: str, peer: PeerCase) -> Record:
    record = {key: value for key, value in measure_case(system, peer).items() if key not in _OUTER}
    if "versions" in record:
        record["system_versions"] = record.pop("versions")
    if "reason" in record:
        record["error"] = record.pop("reason")
    return record
