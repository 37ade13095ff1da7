"""Each protocol alone: both parties and the dealer in one process, so seconds are those of all three together."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mpcache.benchmarks.measure.runner import Case
from mpcache.benchmarks.records.record import Record, cost_figures
from mpcache.benchmarks.records.selection import done
from mpcache.benchmarks.records.tables import Rows, megabytes, seconds
from mpcache.protocols.activation import activation
from mpcache.protocols.beaver import multiply
from mpcache.protocols.comparison import is_negative
from mpcache.protocols.correlation import weight_mask
from mpcache.protocols.linear import MaskedWeight, linear
from mpcache.protocols.local import run_parties
from mpcache.protocols.maximum import argmax
from mpcache.protocols.normalisation import rms_norm
from mpcache.protocols.randomness import KEY_BYTES
from mpcache.protocols.rank import one_hot, top_k
from mpcache.protocols.ring import PRODUCT_BITS
from mpcache.protocols.session import Cost, Session
from mpcache.protocols.shuffle import compact
from mpcache.protocols.softmax import softmax
from mpcache.protocols.threshold import keep_largest
from mpcache.protocols.truncation import truncate

CONTAINS = {
    "seconds": "median wall time of both parties and the dealer in one process",
    "cpu_seconds": "median CPU time of the same",
    "online_bytes": "payload, both directions",
    "correlation_bytes": "corrections, both parties together",
    "rounds": "messages one after another",
}
_KEY = bytes(KEY_BYTES)


@dataclass(frozen=True)
class Operation:
    """A protocol on zeros: costs do not depend on values. run: (session, x) of `shape`, with the options."""

    protocol: Callable[..., Awaitable[Any]]
    shape: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def run(self) -> Cost:
        """Once, by both parties; what party 0 counts. (The dealer sends party 0 nothing.)"""
        x = torch.zeros(self.shape, dtype=torch.int64)

        def program(session: Session) -> Cost:
            session.run(self.protocol(session, x, **self.options))
            return session.cost

        return run_parties(program, weight_key=_KEY)[0]


def _square(session: Session, x: torch.Tensor) -> Awaitable[torch.Tensor]:
    return multiply(session, x, x)


def _linear(session: Session, x: torch.Tensor, outputs: int) -> Awaitable[torch.Tensor]:
    mask = weight_mask(_KEY, "bench", (outputs, x.shape[-1]), PRODUCT_BITS)
    return linear(session, x, MaskedWeight("bench", mask if session.party == 0 else torch.zeros_like(mask)))


async def _compact(session: Session, x: torch.Tensor, k: int) -> torch.Tensor:
    keep = session.constant((torch.arange(x.shape[1]) < k).to(torch.int64).expand(x.shape[:2]))
    return await compact(session, x, keep, k)


OPERATIONS = {
    "multiply 100,000": Operation(_square, (100_000,)),
    "truncate 100,000": Operation(truncate, (100_000,)),
    "linear 768 to 3,072": Operation(_linear, (1, 768), {"outputs": 3072}),
    "compare 100,000 at 19 bits": Operation(is_negative, (100_000,), {"bits": 19}),
    "softmax 12 x 1,024": Operation(softmax, (12, 1024)),
    "rms_norm 64 x 768": Operation(rms_norm, (64, 768), {"epsilon": 1e-5}),
    "silu 3,072": Operation(activation, (3072,), {"kind": "silu"}),
    "gelu 3,072": Operation(activation, (3072,), {"kind": "gelu_tanh"}),
    "one-hot 100 of 256": Operation(one_hot, (100,), {"size": 256}),
    "top 16 of 64, 12 rows": Operation(top_k, (12, 64), {"k": 16, "bits": 25}),
    "argmax 50,257": Operation(argmax, (1, 50_257), {"bits": 25}),
    "keep 512 of 1,024": Operation(keep_largest, (1, 1024), {"k": 512, "bits": 28}),
    "compact 1,024 to 512 rows of 128": Operation(_compact, (1, 1024, 128), {"k": 512}),
}


def operation_cases(repeat: int, names: Sequence[str] = tuple(OPERATIONS)) -> list[Case]:
    def case(name: str) -> Case:
        settings = {"bench": "ops", "operation": name, "repeat": repeat}
        return Case(f"ops {name}", settings, lambda: measure(name, repeat))

    return [case(name) for name in names]


def measure(name: str, repeat: int) -> Record:
    """Medians of `repeat` runs after one to warm up."""
    operation = OPERATIONS[name]
    cost, wall, cpu = operation.run(), [], []
    for _ in range(repeat):
        begun, begun_cpu = time.perf_counter(), time.process_time()
        cost = operation.run()
        wall.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - begun_cpu)
    return {
        "operation": name,
        "seconds": statistics.median(wall),
        "all_seconds": wall,
        "cpu_seconds": statistics.median(cpu),
        **cost_figures(cost),
        "contains": CONTAINS,
    }


HEADER = ("operation", "s", "CPU s", "online MB", "corr. MB", "rounds")


def operation_rows(records: Sequence[Record]) -> Rows:
    return [
        [
            r["operation"],
            seconds(r["seconds"]),
            seconds(r["cpu_seconds"]),
            megabytes(r["online_bytes"]),
            megabytes(r["correlation_bytes"]),
            str(r["rounds"]),
        ]
        for r in done(records)
    ]
