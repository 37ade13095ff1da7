"""A generation before it runs: the public facts that all three processes know, and what the client alone knows.

Handshake, plan, digest and price derive from `GenerationRequest` and the model's `ModelConfig`: the client writes the
one, the owner has the other, and neither is repeated anywhere. To vary one, use `dataclasses.replace`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mpcache.generation.backends import PRIVATE_BACKENDS
from mpcache.generation.network import LOOPBACK, parse_network
from mpcache.model.config import ModelConfig
from mpcache.policies import AnySettings, PolicySettings, check_policy, policy_class
from mpcache.policies.blocks import chosen_block
from mpcache.protocols.errors import ConfigError, HandshakeError
from mpcache.protocols.ring import FRACTION_BITS, PRODUCT_BITS
from mpcache.wire import STRICT, from_wire, to_wire

PROTOCOL_VERSION = 6
HOTTEST = 100
AUTOMATIC = 0
"""A block's size that follows from the model, the prompt's length and the network."""
MOST_DRAFTS = 16
PRECISION = f"fixed-point {FRACTION_BITS} bits, products {PRODUCT_BITS} bits"
FULL = PolicySettings("full")
TAKING_DRAFTS = ("full", "snapkv", "keydiff", "random", "mpcache:cluster_answer=false", "mpcache:clusters=")
"""Policies that do, by their spelling."""
Stop = Callable[[int], bool]
"""Whether an answer ends with this token."""


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """What a client asks for: with the model's shape, all that the dealer learns and that the program depends on.

    max_new_tokens: the first, which comes with the prefill, included. network: what protocols choose their shapes for.
    prefill_block: tokens of the prompt that go through the model at once; AUTOMATIC: as `chosen_block` says.
    draft: how many tokens each pass after the prefill tries ahead, see passes.py; 0: none. max_passes: of drafts; the
    answer ends with the last. 0: as many as max_new_tokens may need.
    """

    prompt_tokens: int
    max_new_tokens: int
    temperature: float = 0.0
    policy: AnySettings = FULL
    backend: str = "mpc"
    network: str = LOOPBACK.name
    prefill_block: int = AUTOMATIC
    precision: str = PRECISION
    draft: int = 0
    max_passes: int = 0

    __pydantic_config__ = STRICT

    def block_for(self, model: ModelConfig) -> int:
        """Tokens of a block of the prompt."""
        if self.prefill_block != AUTOMATIC:
            return self.prefill_block
        return chosen_block(self.policy, model, self.prompt_tokens, self.round_bytes)

    def blocks(self, model: ModelConfig) -> list[tuple[int, int]]:
        """(start, end) of the prompt's blocks."""
        size, n = self.block_for(model), self.prompt_tokens
        return [(start, min(start + size, n)) for start in range(0, n, size)]

    @property
    def tokens(self) -> int:
        """Positions that the generation may take."""
        return self.prompt_tokens + self.max_new_tokens

    @property
    def passes(self) -> int:
        """After the prefill, at most: one for each token, as no draft may be right."""
        return min(self.max_passes or self.max_new_tokens, self.max_new_tokens - 1)

    @property
    def answered(self) -> int:
        """How many places of the text the client may learn the next token of: those after wrong drafts included."""
        return 1 + self.passes * (self.draft + 1)

    @property
    def cached(self) -> int:
        """Tokens in the cache at the end, wrong drafts included."""
        return self.prompt_tokens + self.answered

    @property
    def round_bytes(self) -> int:
        """What a session's protocols choose by, see `Network.round_bytes`."""
        return parse_network(self.network).round_bytes

    def to_json(self) -> str:
        """Canonical: equal requests give equal text."""
        return to_wire(self)

    @staticmethod
    def from_json(text: str) -> GenerationRequest:
        """What a peer sent; `check` it before use. Raises HandshakeError."""
        try:
            return from_wire(GenerationRequest, text, "the request")
        except ConfigError as error:  # of the policy: there is none, or its settings contradict each other
            raise HandshakeError(str(error)) from None

    def check(
        self, role: str, model: ModelConfig, most_prompt_tokens: int, most_new_tokens: int, most_block: int
    ) -> None:
        """Raises HandshakeError if this cannot be run, or if `role` does not allow it: before anything is planned, but
        for a few passes through one layer that choose a block's size, when all else is checked."""
        self._check_program(role)
        _as_handshake(self.check_values)
        if self.prompt_tokens > most_prompt_tokens:
            raise HandshakeError(f"the {role} allows {most_prompt_tokens} prompt tokens, not {self.prompt_tokens}")
        if self.max_new_tokens > most_new_tokens:
            raise HandshakeError(
                f"the {role} allows {most_new_tokens} new tokens, not {self.max_new_tokens}: lower max_new_tokens"
            )
        if self.answered > most_new_tokens:
            raise HandshakeError(
                f"the {role} allows {most_new_tokens} new tokens, and {self.max_new_tokens} with {self.draft} drafts "
                f"each are up to {self.answered}: lower max_new_tokens or draft"
            )
        _as_handshake(lambda: self._check_room(model))
        block = self.prefill_block or min(self.block_for(model), self.prompt_tokens)
        if block > most_block:
            raise HandshakeError(
                f"the {role} allows blocks of {most_block} prompt tokens, not {block}: set prefill_block to "
                f"{most_block}, or less"
            )

    def check_for(self, model: ModelConfig) -> None:
        """Raises ConfigError if no process could run this with the model."""
        self.check_values()
        self._check_room(model)

    def _check_program(self, role: str) -> None:
        if self.precision != PRECISION:
            raise HandshakeError(f"the {role} computes with {PRECISION}, not {self.precision[:60]}")

    def check_values(self) -> None:
        """The same for any model. Raises ConfigError."""
        if self.prompt_tokens < 1 or self.max_new_tokens < 1:
            raise ConfigError("a generation needs a prompt and at least one new token")
        if not 0 <= self.temperature <= HOTTEST:
            raise ConfigError(f"the temperature must be between 0 and {HOTTEST}")
        if self.prefill_block < 0:
            raise ConfigError("prefill_block is a number of tokens, or 0 for one that follows from the network")
        if self.backend not in PRIVATE_BACKENDS:
            raise ConfigError(f"unknown backend {self.backend[:40]!r} (known: {', '.join(PRIVATE_BACKENDS)})")
        check_policy(self.policy)
        parse_network(self.network)
        self._check_draft()

    def _check_draft(self) -> None:
        if not 0 <= self.draft <= MOST_DRAFTS:
            raise ConfigError(f"a pass drafts between 0 and {MOST_DRAFTS} tokens, not {str(self.draft)[:40]}")
        if not 0 <= self.max_passes < self.max_new_tokens:
            raise ConfigError(
                f"{self.max_new_tokens} new tokens take 1 to {self.max_new_tokens - 1} passes after the first one, so "
                f"max_passes cannot be {str(self.max_passes)[:40]}; 0 stands for as many as may be needed"
            )
        if self.max_passes and not self.draft:
            raise ConfigError("without drafts each new token is a pass: lower max_new_tokens in place of max_passes")
        if self.draft and self.backend != "mpc":
            raise ConfigError(f"the backend {self.backend!r} takes no drafts: leave out draft")
        if self.draft and (reason := policy_class(self.policy.name).refuses_drafts(self.policy)):
            raise ConfigError(
                f"the cache policy {self.policy.name!r} takes no drafts, as {reason}: leave out draft, or take one "
                f"whose steps only add to the cache ({', '.join(TAKING_DRAFTS)})"
            )

    def _check_room(self, model: ModelConfig) -> None:
        if self.tokens > model.max_positions:
            raise ConfigError(
                f"{self.prompt_tokens} prompt and {self.max_new_tokens} new tokens do not fit the model's "
                f"{model.max_positions} positions: shorten the prompt or lower max_new_tokens"
            )


