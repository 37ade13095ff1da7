"""Run a benchmark's program in the clear, in this process."""

from __future__ import annotations

import time
from dataclasses import dataclass

from mpcache.benchmarks.measure.program import Program
from mpcache.generation.request import GenerationRequest
from mpcache.model.checkpoint import Checkpoint
from mpcache.model.decoder import Decoder
from mpcache.policies import PolicySettings
from mpcache.protocols.backends.plain import PlainBackend


@dataclass(frozen=True)
class Timed:
    """What the program took from one of its values to the next."""

    seconds: float
    cpu_seconds: float


def run_in_plaintext(
    program: Program, model: Checkpoint, tokens: int, steps: int, policy: PolicySettings
) -> list[Timed]:
    """The program's spans on the plain backend."""
    decoder = Decoder(model.config, PlainBackend(), model.tensors)
    request = GenerationRequest(prompt_tokens=tokens, max_new_tokens=steps, policy=policy)
    out, before = [], (time.perf_counter(), time.process_time())
    for _ in program(decoder, request, [0] * tokens):
        now = (time.perf_counter(), time.process_time())
        out.append(Timed(now[0] - before[0], now[1] - before[1]))
        before = now
    return out
