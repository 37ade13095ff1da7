"""Several generations in the same rounds: what their prompts' lengths are, all else is the same.

Each is a lane (protocols/lanes.py) with the plan of its own request. So what a batch takes follows from what its
generations take: bytes add up, and rounds are those of the one that has most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from mpcache.generation.loop import Program
from mpcache.generation.plan import plan_digest
from mpcache.generation.request import ClientRequest, GenerationRequest
from mpcache.model.config import ModelConfig
from mpcache.protocols.errors import ConfigError
from mpcache.protocols.session import Cost

MOST_PROMPTS = 8
"""Of a batch, where nobody says otherwise: memory grows with each."""


def batch_of(first: GenerationRequest, further_prompt_tokens: Iterable[int]) -> list[GenerationRequest]:
    """The request, and the same for prompts of these lengths."""
    return [first, *(replace(first, prompt_tokens=n) for n in further_prompt_tokens)]


def longest(requests: Sequence[GenerationRequest]) -> GenerationRequest:
    """The one whose positions are all that any of a batch takes."""
    return max(requests, key=lambda request: request.tokens)


def check_batch(requests: Sequence[ClientRequest]) -> None:
    """Raises ConfigError if these cannot share their rounds."""
    if not requests:
        raise ConfigError("a batch needs a prompt")
    first = requests[0].public
    if any(replace(r.public, prompt_tokens=first.prompt_tokens) != first for r in requests):
        raise ConfigError("the requests of a batch differ in nothing but their prompts")
    if len(requests) > 1 and first.backend != "mpc":
        raise ConfigError(f"only the backend 'mpc' runs prompts in the same rounds, not {first.backend!r}")


def batch_digest(
    model: ModelConfig,
    requests: Sequence[GenerationRequest],
    program: Program | None = None,
    check: Callable[[], None] = lambda: None,
) -> tuple[str, list[str]]:
    """(fingerprint of the batch, that of each request's plan). Of one request both are its plan's."""
    known: dict[GenerationRequest, str] = {}
    for request in requests:
        if request not in known:
            known[request] = plan_digest(model, request, program, check)
    digests = [known[request] for request in requests]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest(), digests


def batch_cost(costs: Sequence[Cost]) -> Cost:
    """Of lanes that take so much each."""
    return replace(sum(costs, Cost()), rounds=max(cost.rounds for cost in costs))
