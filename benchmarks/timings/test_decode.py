"""Decode steps and prefills over three real processes: `pytest benchmarks/timings/test_decode.py`. Costs go along."""

from collections.abc import Iterator
from typing import Any

import pytest

from mpcache.benchmarks.cases.ablations import compared_policies
from mpcache.benchmarks.cases.decode import Workload
from mpcache.benchmarks.cases.prefill import total
from mpcache.benchmarks.measure.processes import Processes, ProcessPool, Span
from mpcache.benchmarks.measure.program import Program
from mpcache.policies import available_policies

TOKENS = 512
BLOCK = Workload("gpt2", 1, Program("decode"))
PROMPT = Workload("gpt2", 1, Program("prefill"))


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPool]:
    pool = ProcessPool()
    yield pool
    pool.close()


def note(benchmark: Any, span: Span) -> None:
    benchmark.extra_info.update(
        online_bytes=span.cost.online_bytes,
        correlation_bytes=span.cost.correction_bytes,
        rounds=span.cost.rounds,
        cpu_seconds=span.all_cpu_seconds,
    )


@pytest.mark.parametrize("policy", available_policies())
def test_decode_steps(benchmark: Any, pool: ProcessPool, policy: str) -> None:
    """A session of 5 steps, its start and the filling of its cache included; a step alone is in the extra info."""
    (named,) = compared_policies(policy)
    with pool.processes(BLOCK.setup(TOKENS)) as processes:
        run = benchmark.pedantic(_session, args=(processes, named.settings, 5), rounds=3)
    note(benchmark, run.spans[-1])
    benchmark.extra_info["seconds_per_step"] = min(s.seconds for s in run.spans[3:])


def test_prefill(benchmark: Any, pool: ProcessPool) -> None:
    (named,) = compared_policies("full")
    with pool.processes(PROMPT.setup(128)) as processes:
        run = benchmark.pedantic(_session, args=(processes, named.settings, 1, 128), rounds=1)
    note(benchmark, total(run.spans))


def _session(processes: Processes, policy: Any, steps: int, tokens: int = TOKENS) -> Any:
    return processes.run([0] * tokens, steps, policy)
