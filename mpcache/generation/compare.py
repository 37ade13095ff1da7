"""What a cache policy costs in answers: one's own model and prompts, in plaintext, against the full cache.

Each prompt's prefill is computed once and every policy starts from it. The prompt's last token is computed again as a
decode step on the evicted cache: the token after a prefill comes from full attention whatever the policy, and would say
nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mpcache.generation.recorded import Recorded, greedy, log_likelihood, record
from mpcache.generation.request import FULL
from mpcache.model.decoder import Decoder
from mpcache.model.load import Model
from mpcache.model.tokenizer import Prompt, encode_prompt
from mpcache.policies import PolicySettings, check_policy, policy_settings, spelled
from mpcache.protocols.backends.plain import PlainBackend
from mpcache.protocols.errors import ConfigError


@dataclass(frozen=True)
class PolicyQuality:
    """How a policy answered, over all prompts.

    The wanted answers are those that were given, or else those of the full cache. exact_match: the share of answers
    that equal the wanted ones, token by token. token_match: the share of the wanted answers' tokens before the first
    that differs. perplexity: of the wanted answers, each token given those before it. attended: the share of the tokens
    so far that the first step attends to.
    """

    policy: str
    prompts: int
    exact_match: float
    token_match: float
    perplexity: float
    attended: float


@dataclass(frozen=True)
class _Answer:
    matching: int
    wanted: int
    log_likelihood: float
    attended: float


@torch.no_grad()
def compare_policies(
    model: Model,
    prompts: Sequence[Prompt],
    policies: Sequence[str | PolicySettings],
    *,
    answers: Sequence[Prompt] | None = None,
    max_new_tokens: int = 32,
    on_prompt: Callable[[int], None] = lambda done: None,
) -> list[PolicyQuality]:
    """Answer every prompt under every policy, greedily, in plaintext.

    policies: spellings such as "mpcache:budget=0.25", or settings. answers: the wanted answer to each prompt, as text
    or token ids. By default they are what the full cache generates up to an end token, `max_new_tokens` at most.
    on_prompt: hears how many prompts are done.
    Raises ConfigError for prompts or answers that do not fit the model.
    """
    _check_lists(prompts, policies, answers)
    if max_new_tokens < 1:
        raise ConfigError(f"an answer has at least one token: max_new_tokens cannot be {max_new_tokens}")
    wanted = [None] * len(prompts) if answers is None else [_tokens(model, answer) for answer in answers]
    decoder = Decoder(model.config, PlainBackend(), model.checkpoint.tensors)
    chosen = [check_policy(policy_settings(policy)) for policy in policies]
    found: list[list[_Answer]] = [[] for _ in chosen]
    for done, (prompt, answer) in enumerate(zip(prompts, wanted, strict=True), 1):
        tokens = model.encode(prompt)
        _check_room(model, tokens, max_new_tokens if answer is None else len(answer))
        recorded = record(decoder, tokens)
        expected = answer
        if expected is None:
            expected = _until_end(_answered(decoder, recorded, tokens, FULL, max_new_tokens), model.end_tokens)
        for settings, outcomes in zip(chosen, found, strict=True):
            outcomes.append(_compared(decoder, recorded, tokens, settings, expected))
        on_prompt(done)
    labels = [policy if isinstance(policy, str) else spelled(policy) for policy in policies]
    return [_total(label, outcomes) for label, outcomes in zip(labels, found, strict=True)]


def _tokens(model: Model, answer: Prompt) -> list[int]:
    try:
        return encode_prompt(answer, model.tokenizer, model.config.vocabulary, special_tokens=False)
    except ConfigError as error:
        raise ConfigError(f"an answer: {error}") from None


def _check_lists(prompts: Sequence[Prompt], policies: Sequence[object], answers: Sequence[Prompt] | None) -> None:
    for name, several in (("prompts", prompts), ("policies", policies), ("answers", answers)):
        if isinstance(several, str) or (several is not None and not len(several)):
            raise ConfigError(f"{name} are a list with at least one in it")
    if answers is not None and len(answers) != len(prompts):
        raise ConfigError(f"there are {len(prompts)} prompts and {len(answers)} answers: give one for each")


def _check_room(model: Model, tokens: list[int], new: int) -> None:
    if len(tokens) < 2:
        raise ConfigError("a prompt has two tokens or more: the last is answered from what is kept of the others")
    taken, positions = len(tokens) + new, model.config.max_positions
    if taken > positions:
        raise ConfigError(
            f"a prompt and its answer take {taken} tokens, and the model has {positions} positions: shorten the prompt "
            "or lower max_new_tokens"
        )


def _answered(decoder: Decoder, recorded: Recorded, tokens: list[int], policy: PolicySettings, count: int) -> list[int]:
    cache = recorded.cache(decoder, policy, again=1)
    return greedy(decoder, cache, decoder.forward(tokens[-1:], 1, cache), count)


def _until_end(tokens: list[int], ends: tuple[int, ...]) -> list[int]:
    """What comes after the first token that ends an answer is none of it."""
    return tokens[: next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))]


def _compared(
    decoder: Decoder, recorded: Recorded, tokens: list[int], policy: PolicySettings, wanted: list[int]
) -> _Answer:
    cache = recorded.cache(decoder, policy, again=1)
    attended = cache.attended() / (cache.past + 1)
    given = log_likelihood(decoder, cache, decoder.forward(tokens[-1:], 1, cache), wanted)
    answer = _answered(decoder, recorded, tokens, policy, len(wanted))
    matching = next((i for i, (a, b) in enumerate(zip(answer, wanted, strict=True)) if a != b), len(wanted))
    return _Answer(matching, len(wanted), given, attended)


def _total(label: str, outcomes: list[_Answer]) -> PolicyQuality:
    tokens = sum(o.wanted for o in outcomes)
    return PolicyQuality(
        policy=label,
        prompts=len(outcomes),
        exact_match=sum(o.matching == o.wanted for o in outcomes) / len(outcomes),
        token_match=sum(o.matching for o in outcomes) / tokens,
        perplexity=math.exp(-sum(o.log_likelihood for o in outcomes) / tokens),
        attended=sum(o.attended for o in outcomes) / len(outcomes),
    )
