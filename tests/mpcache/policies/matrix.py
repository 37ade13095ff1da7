"""The test matrix: every registered policy, and mpcache's settings one by one. A new policy is tested by being listed.

Sizes are small, so that a few tens of tokens cross every boundary.
"""

from __future__ import annotations

from dataclasses import fields, replace

from mpcache.policies import PolicySettings, available_policies, policy_class, policy_settings


def fitting(name: str, **settings: object) -> PolicySettings:
    """A policy with those of the settings that it has."""
    known = {field.name for field in fields(policy_class(name).settings_class)}
    return policy_settings(name, **{key: value for key, value in settings.items() if key in known})


def small(name: str, **changes: object) -> PolicySettings:
    """A policy at the scale of a few tens of tokens."""
    settings = fitting(
        name,
        budget=16,
        sinks=2,
        recent=3,
        keep_ratio=0.5,
        clusters=(4, 2),
        unshared_layers=0,
        share_heads=False,
        picks=0,
        only_if_cheaper=False,
        evict_if_cheap=False,
        page=4,
        representatives=2,
        window=6,
        kernel=3,
        cluster=1,
        called=2,
    )
    return replace(settings, **changes)  # type: ignore[arg-type]


SETTINGS: dict[str, PolicySettings] = {name: small(name) for name in available_policies()} | {
    "mpcache, static only": small("mpcache", clusters=()),
    "mpcache, dynamic only": small("mpcache", keep_ratio=1.0),
    "mpcache, one level": small("mpcache", clusters=(2,)),
    "mpcache, three levels": small("mpcache", clusters=(8, 4, 2), keep_ratio=1.0, budget=18, widening=1.5),
    "mpcache, no sharing": small("mpcache", share_layers=1),
    "mpcache, all layers share": small("mpcache", share_layers=3),
    "mpcache, a layer skipped": small("mpcache", skip_layers=1),
    "mpcache, a layer alone": small("mpcache", unshared_layers=1),
    "mpcache, heads share": small("mpcache", share_heads=True),
    "mpcache, extremes": small("mpcache", representative="extremes"),
    "mpcache, per head": small("mpcache", per_head=True),
    "mpcache, per head, static only": small("mpcache", per_head=True, clusters=()),
    "mpcache, window": small("mpcache", observed_share=0.0, window=5),
    "mpcache, no sinks": small("mpcache", sinks=0, recent=1),
    "mpcache, one pick a stripe": small("mpcache", clusters=(2,), keep_ratio=1.0, picks=1),
    "mpcache, two picks a stripe": small("mpcache", keep_ratio=1.0, picks=2, share_heads=True),
    "mpcache, three levels in stripes": small("mpcache", clusters=(8, 4, 2), keep_ratio=1.0, budget=19, picks=1),
    "quest, in stripes": small("quest", picks=1),
    "infllm, in stripes": small("infllm", picks=1),
    "mpcache, few kept": small("mpcache", keep_ratio=0.9, most_kept=1.5),
    "mpcache, answer beside clusters": small("mpcache", cluster_answer=False, keep_ratio=0.8),
    "mpcache, answer beside clusters in stripes": small(
        "mpcache", cluster_answer=False, keep_ratio=1.0, picks=1, share_heads=True, clusters=(2,), share_layers=1
    ),
    "mpcache, fraction": small("mpcache", budget=0.3),
    "recall, clusters of two": small("recall", budget=26, cluster=2, unshared_layers=1),
    "recall, one is called, none kept": small("recall", cluster=2, called=1, budget=14),
    "recall, eight are called": small("recall", share_layers=1, called=8, budget=30),
    "recall, no sharing": small("recall", share_layers=1, called=4, budget=20),
    "recall, window": small("recall", observed_share=0.0, window=5, share_layers=3, sinks=0, recent=1),
    "streaming, no sinks": small("streaming", sinks=0, recent=1, budget=3),
    "h2o, least": small("h2o", budget=2),
    "tova, least": small("tova", budget=1),
    "quest, fraction": small("quest", budget=0.4),
}
TAKING_DRAFTS = {name: s for name, s in SETTINGS.items() if not policy_class(s.name).refuses_drafts(s)}
