"""The demo's generation between three real processes over mutual TLS: `pytest benchmarks/test_generation.py`."""

import resource
from typing import Any

from mpcache.checkpoint import load_tokenizer
from parties.client import Generation, Request
from parties.demo import DEMO_MODEL, local_parties


def test_demo_generation(benchmark: Any) -> None:
    """Prefill of the day sheet (with the first token), then 7 tokens; seconds and peak memory are in the extra info."""
    prompt = load_tokenizer(DEMO_MODEL).encode((DEMO_MODEL / "daysheet_512.txt").read_text()).ids
    with local_parties(DEMO_MODEL) as connection:
        generation = Generation(connection, Request(prompt, 8))
        benchmark.pedantic(lambda: list(generation), rounds=1)
    assert generation.meter is not None
    benchmark.extra_info.update(
        prompt_tokens=len(prompt),
        prefill_seconds=generation.meter.prefill.seconds,
        seconds_per_token=generation.meter.seconds_per_token,
        client_peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        owner_or_dealer_peak_mib=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10,  # the larger
    )
