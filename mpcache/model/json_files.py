"""JSON files of a model folder, read strictly: whoever wrote them, the worst that they can do is a ModelError.

Other people's files end up here, and Python's parser is generous: it takes NaN, the last of two equal keys, files of
any size, and whatever type a field has. A field is asked for by name, type and range; the error names file and field.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpcache.protocols.errors import ModelError

LARGEST_FILE = 16 << 20
"""Bytes: well above a shard index with every tensor of a model that fits here."""

_REQUIRED: Any = object()
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100
_SHORT.maxlevel = 3


def read_json_object(path: Path) -> JsonObject:
    """The object in a JSON file. Raises ModelError if the file is missing, too large or anything but a sound object."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(text) > LARGEST_FILE:
        raise ModelError(f"{path} cannot be read: more than {LARGEST_FILE >> 20} MiB are too much for such a file")
    try:
        value = json.loads(
            text.decode(), object_pairs_hook=_without_repeats, parse_constant=_finite, parse_float=_finite
        )
    except RecursionError:
        raise ModelError(f"{path} cannot be read: its values are nested too deeply") from None
    except ValueError as error:  # not UTF-8, not JSON, or what the functions below refuse
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} cannot be read: it holds {shown(value)} where an object ({{...}}) belongs")
    return JsonObject(value, str(path))


def find_json_object(path: Path) -> JsonObject | None:
    """The object in a JSON file, None where there is no such file. A link that leads nowhere is an error."""
    return read_json_object(path) if os.path.lexists(path) else None


def shown(value: object) -> str:
    """A value from a file in a few printable characters, as Python writes it."""
    return _SHORT.repr(value)


def some(values: Sequence[object]) -> str:
    """The first few of some values from a file, and how many more there are."""
    more = f" and {len(values) - 5} more" if len(values) > 5 else ""
    return ", ".join(shown(value) for value in values[:5]) + more


class JsonObject:
    """An object's fields. null counts as absent, as in Hugging Face's files, save for `flag`."""

    def __init__(self, fields: dict[str, Any], place: str) -> None:
        self._fields = fields
        self._place = place
        self._read: set[str] = set()

    def value(self, name: str) -> Any:
        """A field as it is; None where it is absent."""
        self._read.add(name)
        return self._fields.get(name)

    def names(self) -> list[str]:
        """The fields that are there and not null."""
        return [name for name, value in self._fields.items() if value is not None]

    def unread(self) -> list[str]:
        """The fields that are there, not null, and that nobody asked for."""
        return [name for name in self.names() if name not in self._read]

    def integer(self, name: str, most: int, default: int = _REQUIRED, least: int = 1) -> int:
        """A whole number from `least` to `most`."""
        return self._checked_integer(name, self._given(name, default), least, most)

    def integers(self, name: str, most: int) -> tuple[int, ...]:
        """A whole number from 0 to `most`, or a list of them; empty where the field is absent."""
        value = self._given(name, ())
        values = value if isinstance(value, (list, tuple)) else [value]
        return tuple(self._checked_integer(name, v, 0, most) for v in values)

    def number(self, name: str, most: float, default: float = _REQUIRED) -> float:
        """A number above 0, and at most `most`."""
        value = self._given(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
            raise self.error(f"{name} is {shown(value)}, not a number above 0 and up to {most:g}")
        return float(value)

    def text(self, name: str, default: str = _REQUIRED) -> str:
        value = self._given(name, default)
        if not isinstance(value, str) or not _is_unicode(value):
            raise self.error(f"{name} is {shown(value)}, not a text")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """true or false. Not null, which different readers of such files take for different things."""
        value = self.value(name) if name in self._fields else default
        if not isinstance(value, bool):
            raise self.error(f"{name} is {shown(value)}, not true or false")
        return value

    def nested(self, name: str) -> JsonObject:
        """An object within this one, empty where it is absent."""
        value = self._given(name, {})
        if not isinstance(value, dict):
            raise self.error(f"{name} is {shown(value)}, not an object ({{...}})")
        return JsonObject(value, f"{self._place}: {name}")

    def error(self, message: str) -> ModelError:
        """A complaint about this object that says where it stands."""
        return ModelError(f"{self._place}: {message}")

    def _given(self, name: str, default: Any) -> Any:
        value = self.value(name)
        if value is None and default is _REQUIRED:
            raise self.error(f"{name} is missing")
        return default if value is None else value

    def _checked_integer(self, name: str, value: object, least: int, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(f"{name} is {shown(value)}, not a whole number from {least:,} to {most:,}")
        return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"the field {shown(name)} is there twice")
        fields[name] = value
    return fields


def _is_unicode(text: str) -> bool:
    """Whether it can be written: JSON may spell half a character."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{shown(text)} is not a finite number")
    return value
