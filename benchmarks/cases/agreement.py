"""Whether secure decoding answers as the clear one does, case by case: the quality tasks on a sample, under MPC.

The prompt's keys and values are computed in the clear and shared; eviction, selection and every decode step of question
and answer then run on shares, both parties and the dealer in one process.

The cases are the quality part's with the question after eviction: of each document the first sample, and of it the
first question alone, whose steps are of the same kind as a later one's. A task whose answer's tokens are given, not
generated (perplexity), has nothing to compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from mpcache.benchmarks.cases.tasks import TASKS, Sample
from mpcache.benchmarks.measure.runner import Case
from mpcache.benchmarks.records.ranges import RANGES
from mpcache.benchmarks.records.record import Record
from mpcache.benchmarks.records.selection import done
from mpcache.benchmarks.records.tables import Rows
from mpcache.generation.loop import decode
from mpcache.generation.recorded import Recorded, greedy, record
from mpcache.generation.request import GenerationRequest
from mpcache.inspection.watched import WatchedBackend
from mpcache.model.checkpoint import Checkpoint, load_checkpoint, weight_shapes
from mpcache.model.decoder import Decoder
from mpcache.model.tokenizer import load_tokenizer
from mpcache.policies import LabelledPolicy, PolicySettings
from mpcache.protocols.backends.interface import Value
from mpcache.protocols.backends.mpc import MpcBackend, masked_weight
from mpcache.protocols.local import run_parties
from mpcache.protocols.randomness import new_key
from mpcache.protocols.session import Session

ANSWERED = tuple(name for name in TASKS if name != "perplexity")
"""The tasks whose answers are generated."""
PLACEMENT = "later"
DIFFERENCES = (
    "There are three known reasons for a difference. A secure comparison may swap two scores within 1/128 of each "
    "other, so that another cluster is picked. Attention below 2^-16 counts as nothing, so that h2o and tova may evict "
    "another token. The two best logits may be within fixed-point noise."
)

CONTAINS = {
    "cases": "each with its document's seed, the expected tokens, and those that plaintext and mpc decoding gave; the "
    "document's first sample, its first question alone",
    "same": "cases whose tokens are the same in plaintext and under mpc",
    "ranges": RANGES,
}
TIMEOUT = 600.0


def agreement_cases(
    model: Path, tasks: Sequence[str], tokens: Sequence[int], policies: Sequence[LabelledPolicy], documents: int
) -> list[Case]:
    def case(task: str, count: int, policy: LabelledPolicy) -> Case:
        settings = {
            "bench": "agreement",
            "model": model.name,
            "task": task,
            "tokens": count,
            "placement": PLACEMENT,
            "documents": documents,
            "policy": asdict(policy.settings),
            "label": policy.label,
        }
        name = f"agreement {task} {policy.label} {count} tokens"
        return Case(name, settings, lambda: _measure(model, task, count, policy, documents))

    return [case(t, n, c) for t in tasks for n in tokens for c in policies]


def _measure(model: Path, task: str, tokens: int, policy: LabelledPolicy, documents: int) -> Record:
    checkpoint, tokenizer = load_checkpoint(model), load_tokenizer(model)
    cases, watched = [], WatchedBackend()
    decoder = Decoder(checkpoint.config, watched, checkpoint.tensors)
    for seed in range(documents):
        sample = TASKS[task].generate(tokenizer, tokens, seed)[0]
        plain, private = answers(checkpoint, decoder, sample, policy.settings)
        expected = list(sample.turns[0][1])
        cases.append({"seed": seed, "expected": expected, "plain": plain, "mpc": private})
    same = sum(c["plain"] == c["mpc"] for c in cases)
    return {
        "policy": policy.label,
        "task": task,
        "tokens": tokens,
        "same": same,
        "asked": len(cases),
        "cases": cases,
        "ranges": watched.sizes().to_dict(),
        "contains": CONTAINS,
    }


@torch.no_grad()
def answers(
    checkpoint: Checkpoint, decoder: Decoder, sample: Sample, policy: PolicySettings
) -> tuple[list[int], list[int]]:
    """(in plaintext, under mpc): the answer to the sample's first question, which comes after eviction.

    decoder: on a plain backend.
    """
    document = record(decoder, sample.document)
    question, answer = sample.turns[0]
    cache = document.cache(decoder, policy)
    for token in question:
        x = decoder.forward([token], 1, cache)
    return greedy(decoder, cache, x, len(answer)), _private(checkpoint, document, question, len(answer), policy)


def _private(
    checkpoint: Checkpoint, document: Recorded, question: Sequence[int], tokens: int, policy: PolicySettings
) -> list[int]:
    key = new_key()
    masked = {name: masked_weight(key, name, checkpoint.tensors[name]) for name in weight_shapes(checkpoint.config)}

    @torch.no_grad()
    def program(session: Session) -> list[int | None]:
        owner = session.party == 0
        backend = MpcBackend(session, key if owner else None, masked)
        decoder = Decoder(checkpoint.config, backend, checkpoint.tensors if owner else None)

        def share(known: torch.Tensor) -> Value:
            return backend.add_known(backend.zeros(tuple(known.shape)), known if owner else None)

        cache = document.cache(decoder, policy, share=share)
        for token in question:
            x = decoder.forward(None if owner else [token], 1, cache)
        request = GenerationRequest(prompt_tokens=cache.past, max_new_tokens=tokens)
        return list(decode(decoder, request, x, cache))

    _, at_client = run_parties(program, TIMEOUT, key)
    return [token for token in at_client if token is not None]


HEADER = ("task", "policy", "tokens", "same in plaintext and mpc", "right in plaintext", "right under mpc", "differing")


def agreement_rows(records: Sequence[Record]) -> Rows:
    """differing: the seeds of the documents whose answers differ."""
    out = []
    for r in done(records):
        right = [sum(c[how] == c["expected"] for c in r["cases"]) for how in ("plain", "mpc")]
        counts = [f"{n} of {r['asked']}" for n in (r["same"], *right)]
        differing = ", ".join(str(c["seed"]) for c in r["cases"] if c["plain"] != c["mpc"])
        out.append([r["task"], r["policy"], f"{r['tokens']:,}", *counts, differing or "none"])
    return out
