"""Each protocol alone, both parties and the dealer in one process: `pytest benchmarks/`. Bytes and rounds go along."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from protocols.activation import activation
from protocols.comparison import is_negative
from protocols.local import run_parties
from protocols.normalisation import rms_norm
from protocols.product import multiply
from protocols.rank import argmax
from protocols.session import Session
from protocols.softmax import softmax
from protocols.truncation import truncate

CASES: dict[str, tuple[Callable[..., Any], tuple[int, ...], dict[str, Any]]] = {
    "truncate 100,000": (truncate, (100_000,), {}),
    "compare 100,000 at 19 bits": (is_negative, (100_000,), {"bits": 19}),
    "softmax 12 x 1,024": (softmax, (12, 1024), {}),
    "rms_norm 64 x 768": (rms_norm, (64, 768), {"epsilon": 1e-5}),
    "silu 3,072": (activation, (3072,), {"kind": "silu"}),
    "gelu 3,072": (activation, (3072,), {"kind": "gelu_tanh"}),
    "argmax 50,257": (argmax, (1, 50_257), {"bits": 25}),
}


@pytest.mark.parametrize("name", CASES)
def test_protocol(benchmark: Any, name: str) -> None:
    protocol, shape, options = CASES[name]
    x = torch.zeros(shape, dtype=torch.int64)

    def run() -> Any:
        def program(session: Session) -> Any:
            session.run(protocol(session, x, **options))
            return session.cost

        return run_parties(program)[0]

    cost = benchmark(run)
    benchmark.extra_info.update(
        online_bytes=cost.online_bytes, correlation_bytes=cost.correction_bytes, rounds=cost.rounds
    )


def test_multiply(benchmark: Any) -> None:
    x = torch.zeros(100_000, dtype=torch.int64)
    benchmark(lambda: run_parties(lambda session: session.run(multiply(session, x, x))))
