"""A generation in plaintext: the same decoder, policy and order of operations as a private one."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mpcache.generation.answer import Answer
from mpcache.generation.loop import Meter, steps
from mpcache.generation.request import GenerationRequest
from mpcache.model.decoder import Decoder
from mpcache.model.load import Model
from mpcache.model.tokenizer import Prompt
from mpcache.policies import PolicySettings, policy_settings
from mpcache.protocols.backends.plain import PlainBackend
from mpcache.protocols.session import Cost


@torch.no_grad()
def generate(
    model: Model,
    prompt: Prompt,
    *,
    max_new_tokens: int = 16,
    policy: str | PolicySettings = "mpcache",
    temperature: float = 0.0,
    seed: int = 0,
    draft: int = 0,
    max_passes: int = 0,
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> Answer:
    """Answer in plaintext, up to an end token of the model.

    policy: a spelling such as "mpcache:budget=0.25", or settings. temperature: 0 takes the likeliest token; above it,
    tokens are drawn by `seed`. draft, max_passes: as a private generation has them; the likeliest tokens are the same
    without. on_block: hears how many of the prompt's tokens are done, and how many there are.
    Raises ConfigError for a prompt or a policy that cannot be used.
    """
    tokens = model.encode(prompt)
    request = GenerationRequest(
        prompt_tokens=len(tokens),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        policy=policy_settings(policy),
        draft=draft,
        max_passes=max_passes,
    )
    request.check_for(model.config)
    backend = PlainBackend(torch.Generator().manual_seed(seed), request.round_bytes)
    decoder, meter, found = Decoder(model.config, backend, model.checkpoint.tensors), Meter(Cost), list[int]()
    for token in steps(decoder, request, tokens, on_block, lambda token: token in model.end_tokens, meter.drafted):
        assert token is not None
        meter.token()
        found.append(token)
    return Answer.of(model.decode(found), found, request, meter)
