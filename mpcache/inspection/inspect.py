"""Look at a model before it serves: what its weights imply for a private computation, and how large the values of a
prompt get, beside their bounds. All of it is plaintext, for whoever has the model, and stays on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mpcache.generation.request import GenerationRequest
from mpcache.inspection.bounds import Sizes
from mpcache.inspection.implied import Implied, implied_ranges
from mpcache.inspection.watched import watched_answer
from mpcache.model.checkpoint import Checkpoint, load_checkpoint
from mpcache.model.tokenizer import encode_prompt, end_tokens, load_tokenizer
from mpcache.policies import PolicySettings
from mpcache.protocols.errors import ConfigError

RANDOM_TOKENS = 256
"""Of a prompt that nobody gave, where the model has room for it."""


@dataclass(frozen=True)
class Inspection:
    """prompt: in words, what it was; neither it nor the answer is kept."""

    model: str
    digest: str
    implied: Implied
    measured: Sizes
    prompt: str
    prompt_tokens: int
    new_tokens: int
    policy: PolicySettings

    def failure(self) -> str | None:
        """The worst that was found; None if all is within its bounds."""
        if self.implied.certain:
            return f"{self.model} cannot be run privately: {self.implied.certain[0]}, whatever else the prompt says"
        passed = self.measured.passed()
        return f"{passed[0]}: the private answer to this prompt is not to be trusted" if passed else None

    def to_dict(self) -> dict[str, Any]:
        certain, possible = self.implied.certain, self.implied.possible
        return {
            "model": self.model,
            "model_digest": self.digest,
            "certain": [reading.to_dict() for reading in certain],
            "not_excluded": [reading.to_dict() for reading in possible],
            "prompt": self.prompt,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "policy_settings": asdict(self.policy),
            "measured": self.measured.to_dict(),
        }


def inspect_model(
    folder: Path,
    prompt: str | None,
    policy: PolicySettings,
    max_new_tokens: int,
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> Inspection:
    """What a model folder's weights imply, and the sizes of a generation from `prompt`; without one, from random tokens
    of the vocabulary. on_block: hears how far the prefill is (see generation/loop.py).

    Raises ModelError, and ConfigError for a prompt that does not fit the model.
    """
    checkpoint = load_checkpoint(folder)
    if prompt is None:
        tokens, ends = _random_tokens(checkpoint, max_new_tokens), tuple[int, ...]()
    else:
        tokenizer = load_tokenizer(folder)
        tokens, ends = encode_prompt(prompt, tokenizer, checkpoint.config.vocabulary), end_tokens(folder, tokenizer)
    request = GenerationRequest(prompt_tokens=len(tokens), max_new_tokens=max_new_tokens, policy=policy)
    _check_room(request, checkpoint.config.max_positions)
    answer, sizes = watched_answer(checkpoint, request, tokens, ends, on_block)
    kind = "random tokens of the vocabulary, as no prompt was given" if prompt is None else "the prompt given"
    implied = implied_ranges(checkpoint)
    return Inspection(folder.name, checkpoint.digest, implied, sizes, kind, len(tokens), len(answer), policy)


def _check_room(request: GenerationRequest, positions: int) -> None:
    if request.tokens > positions:
        raise ConfigError(
            f"{request.prompt_tokens} prompt and {request.max_new_tokens} new tokens do not fit the model's "
            f"{positions} positions: shorten the prompt or lower --max-new-tokens"
        )


def _random_tokens(checkpoint: Checkpoint, max_new_tokens: int) -> list[int]:
    config = checkpoint.config
    count = max(1, min(RANDOM_TOKENS, config.max_positions - max_new_tokens))
    generator = torch.Generator().manual_seed(0)
    return torch.randint(config.vocabulary, (count,), generator=generator).tolist()
