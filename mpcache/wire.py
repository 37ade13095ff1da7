"""Descriptions that cross the wire: frozen dataclasses as canonical JSON, read strictly.

Nothing in a description is used before all of it was read: every field is there, of its type, finite, and within the
bounds that its class checks (`__post_init__`); no other field is, and nothing is nested deeper than the class is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from mpcache.protocols.errors import HandshakeError

T = TypeVar("T")
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""`__pydantic_config__` of every class that is read from the wire, and of those within it."""
LONGEST = 1 << 14
"""Characters of a description."""
adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)
"""Of a class, or of an annotated one."""


def to_wire(value: Any) -> str:
    """Canonical: equal values give equal text."""
    return json.dumps(asdict(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def from_wire(kind: type[T], text: str, what: str) -> T:
    """The value that `text` describes. what: its name in the error.

    Raises HandshakeError that names the first field that is wrong, or what the class raises for its bounds.
    """
    if len(text) > LONGEST:
        raise HandshakeError(f"{what} cannot be read: it has {len(text)} characters, more than {LONGEST}")
    try:
        value: T = adapter(kind).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part)[:40] for part in first["loc"])
        raise HandshakeError(f"{what} cannot be read: {where and where + ': '}{first['msg'][:200]}") from None
    if json.loads(to_wire(value)) != json.loads(text):
        raise HandshakeError(f"{what} cannot be read: not every field is there")
    return value
