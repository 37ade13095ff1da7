"""A policy with its settings in one word, `mpcache:budget=0.25:clusters=8+4`, wherever people write one: command lines,
TOML, code. What is not said has the policy's defaults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from mpcache.policies.presets import PRESETS
from mpcache.policies.registry import policy_class, policy_names
from mpcache.policies.settings import PolicySettings
from mpcache.protocols.errors import ConfigError
from mpcache.suggest import suggestion
from mpcache.typed_fields import field_types, from_text, to_text, typed_fields

DEFAULT = "mpcache"


def policy_settings(policy: str | PolicySettings = DEFAULT, /, **changes: Any) -> PolicySettings:
    """The settings of a policy, by its name or spelling, with changes: `policy_settings("quest", page=32)`.

    policy: a preset's name stands for what it sets; settings already are what they are.
    Raises ConfigError that says what to change.
    """
    if isinstance(policy, PolicySettings):
        same = {one.name: getattr(policy, one.name) for one in fields(policy) if one.name != "name"}
        return _settings(policy.name, {**same, **changes}) if changes else policy
    if not isinstance(policy, str):
        raise ConfigError(f"a policy is named in quotes, as 'mpcache:budget=0.25', or by its settings: not {policy!r}")
    word, *said = policy.strip().split(":")
    name, *preset = PRESETS[word].policy.split(":") if word in PRESETS else [word]
    kind = policy_class(name).settings_class
    with _errors_of(word):
        table = {**_read(kind, preset), **_read(kind, said), **changes}
    return _settings(name, table)


def policy_from_table(raw: Any) -> PolicySettings:
    """From TOML: a spelling, or a table of a name (default: mpcache; a preset's, too) and settings.

    Raises ConfigError.
    """
    if isinstance(raw, str):
        return policy_settings(raw)
    if not isinstance(raw, dict):
        raise ConfigError(f"a cache policy is written as 'name:key=value' or as a table, not as {str(raw)[:60]!r}")
    name = raw.get("name", DEFAULT)
    if not isinstance(name, str):
        raise ConfigError(f"a cache policy's name is text in quotes, not {str(name)[:60]!r}")
    changes = {key: value for key, value in raw.items() if key != "name"}
    return policy_settings(name, **changes) if name in PRESETS else _settings(name, changes)


def spelled(settings: PolicySettings) -> str:
    """The policy with all of its settings, as `policy_settings` reads it."""
    names = [one.name for one in fields(settings) if one.name != "name"]
    return ":".join([settings.name, *(f"{name}={to_text(getattr(settings, name))}" for name in names)])


def _settings(name: str, changes: Mapping[str, Any]) -> PolicySettings:
    kind = policy_class(name).settings_class
    with _errors_of(name):
        if "name" in changes:
            raise ConfigError("its name stands before its settings, and is none of them")
        arguments = typed_fields(kind, {"name": name, **changes})
    return kind(**arguments)


@contextmanager
def _errors_of(name: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"cache policy {name!r}: {error}") from None


def _read(kind: type[PolicySettings], said: Sequence[str]) -> dict[str, Any]:
    types, out = field_types(kind), {}
    for part in said:
        key, equals, text = (word.strip() for word in part.partition("="))
        if not equals or key in out:
            wrong = "is given twice" if equals else "is no setting: write key=value, as in mpcache:budget=0.25"
            raise ConfigError(f"{part[:40]!r} {wrong}")
        out[key] = from_text(types.get(key), key, text)
    return out


# ---------------------------------------------------------------- several, to compare


@dataclass(frozen=True)
class LabelledPolicy:
    """A policy's settings under the name that tables and plots show."""

    label: str
    settings: PolicySettings

    def with_budget(self, budget: float) -> LabelledPolicy:
        return replace(self, settings=replace(self.settings, budget=budget))


def parse_policies(
    text: str, short_forms: Mapping[str, str] | None = None, groups: Mapping[str, Sequence[str]] | None = None
) -> list[LabelledPolicy]:
    """From spellings joined by commas, or `all` for every policy with its defaults. Raises ConfigError.

    short_forms: further names, each for a spelling, after which settings may follow, as after a preset's. groups: words
    like `all`.
    """
    forms = {**{name: name for name in PRESETS}, **(short_forms or {})}
    words = {"all": policy_names(), **(groups or {})}
    out: list[LabelledPolicy] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        out += [_labelled(one, forms) for one in words.get(item, [item])]
    if not out:
        raise ConfigError("name at least one policy, such as full,mpcache")
    return list(dict.fromkeys(out))


def _labelled(spelling: str, forms: Mapping[str, str]) -> LabelledPolicy:
    name, *said = spelling.split(":")
    if name not in forms and name not in policy_names():
        raise ConfigError(f"unknown cache policy {name[:40]!r} ({suggestion(name[:40], [*policy_names(), *forms])})")
    return LabelledPolicy(spelling, policy_settings(":".join([forms.get(name, name), *said])))
