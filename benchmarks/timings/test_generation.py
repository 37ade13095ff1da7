"""The demo's generation, three real processes, mutual TLS: `pytest benchmarks/timings/test_generation.py`."""

from typing import Any

from mpcache.benchmarks.cases.generation import generate, prompt_tokens
from mpcache.demo import DEMO_MODEL
from mpcache.parties.settings import DEFAULT_POLICY


def test_demo_generation(benchmark: Any) -> None:
    """Start of the processes, prefill of the day sheet (with the first token), at most 7 tokens, plaintext's answer.

    The extra info has what `mpcache bench generate` tells of it.
    """
    arguments = (DEMO_MODEL, prompt_tokens(DEMO_MODEL), DEFAULT_POLICY, 8, 1)
    figures = benchmark.pedantic(generate, args=arguments, rounds=1)
    assert figures.pop("same")
    figures.pop("contains")
    benchmark.extra_info.update(figures)
