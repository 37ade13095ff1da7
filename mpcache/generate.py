"""Prefill and decoding, one loop for every backend and party, with what each phase cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from mpcache.decoder import Decoder
from protocols.session import Cost

PREFILL_BLOCK = 64
"""Prompt tokens that go through the model at once: bounds the memory of a prefill, whatever the prompt's length."""


@dataclass(frozen=True)
class GenerationPlan:
    """The public lengths of one generation."""

    prompt_tokens: int
    max_new_tokens: int
    temperature: float = 0.0
    block: int = PREFILL_BLOCK

    def blocks(self) -> list[tuple[int, int]]:
        """(start, end) of the prompt's blocks."""
        return [(s, min(s + self.block, self.prompt_tokens)) for s in range(0, self.prompt_tokens, self.block)]


@dataclass
class Phase:
    """Seconds and cost of prefill (with the first token) or of decoding (the tokens after it)."""

    seconds: float = 0.0
    cost: Cost = field(default_factory=Cost)


def steps(
    decoder: Decoder,
    plan: GenerationPlan,
    prompt: Sequence[int] | None,
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[int | None]:
    """Run the prompt, then yield each new token (None to a process that must not know it), computing as asked.

    prompt: its token ids, or None where they are secret. `on_block` hears (tokens done, tokens in all) in prefill.
    """
    cache = decoder.new_cache()
    x = None
    for start, end in plan.blocks():
        x = decoder.forward(None if prompt is None else prompt[start:end], end - start, cache)
        on_block(end, plan.prompt_tokens)
    for i in range(plan.max_new_tokens):
        token = decoder.next_token(x, plan.temperature)
        yield token
        if i + 1 < plan.max_new_tokens:
            x = decoder.forward(None if token is None else [token], 1, cache)


def clock() -> float:
    return time.perf_counter()
