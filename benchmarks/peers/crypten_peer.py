"""CrypTen's own protocols as a peer: three processes, our transport and dealer, see crypten_roles."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from mpcache.benchmarks.peers.case import Case, Figures
from mpcache.benchmarks.peers.processes import run_together
from mpcache.parties.certificates import write_development_certificates
from mpcache.protocols.crypten.importing import PROVED_ON

SYSTEM = "crypten"
PROTOCOL = "beaver"
ROLES = ("dealer", "owner", "client")
PARTIES = ("owner", "client")
GRACE_SECONDS = 15
"""How much later than this process a role ends itself, should this one be gone."""

_ROOT = Path(__file__).resolve().parents[2]


def absence(case: Case) -> str | None:
    """Why this case cannot be measured here: CrypTen is a dependency of ours, and every case has a program."""
    return None


def measure(protocol: str, case: Case) -> Figures:
    """Raises CaseFailed."""
    with tempfile.TemporaryDirectory(prefix="mpcache-crypten-") as name:
        folder = Path(name)
        write_development_certificates(folder / "certificates", days=1)
        task = {**case.to_dict(), "limit_seconds": case.limit_seconds + GRACE_SECONDS}
        (folder / "case.json").write_text(json.dumps(task))
        command = [sys.executable, "-m", "mpcache.benchmarks.peers.crypten_roles"]
        commands = {role: [*command, role, str(folder)] for role in ROLES}
        run_together(commands, case.limit_seconds, folder, _ROOT)
        return _figures({role: json.loads((folder / f"{role}.json").read_text()) for role in ROLES})


def _figures(found: dict[str, dict[str, Any]]) -> Figures:
    owner, client = (found[role] for role in PARTIES)
    cpu = {role: sorted(found[role]["cpu_seconds"])[len(found[role]["cpu_seconds"]) // 2] for role in ROLES}
    return Figures(
        all_seconds=[max(pair) for pair in zip(owner["seconds"], client["seconds"], strict=True)],
        cpu_seconds=sum(cpu.values()),
        online_bytes=owner["sent_bytes"] + client["sent_bytes"],
        correlation_bytes=client["correlation_bytes"],
        rounds=client["rounds"],
        messages=owner["messages"] + client["messages"],
        messages_per_party=max(owner["messages"], client["messages"]),
        error=client["error"],
        extra={
            "parties": len(PARTIES),
            "versions": {"crypten": PROVED_ON},
            "cpu_seconds_by_process": cpu,
            "peak_memory_bytes": {role: found[role]["peak_mib"] << 20 for role in ROLES},
            "contains": {
                "seconds": "median wall time of the slower party, online: correlations were there before",
                "cpu_seconds": "median CPU time, both parties and the dealer together",
                "online_bytes": "payload between the two parties, both directions",
                "correlation_bytes": "corrections that the dealer sends, both parties together",
            },
        },
    )
