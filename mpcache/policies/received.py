"""Settings that a peer sent: read strictly, as the class of the policy that they name, and refused if there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import WrapValidator

from mpcache.policies.registry import known_policy
from mpcache.policies.settings import LONGEST_NAME, PolicySettings
from mpcache.wire import adapter


def _of_its_class(raw: Any, plain: Callable[[Any], PolicySettings]) -> PolicySettings:
    name = raw.get("name") if isinstance(raw, dict) else None
    if not isinstance(name, str) or len(name) > LONGEST_NAME:
        return plain(raw)  # refuses it in words
    kind = known_policy(name).settings_class
    settings = plain(raw) if kind is PolicySettings else adapter(kind).validate_json(json.dumps(raw))
    assert isinstance(settings, PolicySettings)
    return settings


AnySettings = Annotated[PolicySettings, WrapValidator(_of_its_class)]
"""The type of a field of a description that crosses the wire. Reading it raises ConfigError for a policy that is not
there, and for settings that are out of bounds."""
