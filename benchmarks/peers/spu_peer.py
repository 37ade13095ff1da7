"""SPU as a peer: one process of its own Python for each party, see spu/party.py."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from mpcache.benchmarks.peers.case import Case, Figures
from mpcache.benchmarks.peers.processes import CaseFailed, free_addresses, run_together

SYSTEM = "spu"
PARTIES = {"ABY3": 3, "SEMI2K": 2}
"""Computing parties by protocol. SEMI2K's correlations are made by its party 0: SPU's default."""

FOLDER = Path(__file__).parent / "spu"
PYTHON_VARIABLE = "MPCACHE_SPU_PYTHON"
GRACE_SECONDS = 15
"""How much later than this process a party ends itself, should this one be gone."""

_COUNTERS = re.compile(r"Link details: total send bytes (\d+), recv bytes \d+, send actions (\d+)")


def python() -> Path:
    """The interpreter that has SPU: of the environment that spu/environment makes, or the one that is named."""
    return Path(os.environ.get(PYTHON_VARIABLE) or FOLDER / ".venv" / "bin" / "python")


def install() -> None:
    """Make SPU's environment. Raises CaseFailed with what went wrong."""
    done = subprocess.run([str(FOLDER / "environment")], stdout=sys.stderr, check=False)
    if done.returncode:
        raise CaseFailed("SPU's environment could not be made: see above")


@cache
def version(interpreter: Path) -> str | None:
    """SPU's version; None where it is not installed."""
    if not interpreter.exists():
        return None
    command = [str(interpreter), "-c", "import importlib.metadata as m; print(m.version('spu'))"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() or None


def absence(case: Case) -> str | None:
    """Why this case cannot be measured here; None if it can."""
    if version(python()) is None:
        return (
            f"SPU is not installed: run benchmarks/peers/spu/environment, or name a Python with it in {PYTHON_VARIABLE}"
        )
    return None


def measure(protocol: str, case: Case) -> Figures:
    """Raises CaseFailed."""
    count = PARTIES[protocol]
    task = {**case.to_dict(), "protocol": protocol, "addresses": free_addresses(count)}
    task["limit_seconds"] += GRACE_SECONDS
    with tempfile.TemporaryDirectory(prefix="mpcache-spu-") as name:
        folder = Path(name)
        results = [folder / f"party{rank}.json" for rank in range(count)]
        commands = {
            f"party {rank}": [str(python()), str(FOLDER / "party.py"), json.dumps(task), str(rank), str(result)]
            for rank, result in enumerate(results)
        }
        output = run_together(commands, case.limit_seconds, folder, folder)
        return _figures(protocol, [json.loads(result.read_text()) for result in results], list(output.values()))


def _figures(protocol: str, parties: list[dict[str, Any]], output: list[str]) -> Figures:
    counters = [_COUNTERS.findall(text) for text in output]
    if any(len(found) != 1 for found in counters):
        raise CaseFailed("SPU printed no link statistics: is it another version than 0.9.5?")
    sent = [int(found[0][0]) for found in counters]
    messages = [int(found[0][1]) for found in counters]
    cpu_seconds = [sum(times) for times in zip(*(party["cpu_seconds"] for party in parties), strict=True)]
    return Figures(
        all_seconds=[max(times) for times in zip(*(party["seconds"] for party in parties), strict=True)],
        cpu_seconds=sorted(cpu_seconds)[len(cpu_seconds) // 2],
        online_bytes=sum(sent),
        correlation_bytes=None,
        rounds=None,
        messages=sum(messages),
        messages_per_party=max(messages),
        error=max(parties[0]["errors"]),
        extra={
            "parties": len(parties),
            "versions": {"spu": version(python())},
            "peak_memory_bytes": {f"party {i}": party["peak_mib"] << 20 for i, party in enumerate(parties)},
            "contains": {
                "seconds": "median wall time of the slowest party, correlations included",
                "cpu_seconds": "median CPU time, all parties together",
                "online_bytes": "sent by all parties together, correlations included"
                + (" (ABY3 has none)" if protocol == "ABY3" else ""),
                "rounds": "not told by SPU: messages_per_party is the nearest",
            },
        },
    )
