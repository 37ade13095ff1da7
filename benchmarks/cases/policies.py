"""Policies to compare, by name: every cache policy, and mpcache with parts of it left out or changed."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from mpcache.policies import PolicySettings, policies, policy_settings
from mpcache.protocols.errors import ConfigError

ABLATIONS: dict[str, dict[str, Any]] = {
    "mpcache-static": {"clusters": ()},
    "mpcache-dynamic": {"keep_ratio": 1.0},
    "mpcache-half": {"keep_ratio": 0.5},
    "mpcache-two-levels": {"clusters": (8, 4), "widening": 3.0},
    "mpcache-coarse": {"clusters": (8,)},
    "mpcache-extremes": {"representative": "extremes"},
    "mpcache-unshared": {"share_layers": 1},
    "mpcache-shared-first": {"unshared_layers": 0},
    "mpcache-by-head": {"share_heads": False},
    "mpcache-evict-by-head": {"per_head": True},
    "mpcache-paper": {
        "clusters": (32, 16),
        "keep_ratio": 0.5,
        "representative": "extremes",
        "unshared_layers": 0,
        "share_heads": False,
    },
}
"""What differs from mpcache's defaults. mpcache-paper: the clusters, representative and sharing of arXiv 2501.06807."""


@dataclass(frozen=True)
class Contender:
    """A policy's settings under the name that tables and plots show."""

    label: str
    settings: PolicySettings

    def with_budget(self, budget: float) -> Contender:
        return replace(self, settings=replace(self.settings, budget=budget))


def parse_contenders(text: str) -> list[Contender]:
    """From names joined by commas; settings after colons: `mpcache:keep_ratio=1:clusters=8+4`. `all`: every policy;
    `ablations`: mpcache and its ablations. Raises ConfigError that says what to change."""
    out: list[Contender] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        if item == "all":
            out += [Contender(name, PolicySettings(name)) for name in policies()]
        elif item == "ablations":
            out += [_contender(name) for name in ("mpcache", *ABLATIONS)]
        else:
            out.append(_contender(item))
    if not out:
        raise ConfigError("name at least one policy, such as full,mpcache")
    return list(dict.fromkeys(out))


def _contender(item: str) -> Contender:
    name, *changes = item.split(":")
    known = [*policies(), *ABLATIONS]
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        raise ConfigError(f"unknown cache policy {name[:40]!r} ({hint})")
    raw: dict[str, Any] = {"name": "mpcache", **ABLATIONS[name]} if name in ABLATIONS else {"name": name}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"{change!r} in {item!r} is not a setting: write key=value")
        raw[key] = _value(key, value)
    return Contender(item, policy_settings(raw))


def _value(key: str, text: str) -> Any:
    kinds = {field.name: str(field.type) for field in fields(PolicySettings)}
    kind = kinds.get(key, "str")
    try:
        if kind.startswith("tuple"):
            return tuple(int(part) for part in text.split("+") if part)
        if kind in ("int", "float"):
            return int(text) if kind == "int" else float(text)
    except ValueError:
        raise ConfigError(f"{key}={text}: not a number") from None
    return {"true": True, "false": False}.get(text, text) if kind == "bool" else text


def labels(contenders: Sequence[Contender]) -> list[str]:
    return [contender.label for contender in contenders]
