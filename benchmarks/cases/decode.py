"""What a decode step costs, by cache policy and cached tokens."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mpcache.benchmarks.measure.model import checkpoint
from mpcache.benchmarks.measure.namespace import Namespace
from mpcache.benchmarks.measure.plaintext import run_in_plaintext
from mpcache.benchmarks.measure.processes import ProcessPool, Span
from mpcache.benchmarks.measure.program import Program
from mpcache.benchmarks.measure.roles import Setup
from mpcache.benchmarks.measure.runner import Case
from mpcache.benchmarks.records.record import Record, cost_figures
from mpcache.generation.network import Network
from mpcache.model.shapes import model_shape
from mpcache.policies import LabelledPolicy
from mpcache.protocols.session import Cost, Part

CONTAINS = {
    "seconds": "median wall time of a decode step at the client, waiting for the others included",
    "cpu_seconds": "median CPU time of a decode step, all three processes together",
    "online_bytes": "payload between the two parties, both directions, of the median step",
    "correlation_bytes": "corrections that the dealer sends, both parties together (party 0 is sent none)",
    "rounds": "messages one after another, one in each direction at the same time counting once",
    "parts": "the same by what it is spent on; CPU is the client's alone",
    "eviction": "once, after the prompt: static eviction and the clusters' representatives; not part of a step",
    "embedding": "left out unless settings.program.embedding",
    "head": "final norm, logits and arg max: left out unless settings.program.head",
}

WARM_UP = 3
"""Steps before those that are measured: the first meet cold caches and a dealer that still makes the weights' masks,
as it does during a prefill."""


@dataclass(frozen=True)
class Workload:
    """A model's shape and what of it is run. shape: a known shape's name or a model folder."""

    shape: str
    layers: int | None
    program: Program
    network: Network | None = None
    namespace: Namespace | None = None

    def setup(self, tokens: int) -> Setup:
        """Without embedding and head, the vocabulary is left out of the model."""
        config = model_shape(self.shape, self.layers, tokens + 256)
        folder = Path(self.shape) if Path(self.shape).is_dir() else None
        if folder is None and not (self.program.head or self.program.embedding):
            config = replace(config, vocabulary=2)
        return Setup(config, self.program, folder, self.network, self.namespace)

    def settings(self, tokens: int) -> Record:
        return {
            "shape": self.shape,
            "layers": self.setup(tokens).config.layers,
            "tokens": tokens,
            "program": self.program.to_dict(),
            "network": asdict(self.network) if self.network else None,
            **({"namespace": asdict(self.namespace)} if self.namespace else {}),
        }


def decode_cases(
    workload: Workload,
    tokens: Sequence[int],
    policies: Sequence[LabelledPolicy],
    backends: Sequence[str],
    repeat: int,
    pool: ProcessPool,
    bench: str = "decode",
) -> list[Case]:
    longest = max(tokens)

    def case(count: int, policy: LabelledPolicy, backend: str) -> Case:
        settings = {
            "bench": bench,
            **workload.settings(count),
            "policy": asdict(policy.settings),
            "label": policy.label,
            "backend": backend,
            "repeat": repeat,
        }
        setup = workload.setup(longest)
        return Case(
            f"{bench} {policy.label} {count} tokens {backend}",
            settings,
            lambda: _measure(setup, count, policy, backend, repeat, pool),
        )

    return [case(n, c, b) for n in tokens for b in backends for c in policies]


def _measure(setup: Setup, tokens: int, policy: LabelledPolicy, backend: str, repeat: int, pool: ProcessPool) -> Record:
    if backend == "plain":
        return _plain(setup, tokens, policy, repeat)
    with pool.processes(setup) as processes:
        run = processes.run([0] * tokens, WARM_UP + repeat, policy.settings, backend)
    _, eviction, *steps = run.spans
    return {
        "policy": policy.label,
        "tokens": tokens,
        "backend": backend,
        **summary(steps[WARM_UP:]),
        "eviction": costs(eviction),
        "dealer": {
            "ahead": sum(s.waited_seconds for s in steps[WARM_UP:]) == 0.0,
            "waited_seconds": statistics.mean(s.waited_seconds for s in steps[WARM_UP:]),
        },
        "peak_memory_bytes": run.peak_bytes,
        "contains": CONTAINS,
    }


def summary(steps: Sequence[Span]) -> Record:
    """Medians of equal steps, and every step's seconds."""
    middle = sorted(steps, key=lambda s: s.cost.online_bytes)[len(steps) // 2]
    processes = steps[0].cpu_seconds
    return {
        "seconds": statistics.median(s.seconds for s in steps),
        "all_seconds": [s.seconds for s in steps],
        "cpu_seconds": statistics.median(s.all_cpu_seconds for s in steps),
        "cpu_seconds_by_process": {
            role: statistics.median(s.cpu_seconds[role] or 0.0 for s in steps) for role in processes
        },
        **cost_figures(middle.cost),
        "parts": {
            name: _part([s.parts[name] for s in steps if name in s.parts], part) for name, part in _parts(middle)
        },
    }


def _parts(span: Span) -> list[tuple[str, Part]]:
    order = ("linear", "selection", "attention", "other", "head", "eviction")
    return sorted(span.parts.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))


def _part(parts: Sequence[Part], middle: Part) -> Record:
    return {
        "seconds": statistics.median(part.seconds for part in parts),
        "cpu_seconds": statistics.median(part.cpu_seconds for part in parts),
        **cost_figures(middle.cost),
    }


def costs(span: Span) -> Record:
    return {
        "seconds": span.seconds,
        "cpu_seconds": span.all_cpu_seconds,
        **cost_figures(span.cost),
        "parts": {name: _part([part], part) for name, part in _parts(span)},
    }


@torch.no_grad()
def _plain(setup: Setup, tokens: int, policy: LabelledPolicy, repeat: int) -> Record:
    """The same program in the clear, in this process alone."""
    model = checkpoint(setup.config, setup.model)
    _, eviction, *steps = run_in_plaintext(setup.program, model, tokens, WARM_UP + repeat, policy.settings)
    steps = steps[WARM_UP:]
    figures: dict[str, Any] = {
        "policy": policy.label,
        "tokens": tokens,
        "backend": "plain",
        "seconds": statistics.median(s.seconds for s in steps),
        "all_seconds": [s.seconds for s in steps],
        "cpu_seconds": statistics.median(s.cpu_seconds for s in steps),
        **cost_figures(Cost()),
        "parts": {},
        "eviction": {"seconds": eviction.seconds},
        "contains": {**CONTAINS, "seconds": "median wall time of a decode step in the clear, one process"},
    }
    return figures
