"""Cache policies: what stays of the prompt, and what each new token attends to. One policy, one file."""

from mpcache.policies.base import Policy
from mpcache.policies.clusters import ClusterPolicy, ClusterSettings
from mpcache.policies.eviction import keep_top_k_per_head, keep_top_k_together
from mpcache.policies.presets import PRESETS
from mpcache.policies.received import AnySettings
from mpcache.policies.registry import (
    available_policies,
    check_policy,
    known_policies,
    new_cache,
    policy_class,
    policy_names,
    register_policy,
)
from mpcache.policies.settings import PolicySettings, SinkSettings, setting
from mpcache.policies.spelling import (
    LabelledPolicy,
    parse_policies,
    policy_from_table,
    policy_settings,
    spelled,
)

__all__ = [
    "PRESETS",
    "AnySettings",
    "ClusterPolicy",
    "ClusterSettings",
    "LabelledPolicy",
    "Policy",
    "PolicySettings",
    "SinkSettings",
    "available_policies",
    "check_policy",
    "keep_top_k_per_head",
    "keep_top_k_together",
    "known_policies",
    "new_cache",
    "parse_policies",
    "policy_class",
    "policy_from_table",
    "policy_names",
    "policy_settings",
    "register_policy",
    "setting",
    "spelled",
]
