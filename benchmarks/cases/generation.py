"""What a whole generation costs: the prompt, eviction and the answer, between the three real processes of `mpcache`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mpcache.benchmarks.measure.runner import Case
from mpcache.benchmarks.measure.usage import forget_peak, peak_memory, peak_memory_of_roles
from mpcache.benchmarks.records.ranges import RANGES
from mpcache.benchmarks.records.record import Record, cost_figures
from mpcache.benchmarks.records.selection import done
from mpcache.benchmarks.records.tables import PEAKS, Rows, megabytes, peak_cells, seconds
from mpcache.demo import DEMO_MODEL
from mpcache.generation.loop import Phase
from mpcache.generation.request import ClientRequest, GenerationRequest
from mpcache.inspection.watched import plain_twin
from mpcache.model.tokenizer import end_tokens, load_tokenizer
from mpcache.parties.client import Connection, Generation
from mpcache.parties.launcher import local_parties
from mpcache.policies import LabelledPolicy, PolicySettings

PROMPT = "daysheet_512.txt"
"""The day sheet that the demo asks about, packaged with its model."""
MAX_NEW_TOKENS = 8

CONTAINS = {
    "first_token_seconds": "wall time at the client from its first request to the first token: plans, handshake, and "
    "the masked weights that a new client is sent (setup_bytes) included; starting the processes is not",
    "prefill": "from the parties' first message to the first token: the prompt, static eviction, logits and arg max",
    "token": "each token after the first, or each pass with drafts, of all generations; None if the first token ended "
    "the answer",
    "passes": "of the first generation after its first token: one a token without drafts",
    "seconds": "median wall time at the client, waiting for the others included",
    "online_bytes": "payload between the two parties, both directions",
    "correlation_bytes": "corrections that the dealer sends, both parties together (party 0 is sent none)",
    "rounds": "messages one after another, one in each direction at the same time counting once",
    "peak_memory_bytes": "the most that each process had in memory since its start, interpreter and libraries "
    "included; the client is the benchmark's own process, from the request on, with what an earlier case left in it",
    "waited_for_dealer_seconds": "how long the client stood still for corrections that were not there yet, in all of a "
    "generation: the median",
    "same": "whether plaintext gives each time the same answer, token by token, under the same policy",
    "ranges": RANGES,
}


def generation_cases(
    model: Path, policies: Sequence[LabelledPolicy], max_new_tokens: int, repeat: int, draft: int = 0
) -> list[Case]:
    """A case for each policy, with processes and a client of its own."""

    def measure(policy: LabelledPolicy) -> Record:
        figures = generate(model, prompt_tokens(model), policy.settings, max_new_tokens, repeat, draft)
        return {"policy": policy.label, **figures}

    def case(policy: LabelledPolicy) -> Case:
        settings = {
            "bench": "generate",
            "model": model.name,
            "prompt": PROMPT,
            "max_new_tokens": max_new_tokens,
            "policy": asdict(policy.settings),
            "label": policy.label,
            "backend": "mpc",
            "repeat": repeat,
            **({"draft": draft} if draft else {}),  # records of before there were drafts are without
        }
        return Case(f"generate {policy.label}", settings, lambda: measure(policy))

    return [case(policy) for policy in policies]


def prompt_tokens(model: Path) -> list[int]:
    """The packaged day sheet in the model's tokens."""
    return list(load_tokenizer(model).encode((DEMO_MODEL / PROMPT).read_text()).ids)


@dataclass(frozen=True)
class _Run:
    """One generation. steps: the tokens after the first, or the passes with drafts."""

    answer: list[int]
    first_token_seconds: float
    prefill: Phase
    steps: list[Phase]
    waited_seconds: float
    setup_bytes: int


def generate(
    model: Path, prompt: list[int], policy: PolicySettings, max_new_tokens: int, repeat: int, draft: int = 0
) -> Record:
    """Answer privately so many times, then once in the clear; the figures of the private answers."""
    ends = end_tokens(model, load_tokenizer(model))
    public = GenerationRequest(prompt_tokens=len(prompt), max_new_tokens=max_new_tokens, policy=policy, draft=draft)
    public.check_values()
    request = ClientRequest(prompt=prompt, public=public, end_tokens=ends)
    with local_parties(model) as connection:
        forget_peak()
        runs = [_run(connection, request) for _ in range(repeat)]
        peaks = {**peak_memory_of_roles(), "client": peak_memory()}
    plain, sizes = plain_twin(model, prompt, max_new_tokens, policy, ends)
    steps = [step for run in runs for step in run.steps]
    return {
        "tokens": len(prompt),
        "new_tokens": len(runs[0].answer),
        "first_token_seconds": runs[0].first_token_seconds,
        "setup_bytes": runs[0].setup_bytes,
        "prefill": _median([run.prefill for run in runs]),
        "token": _median(steps) if steps else None,
        "passes": len(runs[0].steps),
        "waited_for_dealer_seconds": statistics.median(run.waited_seconds for run in runs),
        "peak_memory_bytes": peaks,
        "answer": runs[0].answer,
        "plain_answer": plain,
        "same": all(run.answer == plain for run in runs),
        "ranges": sizes.to_dict(),
        "contains": CONTAINS,
    }


def _run(connection: Connection, request: ClientRequest) -> _Run:
    generation = Generation(connection, request)
    begun, first, answer = time.perf_counter(), 0.0, []
    for token in generation:
        first = first or time.perf_counter() - begun
        answer.append(token)
    meter = generation.meter
    assert meter is not None
    return _Run(answer, first, meter.prefill, meter.steps, generation.waited_for_dealer, generation.setup_bytes)


def _median(phases: Sequence[Phase]) -> Record:
    """Median seconds, and the bytes and rounds of the phase with the median bytes."""
    middle = sorted(phases, key=lambda phase: phase.cost.online_bytes)[len(phases) // 2]
    return {
        "seconds": statistics.median(phase.seconds for phase in phases),
        "all_seconds": [phase.seconds for phase in phases],
        **cost_figures(middle.cost),
    }


HEADER = (
    "policy",
    "prompt",
    "",
    "s",
    "online MB",
    "corr. MB",
    "rounds",
    *PEAKS,
    "as plaintext",
)


def generation_rows(records: Sequence[Record]) -> Rows:
    """Two lines for each: the prompt with the first token, and each token after it."""
    out = []
    for r in done(records):
        peaks = peak_cells(r["peak_memory_bytes"])
        same = "the same" if r["same"] else "another answer"
        out.append([r["policy"], f"{r['tokens']:,}", "prefill", *_costs(r["prefill"]), *peaks, same])
        if r["token"] is not None:
            step = "a pass" if r["settings"].get("draft") else "a token"
            out.append(["", "", step, *_costs(r["token"]), "", "", "", ""])
    return out


def _costs(phase: Record) -> list[str]:
    online, correlations = megabytes(phase["online_bytes"]), megabytes(phase["correlation_bytes"])
    return [seconds(phase["seconds"]), online, correlations, f"{phase['rounds']:,}"]
