"""Cache policies by name. A new policy is a new file in this folder with a subclass of `Policy`, and nothing else."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from functools import cache

from mpcache.model.decoder import Decoder
from mpcache.policies.base import Policy
from mpcache.policies.settings import PolicySettings, changed_settings, policy_settings
from mpcache.protocols.errors import ConfigError

__all__ = [
    "Policy",
    "PolicySettings",
    "changed_settings",
    "check_policy",
    "new_cache",
    "policies",
    "policy_class",
    "policy_settings",
]


@cache
def policies() -> dict[str, type[Policy]]:
    """Every policy of this folder by its name."""
    found = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        for member in vars(importlib.import_module(module.name)).values():
            own = inspect.isclass(member) and member.__module__ == module.name and member is not Policy
            if own and issubclass(member, Policy) and "name" in vars(member):
                found[member.name] = member
    return dict(sorted(found.items()))


def check_policy(settings: PolicySettings) -> PolicySettings:
    """The settings, if there is such a policy and its budget suffices. Raises ConfigError."""
    policy_class(settings.name).check(settings)
    return settings


def new_cache(settings: PolicySettings, decoder: Decoder, prompt_tokens: int) -> Policy:
    """The empty cache of one generation."""
    return policy_class(settings.name)(settings, decoder.config, decoder.backend, prompt_tokens)


def policy_class(name: str) -> type[Policy]:
    """Raises ConfigError if there is none of that name."""
    if name not in policies():
        close = difflib.get_close_matches(name, policies(), 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(policies())}"
        raise ConfigError(f"unknown cache policy {name[:40]!r} ({hint})")
    return policies()[name]
