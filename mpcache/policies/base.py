"""What every cache policy is: the secret-shared cache of one generation, layer by layer.

The decoder hands each layer's queries, keys and values to `attend`; the policy keeps what it keeps and gives attention
back. A policy is written once, against the backend; it never sees which backend it runs on, and its control flow
follows from public values alone: lengths and settings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from mpcache.model.config import ModelConfig
from mpcache.policies.reading import LEAST, Reading
from mpcache.policies.settings import LONGEST_NAME, PolicySettings
from mpcache.protocols.backends.interface import AnyBackend, Backend, KeyValues, Masked, Value
from mpcache.protocols.causal import Causal
from mpcache.protocols.errors import ConfigError
from mpcache.protocols.softmax import MASKED

HIDDEN = float(MASKED)
"""Added to the score of a wrong draft: its exponential is 0, if scores of a row differ by less than 2^13."""


class Policy(ABC):
    """Base of all policies: a cache that every token joins, attended to in full. A subclass says what leaves it.

    Shapes: G key/value heads, each for r query heads, of size d; m tokens at hand; n prompt tokens; T cached ones.
    A subclass gives `name`, `summary` and `mpc_cost` (what it adds to attention), its `settings_class` if it has
    settings of its own, and what it does: `prepare` (state of its own), `observed_queries` (whose attention is added up
    in `received`), `observe` (sees every block of the prompt), `evict` (once, after the prompt), `step` (each new
    token).
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    mpc_cost: ClassVar[str]
    settings_class: ClassVar[type[PolicySettings]] = PolicySettings
    settings: PolicySettings

    def __init__(self, settings: PolicySettings, config: ModelConfig, backend: AnyBackend, prompt_tokens: int) -> None:
        self.check(settings)
        self.settings, self.config = settings, config
        self.backend: Backend = backend
        self.prompt_tokens = prompt_tokens
        self.budget = settings.budget_tokens(prompt_tokens)
        self.past = 0
        self._layers: list[KeyValues | None] = [None] * config.layers
        self._received: list[Value | None] = [None] * config.layers
        self._reading = Reading(settings.prefill_budget, config, backend) if settings.prefill_budget else None
        self._wrong: Value | None = None
        self.prepare()

    @classmethod
    def check(cls, settings: PolicySettings) -> None:
        """Raises ConfigError if the settings are another policy's, or their budget is below what this one needs."""
        if settings.name != cls.name or type(settings) is not cls.settings_class:
            raise ConfigError(
                f"cache policy {cls.name!r}: its settings are made by policy_settings({cls.name!r}, ...), not by "
                f"{type(settings).__name__}({settings.name[:LONGEST_NAME]!r}, ...)"
            )
        settings.check_budget()
        if 0 < settings.prefill_budget < LEAST:
            raise ConfigError(
                f"cache policy {cls.name!r}: prefill_budget is 0 (a block of the prompt attends to all tokens "
                f"before it) or {LEAST} tokens at least"
            )

    @classmethod
    def settled(
        cls, settings: PolicySettings, config: ModelConfig, prompt_tokens: int, round_bytes: int
    ) -> PolicySettings:
        """The settings with all decisions that are made for the whole model, and once: a model of few layers that
        stands for it would decide otherwise."""
        return settings

    @classmethod
    def refuses_drafts(cls, settings: PolicySettings) -> str:
        """Why steps cannot take several tokens, of which some are drafts that may turn out wrong; empty if they can.

        They can where a step adds to the cache and does nothing else: what was wrong is hidden from later ones."""
        return "" if cls.step is Policy.step else "a step changes what is kept, and a wrong draft would change it"

    # ------------------------------------------------------------ what the decoder calls

    def attend(self, layer: int, queries: Value, keys: Value, values: Value) -> Value:
        """Attention (G, r m, d) of the queries (G, r m, d) of m tokens, whose keys and values (G, m, d) join."""
        if self.past >= self.prompt_tokens:
            return self.step(layer, queries, keys, values)
        self.observe(layer, queries, keys, values)
        return self._attend_block(layer, queries, keys, values)

    def preset(self, layer: int, queries: Value, keys: Value, values: Value, received: Value | None) -> None:
        """Take the whole prompt's keys and values (G, n, d) as they are, where attention was computed before or never.

        received: (G, n), the attention that the observed queries gave. A call of `advance` for all tokens follows.
        """
        self.observe(layer, queries, keys, values)
        self.store(layer, self.backend.append(self._layers[layer], keys, values))
        self._received[layer] = received

    def fill(self, tokens: int, given: Callable[[tuple[int, ...]], Value]) -> None:
        """`preset` in all layers, of so many tokens that nobody ran: values of a shape are `given`."""
        c = self.config
        for layer in range(c.layers):
            queries = given((c.key_value_heads, c.queries_per_head * tokens, c.head_size))
            keys, values = (given((c.key_value_heads, tokens, c.head_size)) for _ in range(2))
            received = given((c.key_value_heads, tokens)) if self.observed_queries() else None
            self.preset(layer, queries, keys, values, received)

    def advance(self, count: int) -> None:
        """All layers have seen `count` more tokens."""
        self.past += count
        if self.past == self.prompt_tokens:
            self.evict()
            self._received = [None] * self.config.layers

    def hide(self, wrong: Value) -> None:
        """wrong: (tokens,), of all tokens since the prompt: `HIDDEN` for a draft that was wrong, 0 for the others."""
        self._wrong = wrong

    # ------------------------------------------------------------ what policies change

    def prepare(self) -> None:  # noqa: B027, most need none
        """Make what state the policy has of its own; `settings`, `config`, `backend` and `budget` are there."""

    def observed_queries(self) -> int:
        """How many of the prompt's last queries are observed: `received` sums the attention that they give."""
        return 0

    def observe(self, layer: int, queries: Value, keys: Value, values: Value) -> None:  # noqa: B027, most need none
        """A block of the prompt comes by."""

    @abstractmethod
    def evict(self) -> None:
        """The prompt is done: some of its tokens leave the cache, or none."""

    def step(self, layer: int, queries: Value, keys: Value, values: Value) -> Value:
        """Attention of one new token; or of one with drafts after it, where the policy does not refuse them."""
        cached, masked = self.enter(layer, queries, keys, values)
        m = keys.shape[1]
        return self.backend.attend(masked, cached, self._causal(cached, m), self._hidden(cached.tokens, m))

    def attended(self) -> int:
        """Tokens that the next step attends to, in a layer that skips none."""
        return self.cached(-1).tokens + 1

    # ------------------------------------------------------------ what policies call

    def cached(self, layer: int) -> KeyValues:
        """The layer's keys and values as they are cached: masked, T tokens."""
        cached = self._layers[layer]
        assert cached is not None
        return cached

    def key_values(self, layer: int) -> tuple[Value, Value]:
        """The same as values (G, T, d), to compute with."""
        cached = self.cached(layer)
        return self.backend.unmask(cached.keys), self.backend.unmask(cached.values)

    def received(self, layer: int) -> Value:
        """Attention (G, n) that the observed queries gave to each of the prompt's tokens, summed; for `evict` alone."""
        received = self._received[layer]
        assert received is not None
        return received

    def enter(self, layer: int, queries: Value, keys: Value, values: Value) -> tuple[KeyValues, Masked]:
        """The keys and values join the cache; the queries are masked for one attention."""
        cached, masked = self.backend.enter(self._layers[layer], queries, keys, values)
        self._layers[layer] = cached
        return cached, masked

    def keep_ranges(self, layer: int, *ranges: tuple[int, int]) -> None:
        """Keep public ranges [a, b) of the cached tokens and forget the rest."""
        cached = self.cached(layer)
        keys, values = (self.backend.rows([(m, a, b) for a, b in ranges]) for m in (cached.keys, cached.values))
        self.backend.forget(cached.keys, cached.values)
        self.store(layer, KeyValues(keys, values, sum(b - a for a, b in ranges)))

    def replace(self, layer: int, keys: Value, values: Value) -> None:
        """Forget what is cached, and cache these keys and values (G, tokens, d) instead."""
        cached = self.cached(layer)
        self.backend.forget(cached.keys, cached.values)
        self.store(layer, self.backend.append(None, keys, values))

    def store(self, layer: int, cached: KeyValues) -> None:
        """What is cached from now on, masked already; what was is the caller's to forget."""
        self._layers[layer] = cached

    def add_padded(self, earlier: Value | None, later: Value) -> Value:
        """(G, T) + (G, T') with T <= T': sums by token, where tokens have joined."""
        if earlier is None:
            return later
        missing = self.backend.zeros((later.shape[0], later.shape[1] - earlier.shape[1]))
        return later + self.backend.concatenate([earlier, missing], 1)

    def _causal(self, cached: KeyValues, m: int) -> Any:
        """Who sees what of the cache, whose last m tokens are those at hand."""
        return self.backend.visible(Causal(m, cached.tokens - m, self.config.queries_per_head)) if m > 1 else None

    def _hidden(self, tokens: int, m: int) -> Value | None:
        """For all that is cached: nothing of the prompt is hidden, nor of the tokens at hand."""
        if self._wrong is None:
            return None
        before = self.backend.zeros((tokens - m - self._wrong.shape[0],))
        return self.backend.concatenate([before, self._wrong, self.backend.zeros((m,))], 0)

    def _attend_block(self, layer: int, queries: Value, keys: Value, values: Value) -> Value:
        (cached, masked), m = self.enter(layer, queries, keys, values), keys.shape[1]
        last = self.past + m >= self.prompt_tokens  # has the question, and costs no more than linearly
        seen = None if last or self._reading is None else self._reading.seen(layer, masked, cached, self.past)
        if self._reading is None or seen is None:
            return self._attend_to(layer, masked, cached, m)
        out = self._attend_to(layer, masked, seen.cached, m, seen.in_place)
        self.backend.forget(seen.cached.keys, seen.cached.values)
        return out

    def _attend_to(
        self,
        layer: int,
        masked: Masked,
        cached: KeyValues,
        m: int,
        in_place: Callable[[Value], Value] = lambda received: received,
    ) -> Value:
        """Attention of a block to what it sees, whose last m tokens are its own. in_place: attention received
        (G, tokens seen) to (G, T)."""
        repeat, visible = self.config.queries_per_head, self._causal(cached, m)
        first = max(0, self.prompt_tokens - self.observed_queries() - self.past)
        if first >= m:
            return self.backend.attend(masked, cached, visible)
        observed = (torch.arange(repeat)[:, None] * m + torch.arange(first, m)).flatten()
        out, received = self.backend.attend_observed(masked, cached, visible, observed)
        self._received[layer] = self.add_padded(self._received[layer], in_place(received))
        return out
