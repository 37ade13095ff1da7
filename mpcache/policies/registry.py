"""Cache policies by name: those of this folder, those that were registered, and those of other installed distributions.

A distribution offers a policy by an entry point of the group `mpcache.policies`, called as the policy is:

    [project.entry-points."mpcache.policies"]
    newest = "my_package:Newest"

It is loaded when this process asks for its name (on a command line, in code, in `policies` of owner.toml and
dealer.toml) or lists all policies; never because a peer names it.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import sys
from functools import cache
from pathlib import Path
from typing import TypeVar

from mpcache.model.decoder import Decoder
from mpcache.policies.base import Policy
from mpcache.policies.presets import PRESETS
from mpcache.policies.settings import LONGEST_NAME, PolicySettings, bounds_of
from mpcache.protocols.errors import ConfigError
from mpcache.suggest import suggestion
from mpcache.typed_fields import field_types

GROUP = "mpcache.policies"
P = TypeVar("P", bound=type[Policy])
_NAME = re.compile(rf"[a-z0-9][a-z0-9_.-]{{0,{LONGEST_NAME - 1}}}")
_registered: dict[str, type[Policy]] = {}
_asked_for: dict[str, type[Policy]] = {}
"""Of other distributions, those that this process has loaded."""


def register_policy(policy: P) -> P:
    """Make a policy known to this process by its `name`. Also a decorator. Raises ConfigError if something is missing.

    Both parties and the dealer must know a policy that they run.
    """
    _check_class(policy)
    if policy.name in (_ours() | PRESETS) or _registered.get(policy.name, policy) is not policy:
        raise ConfigError(f"there is a cache policy {policy.name!r} already: take another name")
    _registered[policy.name] = policy
    return policy


def available_policies() -> dict[str, type[Policy]]:
    """Every policy by its name, sorted. Raises ConfigError if one of another distribution cannot be loaded."""
    return {name: policy_class(name) for name in policy_names()}


def policy_names() -> list[str]:
    """Sorted; loads none of another distribution."""
    return sorted({*_ours(), *_registered, *_offered(tuple(sys.path))})


def policy_class(name: str) -> type[Policy]:
    """What this process asks for by itself: loads a policy of another distribution. Raises ConfigError if there is none
    of that name."""
    if found := known_policies().get(name):
        return found
    path = tuple(sys.path)
    if name not in _offered(path):
        raise _unknown(name, [*policy_names(), *PRESETS])
    _asked_for[name] = _loaded(name, path)
    return _asked_for[name]


def known_policies() -> dict[str, type[Policy]]:
    """Ours, the registered ones, and those of other distributions that were asked for. Loads nothing."""
    return {**_asked_for, **_registered, **_ours()}


def known_policy(name: str) -> type[Policy]:
    """What a peer may name. Raises ConfigError if it is not known."""
    if (found := known_policies().get(name)) is None:
        raise _unknown(name, sorted(known_policies()))
    return found


def _unknown(name: str, names: list[str]) -> ConfigError:
    return ConfigError(f"unknown cache policy {name[:40]!r} ({suggestion(name[:LONGEST_NAME], names)})")


def check_policy(settings: PolicySettings) -> PolicySettings:
    """The settings, if there is such a policy, they are its own, and its budget suffices. Raises ConfigError."""
    policy_class(settings.name).check(settings)
    return settings


def new_cache(settings: PolicySettings, decoder: Decoder, prompt_tokens: int) -> Policy:
    """The empty cache of one generation."""
    return policy_class(settings.name)(settings, decoder.config, decoder.backend, prompt_tokens)


@cache
def _ours() -> dict[str, type[Policy]]:
    """Those of this folder: a class with a name in a module there is one."""
    found: dict[str, type[Policy]] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)], f"{__package__}."):
        for member in vars(importlib.import_module(module.name)).values():
            own = inspect.isclass(member) and member.__module__ == module.name and "name" in vars(member)
            if own and issubclass(member, Policy):
                _check_class(member)
                found[member.name] = member
    return found


@cache
def _offered(path: tuple[str, ...]) -> dict[str, importlib.metadata.EntryPoint]:
    """Entry points of the distributions on `path`; a name of ours stays ours, and a preset's, too."""
    ours = _ours() | PRESETS
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP) if point.name not in ours}


@cache
def _loaded(name: str, path: tuple[str, ...]) -> type[Policy]:
    point = _offered(path)[name]
    origin = point.dist.name if point.dist else point.value
    try:
        policy: type[Policy] = point.load()
        _check_class(policy)
    except Exception as error:  # whatever its code raises: it is not ours
        raise ConfigError(f"the cache policy {name!r} of {origin} cannot be used: {error}") from error
    assert issubclass(policy, Policy)
    if policy.name != name:
        raise ConfigError(f"the cache policy {name!r} of {origin} calls itself {policy.name!r}")
    return policy


def _check_class(policy: type[Policy]) -> None:
    """Raises ConfigError if something of the policy is missing, or a setting has no bounds."""
    if not (inspect.isclass(policy) and issubclass(policy, Policy)):
        raise ConfigError(f"{policy!r} is no subclass of Policy")
    missing = [name for name in ("name", "summary", "mpc_cost") if not isinstance(getattr(policy, name, None), str)]
    if missing or inspect.isabstract(policy):
        lacking = ", ".join([*missing, *sorted(policy.__abstractmethods__)])
        raise ConfigError(f"the cache policy {policy.__qualname__} is not whole: it lacks {lacking}")
    if not _NAME.fullmatch(policy.name):
        raise ConfigError(f"a cache policy's name is of small letters, digits, '-', '_' and '.': not {policy.name!r}")
    _check_settings_class(policy)


def _check_settings_class(policy: type[Policy]) -> None:
    kind = policy.settings_class
    if not issubclass(kind, PolicySettings) or "__dataclass_fields__" not in vars(kind):
        raise ConfigError(
            f"the cache policy {policy.name!r}: {kind.__qualname__} is no @dataclass(frozen=True) of PolicySettings"
        )
    if inspect.isabstract(kind):
        lacking = ", ".join(sorted(getattr(kind, "__abstractmethods__", ())))
        raise ConfigError(f"the cache policy {policy.name!r}: {kind.__qualname__} lacks {lacking}")
    types = field_types(kind)
    for one in dataclasses.fields(kind):
        if one.name != "name" and not bounds_of(one).complete(types[one.name]):
            raise ConfigError(
                f"the cache policy {policy.name!r}: its setting {one.name!r} needs bounds, since a peer may choose it: "
                "make it by setting(default, least=..., most=...)"
            )
    kind(name=policy.name)
