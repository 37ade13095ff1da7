"""The demo's generation between three real processes over mutual TLS: `pytest benchmarks/test_generation.py`."""

from typing import Any

from benchmarks.process import peak_memory, peak_memory_of_roles
from mpcache.checkpoint import load_tokenizer
from parties.client import Generation, Request
from parties.demo import DEMO_MODEL, local_parties
from parties.settings import DEFAULT_POLICY


def test_demo_generation(benchmark: Any) -> None:
    """Prefill of the day sheet (with the first token), then at most 7 tokens.

    The extra info has seconds, and the most that each process had in memory (interpreter and libraries included; the
    client's is pytest's as well).
    """
    prompt = load_tokenizer(DEMO_MODEL).encode((DEMO_MODEL / "daysheet_512.txt").read_text()).ids
    with local_parties(DEMO_MODEL) as connection:
        generation = Generation(connection, Request(prompt, 8, policy=DEFAULT_POLICY))
        benchmark.pedantic(lambda: list(generation), rounds=1)
        peaks = peak_memory_of_roles()
    assert generation.meter is not None
    benchmark.extra_info.update(
        prompt_tokens=len(prompt),
        prefill_seconds=generation.meter.prefill.seconds,
        seconds_per_token=generation.meter.seconds_per_token,
        peak_memory_bytes={**peaks, "client": peak_memory()},
    )