def _as_handshake(check: Callable[[], None]) -> None:
    """What is wrong with a peer's request is no mistake of this process's user."""
    try:
        check()
    except ConfigError as error:
        raise HandshakeError(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class ClientRequest:
    """A request with what only the client knows of it. Raises ConfigError if the prompt is not as long as it says.

    prompt: token ids, secret. end_tokens: which end the answer, by the client's own tokenizer (model/tokenizer.py),
    never by the owner's word. fixed_length: go on to max_new_tokens whatever is generated, so that the answer's length
    tells the owner nothing; what comes after an end token is not given. vocabulary: of the client's tokenizer, which
    the model must have; 0 if there is no tokenizer: then it is the prompt that must fit, and that it does not is seen
    by the owner. model_digest: accept this model alone; empty: any.
    """

    prompt: Sequence[int] = field(repr=False)
    public: GenerationRequest
    end_tokens: tuple[int, ...] = ()
    fixed_length: bool = False
    vocabulary: int = 0
    model_digest: str = ""

    def __post_init__(self) -> None:
        if len(self.prompt) != self.public.prompt_tokens:
            raise ConfigError(
                f"the prompt has {len(self.prompt)} tokens where {self.public.prompt_tokens} were announced"
            )

    def with_prompt(self, prompt: Sequence[int], **changes: Any) -> ClientRequest:
        """The same for another prompt. changes: of the public facts."""
        return replace(self, prompt=prompt, public=replace(self.public, prompt_tokens=len(prompt), **changes))

    @property
    def stop(self) -> Stop | None:
        """After which tokens the computation ends. Where it ends, the owner can count: None if the length is fixed."""
        return None if self.fixed_length else lambda token: token in self.end_tokens

    @property
    def least_vocabulary(self) -> int:
        """What the model's vocabulary must have room for."""
        return self.vocabulary or max(self.prompt) + 1
