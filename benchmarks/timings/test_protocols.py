"""Each protocol alone, both parties and the dealer in one process: `pytest benchmarks/`. Bytes and rounds go along."""

from typing import Any

import pytest

from mpcache.benchmarks.cases.ops import OPERATIONS


@pytest.mark.parametrize("name", OPERATIONS)
def test_protocol(benchmark: Any, name: str) -> None:
    cost = benchmark(OPERATIONS[name].run)
    benchmark.extra_info.update(
        online_bytes=cost.online_bytes, correlation_bytes=cost.correction_bytes, rounds=cost.rounds
    )
