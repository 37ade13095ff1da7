"""Policies to compare, by name: every cache policy, and mpcache with parts of it left out or changed."""

from __future__ import annotations

from mpcache.policies import LabelledPolicy, parse_policies

ABLATIONS = {
    "mpcache-static": "mpcache:clusters=",
    "mpcache-dynamic": "mpcache:keep_ratio=1",
    "mpcache-half": "mpcache:keep_ratio=0.5:most_kept=7",
    "mpcache-two-levels": "mpcache:clusters=8+4:widening=3",
    "mpcache-coarse": "mpcache:clusters=8",
    "mpcache-extremes": "mpcache:representative=extremes",
    "mpcache-unshared": "mpcache:share_layers=1",
    "mpcache-shared-first": "mpcache:unshared_layers=0",
    "mpcache-by-head": "mpcache:share_heads=false",
    "mpcache-evict-by-head": "mpcache:per_head=true",
}
"""What differs from mpcache's defaults."""


def compared_policies(text: str) -> list[LabelledPolicy]:
    """From spellings joined by commas; also an ablation's name, after which settings may follow; `all`: every policy;
    `ablations`: mpcache, its ablations, and the paper's settings. Raises ConfigError that says what to change."""
    return parse_policies(text, ABLATIONS, {"ablations": ["mpcache", *ABLATIONS, "mpcache-paper"]})
