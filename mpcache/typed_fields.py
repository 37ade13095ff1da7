"""Dataclasses from what people write: TOML tables, command lines, keyword arguments.

Every name is a field's and every value of the field's type, or a ConfigError says what to change. Bounds are the
dataclass's own business (`__post_init__`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from mpcache.protocols.errors import ConfigError
from mpcache.suggest import suggestion

Readers = Mapping[Any, Callable[[Any], Any]]
"""For a field of this type: makes its value of what was written, or raises ConfigError."""
_WANTED = {
    str: "text in quotes",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Path: "a path in quotes",
    tuple[int, ...]: "a list of whole numbers",
    tuple[str, ...]: "a list of names in quotes",
}


def _field_types(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


field_types: Callable[[Any], dict[str, Any]] = cache(_field_types)
"""The type of each field that a dataclass is made from."""


def typed_fields(kind: type, table: Mapping[str, Any], readers: Readers | None = None) -> dict[str, Any]:
    """The dataclass's arguments from a table of names and values. Raises ConfigError."""
    types = field_types(kind)
    for name in table:
        if name not in types:
            raise ConfigError(f"unknown setting {str(name)[:40]!r} ({suggestion(str(name)[:40], types)})")
    for field in dataclasses.fields(kind):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.init and required and field.name not in table:
            raise ConfigError(f"the setting {field.name!r} is required")
    read = readers or {}
    return {
        name: read[types[name]](value) if types[name] in read else _typed(name, types[name], value)
        for name, value in table.items()
    }


def _typed(name: str, wanted: Any, value: Any) -> Any:
    if get_origin(wanted) is tuple:
        fits = isinstance(value, list | tuple) and all(_is(get_args(wanted)[0], item) for item in value)
        make: Callable[[Any], Any] = tuple
    else:
        fits, make = _is(wanted, value), wanted
    if not fits:
        raise ConfigError(f"{name} must be {_WANTED[wanted]}, not {_shown(value)}")
    try:
        return make(value)
    except OverflowError:  # of a whole number that no float holds
        raise ConfigError(f"{name} is too large") from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _is(wanted: type, value: Any) -> bool:
    """true is no number here, and a whole number is one with a fraction of nothing."""
    accepted = {float: (int, float), Path: (str, Path)}.get(wanted, (wanted,))
    return isinstance(value, accepted) and (wanted is bool or not isinstance(value, bool))


def from_text(wanted: Any, name: str, text: str) -> Any:
    """A value as a command line spells it: 0.5, 16, true, mean, 8+4. Raises ConfigError."""
    try:
        if get_origin(wanted) is tuple:
            return tuple(get_args(wanted)[0](part) for part in text.split("+") if part)
        if wanted in (int, float):
            return wanted(text)
    except ValueError:
        example = "8+4" if get_origin(wanted) is tuple else "16" if wanted is int else "0.5"
        raise ConfigError(f"{name}={text[:40]}: not a number, such as {name}={example}") from None
    return {"true": True, "false": False}.get(text, text) if wanted is bool else text


def to_text(value: Any) -> str:
    """As `from_text` reads it."""
    if isinstance(value, tuple):
        return "+".join(map(to_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
