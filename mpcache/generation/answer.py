"""What a generation answered and took, wherever it ran."""

from __future__ import annotations

from dataclasses import dataclass

from mpcache.generation.loop import Meter, Phase
from mpcache.generation.request import GenerationRequest


@dataclass(frozen=True)
class Answer:
    """text: of the new `tokens`, an end token included; empty where there is no tokenizer.

    prefill: seconds and cost to the first token; decode: of the tokens after it. Both as this party counts them; a
    generation in plaintext has no cost. passes: of the model after the prefill; without drafts one for each further
    token.
    """

    text: str
    tokens: tuple[int, ...]
    request: GenerationRequest
    prefill: Phase
    decode: Phase
    passes: int

    @staticmethod
    def of(text: str, tokens: list[int], request: GenerationRequest, meter: Meter) -> Answer:
        return Answer(text, tuple(tokens), request, meter.prefill, meter.decode, len(meter.steps))
