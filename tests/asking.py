"""A request in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpcache.generation.request import ClientRequest, GenerationRequest

OWN = ("end_tokens", "fixed_length", "vocabulary", "model_digest")


def asked(prompt_tokens: int, max_new_tokens: int, **facts: Any) -> GenerationRequest:
    """The public facts alone."""
    return GenerationRequest(prompt_tokens=prompt_tokens, max_new_tokens=max_new_tokens, **facts)


def asking(prompt: Sequence[int], max_new_tokens: int, **facts: Any) -> ClientRequest:
    """facts: the client's own, and public ones."""
    own = {name: facts.pop(name) for name in OWN if name in facts}
    return ClientRequest(prompt=prompt, public=asked(len(prompt), max_new_tokens, **facts), **own)
