"""The whole suite: `mpcache bench all`. What the full run and the quick one consist of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.agreement import agreement_cases
from benchmarks.decode import Workload, decode_cases
from benchmarks.networks import network_cases
from benchmarks.ops import operation_cases
from benchmarks.peer_cases import peer_cases
from benchmarks.policies import Contender, parse_contenders
from benchmarks.prefill import prefill_cases
from benchmarks.program import Program
from benchmarks.quality import PLACEMENTS
from benchmarks.quality_cases import QualityOptions, run_quality
from benchmarks.records import Record, Records
from benchmarks.runner import Case, ProcessPool, run_cases
from benchmarks.tasks import TASKS
from mpcache.network import NETWORKS


@dataclass(frozen=True)
class Suite:
    """Sizes of a run."""

    repeat: int
    decode_tokens: tuple[int, ...]
    crypten_tokens: tuple[int, ...]
    peer_tokens: tuple[int, ...]
    policies: str
    prefill_tokens: tuple[int, ...]
    prefill_layers: int | None
    network_tokens: tuple[int, ...]
    quality_policies: str
    quality_tokens: tuple[int, ...]
    tasks: tuple[str, ...]
    budgets: tuple[float, ...]
    documents: int
    agreements: int
    whole_model: bool


EVERY = "all,mpcache-static,mpcache-dynamic,mpcache-half,mpcache-by-head,mpcache-extremes,mpcache-paper"

FULL = Suite(
    repeat=7,
    decode_tokens=(256, 512, 1024, 2048),
    crypten_tokens=(512, 1024),
    peer_tokens=(512, 1024, 2048),
    policies=EVERY,
    prefill_tokens=(128, 512),
    prefill_layers=None,
    network_tokens=(1024,),
    quality_policies=EVERY,
    quality_tokens=(512, 1024, 2048),
    tasks=tuple(TASKS),
    budgets=(0.05, 0.1, 0.125, 0.25),
    documents=50,
    agreements=5,
    whole_model=True,
)
QUICK = Suite(
    repeat=3,
    decode_tokens=(512, 1024, 2048),
    crypten_tokens=(512,),
    peer_tokens=(1024,),
    policies="all,mpcache-static,mpcache-dynamic",
    prefill_tokens=(64, 128),
    prefill_layers=1,
    network_tokens=(1024,),
    quality_policies="all,mpcache-static,mpcache-dynamic",
    quality_tokens=(512, 1024),
    tasks=("day-sheet", "needle"),
    budgets=(0.05, 0.125, 0.25),
    documents=10,
    agreements=1,
    whole_model=False,
)


def run_suite(suite: Suite, model: Path, records: Records, announce: Callable[[str], None]) -> list[Record]:
    """Every part, one after another; records that are there already are kept."""
    out: list[Record] = []
    pool = ProcessPool()
    try:
        for name, cases in _parts(suite, model, pool):
            announce(name)
            out += run_cases(cases, records)
    finally:
        pool.close()
    announce("quality")
    options = QualityOptions(
        model,
        suite.tasks,
        suite.quality_tokens,
        parse_contenders(suite.quality_policies),
        suite.budgets,
        PLACEMENTS,
        suite.documents,
    )
    return out + run_quality(options, records)


def _parts(suite: Suite, model: Path, pool: ProcessPool) -> list[tuple[str, list[Case]]]:
    contenders, few = parse_contenders(suite.policies), parse_contenders("full,mpcache")
    block = Workload("gpt2", 1, Program("decode"))
    prompt = Workload("gpt2", suite.prefill_layers, Program("prefill"))
    parts = [
        ("ops", operation_cases(suite.repeat)),
        ("decode", decode_cases(block, suite.decode_tokens, contenders, ("mpc",), suite.repeat, pool)),
        ("decode, crypten", _crypten(block, suite, pool)),
        ("peers", peer_cases(suite.peer_tokens, ("full", "mpcache"), suite.repeat)),
        ("network", network_cases(block, list(NETWORKS.values()), suite.network_tokens, few, suite.repeat, pool)),
        ("prefill", prefill_cases(prompt, suite.prefill_tokens, parse_contenders("full"), ("mpc",), pool)),
    ]
    tasks = ("day-sheet", "needle")
    sample = agreement_cases(model, tasks, (256,), parse_contenders(suite.policies), suite.agreements)
    parts.append(("agreement", sample))
    if suite.whole_model:
        whole = Workload("gpt2", None, Program("decode", head=True))
        parts.append(("decode, whole model", decode_cases(whole, (512,), few, ("mpc",), 3, pool)))
    return parts


def _crypten(block: Workload, suite: Suite, pool: ProcessPool) -> list[Case]:
    full: Sequence[Contender] = parse_contenders("full")
    return decode_cases(block, suite.crypten_tokens, full, ("crypten",), suite.repeat, pool)
