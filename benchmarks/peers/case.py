"""What is measured of every peer, and the records that come of it."""

from __future__ import annotations

import math
import os
import statistics
from dataclasses import asdict, dataclass
from typing import Any

from mpcache.policies.mpcache import MPCacheSettings
from mpcache.protocols.errors import ConfigError

POLICIES_OF = {
    "attention": ("full", "mpcache"),
    "selection": ("mpcache", "top-k"),
    "block": ("full", "mpcache"),
    "head": ("full",),
    "model": ("full", "mpcache"),
}
WHATS = tuple(POLICIES_OF)
POLICIES = ("full", "mpcache", "top-k")
CLUSTER = 16
"""Tokens that a candidate of the policy `top-k` stands for: 2,048 tokens are 128 candidates."""
BUDGET = 0.125
"""Share of the tokens that the policies attend to."""


@dataclass(frozen=True)
class Case:
    """One token decoded. Sizes are GPT-2 small's unless given.

    what: attention (of one layer), selection (what precedes it in a policy that selects), block (a whole layer), head
    (final norm, logits, arg max) or model (all layers and the head). tokens: prompt tokens, 0 for the head. policy:
    full; mpcache, with our default settings (static eviction done, selection part of the step); top-k, for selection
    alone, one level of clusters over all tokens.
    """

    what: str
    tokens: int
    policy: str = "full"
    repeat: int = 3
    limit_seconds: int = 600
    hidden: int = 768
    heads: int = 12
    intermediate: int = 3072
    vocabulary: int = 50257
    layers: int = 12

    def __post_init__(self) -> None:
        """Raises ConfigError for what nobody can measure."""
        if self.what not in WHATS:
            raise ConfigError(f"unknown part {self.what!r} (known: {', '.join(WHATS)})")
        if self.policy not in POLICIES:
            raise ConfigError(f"unknown policy {self.policy!r} (known: {', '.join(POLICIES)})")
        if self.policy not in POLICIES_OF[self.what]:
            known = ", ".join(POLICIES_OF[self.what])
            raise ConfigError(f"{self.what} with the policy {self.policy!r} is no case (its policies: {known})")
        if self.tokens < 1 and self.what != "head":
            raise ConfigError("a case has at least one token")

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    def to_dict(self) -> dict[str, Any]:
        """With the policy's layout, for programs that do not know our policies."""
        layout = None if self.policy == "full" else selection_layout(self.policy, self.tokens)
        return {**asdict(self), "layout": layout}


def cases(whats: list[str], tokens: list[int], policies: list[str], repeat: int, limit_seconds: int) -> list[Case]:
    """All that exist of the combinations; the head once. Raises ConfigError if there are none."""
    for word, known, kind in [*((w, WHATS, "part") for w in whats), *((p, POLICIES, "policy") for p in policies)]:
        if word not in known:
            raise ConfigError(f"unknown {kind} {word!r} (known: {', '.join(known)})")
    found: list[Case] = []
    for what in whats:
        for policy in policies:
            for n in [0] if what == "head" else tokens:
                if policy in POLICIES_OF[what]:
                    found.append(Case(what, n, policy, repeat, limit_seconds))
    if not found:
        raise ConfigError(f"none of {', '.join(policies)} is a policy of {', '.join(whats)}")
    return found


def selection_layout(policy: str, tokens: int) -> dict[str, Any]:
    """Where the cached tokens are and what is picked, as in mpcache/policies/clusters.py with default settings.

    cached: tokens in the cache, [sinks | clustered | tail]; levels: (tokens of a cluster, clusters picked), coarse to
    fine. Raises ConfigError if there are so few tokens that everything would be picked.
    """
    s = MPCacheSettings(budget=BUDGET)
    budget = s.budget_tokens(tokens)
    if policy == "top-k":
        cached = inside = tokens // CLUSTER * CLUSTER
        sinks, wanted = 0, math.ceil(BUDGET * tokens)
        sizes: tuple[int, ...] = (CLUSTER,)
    else:
        cached = s.kept_tokens(tokens)
        present = cached + 1  # with the new token
        inside = max(0, (present - s.sinks - s.recent) // s.clusters[0]) * s.clusters[0]
        sinks, sizes, wanted = s.sinks, s.clusters, budget - (present - inside)
    levels: list[tuple[int, int]] = []
    for size in reversed(sizes):
        count = -(-wanted // size) if levels else wanted // size
        if count * size >= inside:
            break
        levels.insert(0, (size, count))
        wanted = math.ceil(s.widening * count * size)
    if not levels or levels[-1][1] < 1:
        raise ConfigError(f"of {tokens} tokens nothing can be selected: take more")
    return {"cached": cached, "sinks": sinks, "clustered": inside, "levels": levels}


@dataclass(frozen=True)
class Figures:
    """What one case took. Bytes are of one step, summed over the parties; None: not known for this system.

    messages: sent by all parties; messages_per_party: by the one that sends most. error: the largest absolute error
    against plaintext (of a token: 0 if it is the same one). extra: what only this system tells.
    """

    all_seconds: list[float]
    cpu_seconds: float
    online_bytes: int
    correlation_bytes: int | None
    rounds: int | None
    messages: int
    messages_per_party: int
    error: float
    extra: dict[str, Any]


Record = dict[str, Any]


def measured(system: str, protocol: str, case: Case, figures: Figures) -> Record:
    return {
        **_head(system, protocol, case),
        "status": "done",
        "seconds": statistics.median(figures.all_seconds),
        **{key: value for key, value in asdict(figures).items() if key != "extra"},
        **figures.extra,
    }


def not_measured(system: str, protocol: str, case: Case, status: str, reason: str) -> Record:
    """status: 'failed', or 'absent' where the system, or this case of it, is not there."""
    nothing = dict.fromkeys(("seconds", "cpu_seconds", "online_bytes", "correlation_bytes", "rounds", "messages"))
    return {**_head(system, protocol, case), "status": status, "reason": reason, **nothing}


def _head(system: str, protocol: str, case: Case) -> Record:
    return {
        "bench": "peers",
        "system": system,
        "protocol": protocol,
        "what": case.what,
        "policy": case.policy,
        "tokens": case.tokens or None,
        "settings": case.to_dict(),
        "load_average": os.getloadavg()[0],
    }
