"""A cache policy's settings: one frozen dataclass for all policies, from code, TOML or JSON, checked before use."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mpcache.protocols.errors import ConfigError
from mpcache.wire import STRICT, from_wire, to_wire

REPRESENTATIVES = ("extremes", "mean")
MOST_TOKENS = 1 << 20
MOST_LAYERS = 1 << 10
MOST_LEVELS = 8
WIDEST_KERNEL = 255
WIDEST = 1024.0
LONGEST_NAME = 64
"""What no setting exceeds: a peer's settings are checked before anything is planned or looped over."""


@dataclass(frozen=True)
class PolicySettings:
    """Public: both parties and the dealer know all of it.

    name: see `mpcache policies`. budget: how many tokens a decode step attends to, a number of tokens (1 or more) or a
    fraction of the prompt (below 1), which is raised to the least that the policy can do with; policies that only evict
    after the prompt keep so many of it. sinks: first tokens, recent: last tokens, both always kept and attended to.
    mpcache: keep_ratio of the prompt's tokens survive static eviction (1: no eviction), scored by the last
    observed_share of the queries (0: `window` queries), per head if per_head; clusters: tokens of a cluster at each
    level, coarse to fine (none: static eviction alone, down to the budget); widening: how many times the next level's
    tokens a level picks; representative of a cluster: 'extremes' (alpha max + (1 - alpha) min) or 'mean';
    share_layers: neighbouring layers that share a selection; skip_layers: first layers that keep everything;
    unshared_layers: the next ones after those, which select each for itself; share_heads: all heads of a layer pick the
    same clusters, by the sum of their scores, so that ranks cost as if there were one.
    quest, infllm: page tokens a page or block; infllm: representatives tokens a block stand for it.
    snapkv, infllm: window queries observe; snapkv: kernel tokens are pooled. random: seed.
    """

    name: str = "mpcache"
    budget: float = 0.125
    sinks: int = 4
    recent: int = 16
    keep_ratio: float = 0.25
    observed_share: float = 0.2
    per_head: bool = False
    clusters: tuple[int, ...] = (4,)
    widening: float = 2.0
    representative: str = "mean"
    alpha: float = 0.6
    share_layers: int = 2
    unshared_layers: int = 1
    share_heads: bool = True
    skip_layers: int = 0
    page: int = 16
    representatives: int = 4
    window: int = 32
    kernel: int = 7
    seed: int = 0

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        """Raises ConfigError for settings that contradict each other, with the reason."""
        for test, reason in self._contradictions():
            if test:
                raise ConfigError(f"cache policy {self.name[:LONGEST_NAME]!r}: {reason}")

    def _contradictions(self) -> list[tuple[bool, str]]:
        uneven = [(a, b) for a, b in itertools.pairwise(self.clusters) if b < 1 or a % b or a == b]
        positive = ("recent", "share_layers", "page", "representatives", "window", "kernel")
        small = [name for name in positive if getattr(self, name) < 1]
        most = {
            **dict.fromkeys(("budget", "sinks", "recent", "page", "representatives", "window"), MOST_TOKENS),
            **dict.fromkeys(("share_layers", "unshared_layers", "skip_layers"), MOST_LAYERS),
            "kernel": WIDEST_KERNEL,
            "widening": WIDEST,
            "seed": 1 << 63,
        }
        large = [f"{name} {limit:,.0f}" for name, limit in most.items() if not getattr(self, name) <= limit]
        return [
            (len(self.name) > LONGEST_NAME, f"no policy has a name of more than {LONGEST_NAME} characters"),
            (not 0 < self.budget < float("inf"), f"the budget must be above zero and finite, not {self.budget:g}"),
            (bool(large), f"at most: {', '.join(large)}"),
            (self.seed < 0, "the seed cannot be negative"),
            (len(self.clusters) > MOST_LEVELS, f"at most {MOST_LEVELS} levels of clusters"),
            (any(c > MOST_TOKENS for c in self.clusters), f"clusters have at most {MOST_TOKENS:,} tokens"),
            (self.budget >= 1 and self.budget % 1 > 0, "a budget above 1 is a whole number of tokens"),
            (bool(small), f"{', '.join(small)} must be at least 1"),
            (
                min(self.sinks, self.skip_layers, self.unshared_layers) < 0,
                "sinks, skip_layers and unshared_layers cannot be negative",
            ),
            (not 0 < self.keep_ratio <= 1, f"keep_ratio must be above 0 and at most 1, not {self.keep_ratio:g}"),
            (not 0 <= self.observed_share <= 1, "observed_share is a share of the queries, between 0 and 1"),
            (any(c < 1 for c in self.clusters), "clusters have at least one token"),
            (bool(uneven), f"each level's clusters consist of whole clusters of the next: not {uneven}"),
            (not self.widening >= 1, "a coarser level picks at least as many tokens as the finer one: widening >= 1"),
            (
                self.representative not in REPRESENTATIVES,
                f"representative {self.representative[:40]!r} is none of {', '.join(REPRESENTATIVES)}",
            ),
            (not 0 <= self.alpha <= 1, "alpha lies between 0 and 1"),
            (self.kernel % 2 == 0, "the kernel has a middle: an odd number of tokens"),
            (self.representatives > self.page, "a block has no more representatives than tokens"),
        ]

    def to_json(self) -> str:
        """Canonical: equal settings give equal text."""
        return to_wire(self)

    @staticmethod
    def from_json(text: str) -> PolicySettings:
        """What a peer sent. Raises HandshakeError, or ConfigError for settings that contradict each other."""
        return from_wire(PolicySettings, text, "the cache policy's settings")


def policy_settings(raw: Any) -> PolicySettings:
    """From a TOML or JSON table. Raises ConfigError that says what to change."""
    if isinstance(raw, str):
        raw = {"name": raw}
    if not isinstance(raw, dict):
        raise ConfigError(f"a cache policy is a name or a table of settings, not {str(raw)[:60]!r}")
    fields = {field.name: field for field in dataclasses.fields(PolicySettings)}
    for key in raw:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(fields)}"
            raise ConfigError(f"cache policy: unknown setting {key!r} ({hint})")
    return PolicySettings(**{key: _typed(key, str(fields[key].type), value) for key, value in raw.items()})


def changed_settings(settings: PolicySettings, assignments: Iterable[str]) -> PolicySettings:
    """The settings with `KEY=VALUE` assignments made; a value is written as in TOML, text also without quotes.

    Raises ConfigError that says what to change.
    """
    raw = dataclasses.asdict(settings)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(
                f"cache policy: {assignment!r} is no KEY=VALUE, such as keep_ratio=0.5 or clusters=[32,16]"
            )
        try:
            raw[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            raw[key.strip()] = text.strip()
    return policy_settings(raw)


def _typed(name: str, kind: str, value: Any) -> Any:
    if kind.startswith("tuple"):
        if isinstance(value, list | tuple) and all(type(v) is int for v in value):
            return tuple(value)
        raise ConfigError(f"cache policy: {name} must be a list of whole numbers, not {value!r}")
    accepted: Any = {"str": str, "bool": bool, "int": int, "float": int | float}[kind]
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind != "bool"):
        wanted = {"str": "text", "bool": "true or false", "int": "a whole number"}.get(kind, "a number")
        raise ConfigError(f"cache policy: {name} must be {wanted}, not {value!r}")
    return float(value) if kind == "float" else value
