"""The whole suite: `mpcache bench all`. What the full run and the quick one consist of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpcache.benchmarks.cases.ablations import compared_policies
from mpcache.benchmarks.cases.agreement import ANSWERED, agreement_cases
from mpcache.benchmarks.cases.decode import Workload, decode_cases
from mpcache.benchmarks.cases.generation import MAX_NEW_TOKENS, generation_cases
from mpcache.benchmarks.cases.networks import network_cases
from mpcache.benchmarks.cases.ops import operation_cases
from mpcache.benchmarks.cases.peer_cases import peer_cases
from mpcache.benchmarks.cases.prefill import prefill_cases
from mpcache.benchmarks.cases.quality import QualityOptions, run_quality
from mpcache.benchmarks.cases.scoring import PLACEMENTS
from mpcache.benchmarks.cases.tasks import TASKS
from mpcache.benchmarks.measure.processes import ProcessPool
from mpcache.benchmarks.measure.program import Program
from mpcache.benchmarks.measure.runner import Case, run_cases
from mpcache.benchmarks.records.record import Record
from mpcache.benchmarks.records.store import Records
from mpcache.generation.network import NETWORKS
from mpcache.policies import LabelledPolicy


@dataclass(frozen=True)
class Suite:
    """Sizes of a run. agreement_*: a sample of the quality part's cases. whole_model: prefill and decode steps of all
    layers with embedding and head, ours and SPU's; without, prefill is that of one layer."""

    repeat: int
    peer_repeat: int
    generations: int
    decode_tokens: tuple[int, ...]
    crypten_tokens: tuple[int, ...]
    peer_tokens: tuple[int, ...]
    policies: str
    prefill_tokens: tuple[int, ...]
    network_tokens: tuple[int, ...]
    quality_policies: str
    quality_tokens: tuple[int, ...]
    tasks: tuple[str, ...]
    budgets: tuple[float, ...]
    documents: int
    agreement_policies: str
    agreement_tasks: tuple[str, ...]
    agreement_tokens: tuple[int, ...]
    agreement_documents: int
    whole_model: bool


EVERY = "all,mpcache-static,mpcache-dynamic,mpcache-half,mpcache-by-head,mpcache-extremes,mpcache-paper"
FEW = "full,mpcache"
WHOLE_MODEL_TOKENS = (512,)
PEER_PART_TOKENS = (1024,)
WHOLE_MODEL_REPEAT = 5
SPU_WHOLE_MODEL_REPEAT = 3
"""A step of SPU's takes seconds, and its start minutes."""

FULL = Suite(
    repeat=21,
    peer_repeat=7,
    generations=3,
    decode_tokens=(256, 512, 1024, 2048),
    crypten_tokens=(512, 1024),
    peer_tokens=(512, 1024, 2048),
    policies=EVERY,
    prefill_tokens=(128, 512),
    network_tokens=(1024,),
    quality_policies=EVERY,
    quality_tokens=(512, 1024, 2048),
    tasks=tuple(TASKS),
    budgets=(0.05, 0.1, 0.125, 0.25),
    documents=50,
    agreement_policies=EVERY,
    agreement_tasks=ANSWERED,
    agreement_tokens=(512,),
    agreement_documents=3,
    whole_model=True,
)
QUICK = Suite(
    repeat=3,
    peer_repeat=3,
    generations=1,
    decode_tokens=(512, 1024, 2048),
    crypten_tokens=(512,),
    peer_tokens=(1024,),
    policies="all,mpcache-static,mpcache-dynamic",
    prefill_tokens=(64, 128),
    network_tokens=(1024,),
    quality_policies="all,mpcache-static,mpcache-dynamic",
    quality_tokens=(512, 1024),
    tasks=("day-sheet", "needle"),
    budgets=(0.05, 0.125, 0.25),
    documents=10,
    agreement_policies="full,mpcache,h2o,quest",
    agreement_tasks=("day-sheet", "needle"),
    agreement_tokens=(512,),
    agreement_documents=2,
    whole_model=False,
)


def run_suite(suite: Suite, model: Path, records: Records, announce: Callable[[str], None]) -> list[Record]:
    """Every part, one after another; records that are there already are kept."""
    out: list[Record] = []
    pool = ProcessPool()
    try:
        for name, cases in suite_parts(suite, model, pool):
            announce(name)
            out += run_cases(cases, records)
    finally:
        pool.close()
    announce("quality")
    return out + run_quality(quality_options(suite, model), records)


def quality_options(suite: Suite, model: Path) -> QualityOptions:
    policies = compared_policies(suite.quality_policies)
    return QualityOptions(
        model, suite.tasks, suite.quality_tokens, policies, suite.budgets, PLACEMENTS, suite.documents
    )


def suite_parts(suite: Suite, model: Path, pool: ProcessPool) -> list[tuple[str, list[Case]]]:
    """All but quality. Whole generations come first, as long as no other benchmark's process runs, nor has this one
    grown: they tell peak memory. Agreement, which runs all parties in this process, comes last."""
    policies, few = compared_policies(suite.policies), compared_policies(FEW)
    block = Workload("gpt2", 1, Program("decode"))
    parts = [
        ("generate", generation_cases(model, few, MAX_NEW_TOKENS, suite.generations)),
        ("ops", operation_cases(suite.repeat)),
        ("decode", decode_cases(block, suite.decode_tokens, policies, ("mpc",), suite.repeat, pool)),
        ("decode, crypten", _crypten(block, suite, pool)),
        ("peers", peer_cases("block", suite.peer_tokens, ("full", "mpcache"), suite.peer_repeat)),
        ("peers, parts of a block", _peer_parts(suite)),
        ("network", network_cases(block, list(NETWORKS.values()), suite.network_tokens, few, suite.repeat, pool)),
        ("prefill", _prefill(suite, pool)),
    ]
    if suite.whole_model:
        whole = Workload("gpt2", None, Program("decode", embedding=True, head=True))
        ours = decode_cases(whole, WHOLE_MODEL_TOKENS, few, ("mpc",), WHOLE_MODEL_REPEAT, pool)
        spu = peer_cases("model", WHOLE_MODEL_TOKENS, ("full",), SPU_WHOLE_MODEL_REPEAT, ("spu-aby3",))
        parts += [("decode, whole model", ours), ("peers, whole model", spu)]
    return [*parts, ("agreement", sample(suite, model))]


def _peer_parts(suite: Suite) -> list[Case]:
    """Where ours are parts of the decode steps' records."""
    attention = peer_cases("attention", PEER_PART_TOKENS, ("full",), suite.peer_repeat)
    return attention + peer_cases("selection", PEER_PART_TOKENS, ("mpcache",), suite.peer_repeat)


def _crypten(block: Workload, suite: Suite, pool: ProcessPool) -> list[Case]:
    full: Sequence[LabelledPolicy] = compared_policies("full")
    return decode_cases(block, suite.crypten_tokens, full, ("crypten",), suite.repeat, pool)


def _prefill(suite: Suite, pool: ProcessPool) -> list[Case]:
    whole = suite.whole_model
    prompt = Workload("gpt2", None if whole else 1, Program("prefill", embedding=whole, head=whole))
    return prefill_cases(prompt, suite.prefill_tokens, compared_policies("full"), ("mpc",), pool)


def sample(suite: Suite, model: Path) -> list[Case]:
    """Cases that the quality part runs in plaintext (question after eviction, default budget), under mpc."""
    policies = compared_policies(suite.agreement_policies)
    return agreement_cases(model, suite.agreement_tasks, suite.agreement_tokens, policies, suite.agreement_documents)
