"""What is public of a cache policy: its settings, each with the bounds that it is checked against before use.

A policy's own settings are a frozen dataclass in its own file, derived from one of these. Each field is made by
`setting`, with its bounds: settings come from a peer as well, and are planned with and looped over.
"""

from __future__ import annotations

import math
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar

from mpcache.protocols.errors import ConfigError
from mpcache.typed_fields import field_types
from mpcache.wire import STRICT

MOST_TOKENS = 1 << 20
MOST_LAYERS = 1 << 10
LONGEST_NAME = 64
_BOUNDS = "bounds"


@dataclass(frozen=True)
class Bounds:
    """What a setting's value lies within; of a tuple, each of its items, of which there are `longest` at most."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    longest: int | None = None
    choices: tuple[str, ...] = ()

    def refusal(self, value: Any) -> str:
        """What the value must be, or nothing if it is."""
        if self == Bounds():
            return ""
        if self.choices:
            return "" if value in self.choices else f"must be one of {', '.join(self.choices)}"
        items = value if isinstance(value, tuple) else (value,)
        if self.longest is not None and len(items) > self.longest:
            return f"must have at most {self.longest} items"
        low = -math.inf if self.least is None else self.least
        over = -math.inf if self.above is None else self.above
        high = math.inf if self.most is None else self.most
        if all(low <= item <= high and item > over for item in items):  # not what a NaN is
            return ""
        lower = f"at least {self.least:,g}" if self.above is None else f"above {self.above:,g}"
        return f"must be {lower} and at most {high:,.0f}"

    def complete(self, kind: Any) -> bool:
        """Whether no value of the type is without limits."""
        if kind is bool:
            return True
        if kind is str:
            return bool(self.choices)
        if kind == tuple[int, ...] and self.longest is None:
            return False
        numbers = kind in (int, float) or kind == tuple[int, ...]
        return numbers and self.most is not None and (self.least, self.above) != (None, None)


def setting(
    default: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    longest: int | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field of a policy's settings: a number in [least, most] or (above, most], a tuple of at most `longest` whole
    numbers, or one of the choices. True or false needs no bounds and so not this."""
    return field(default=default, metadata={_BOUNDS: Bounds(least, above, most, longest, choices)})


def bounds_of(one: Field[Any]) -> Bounds:
    found = one.metadata.get(_BOUNDS, Bounds())
    assert isinstance(found, Bounds)
    return found


@dataclass(frozen=True)
class PolicySettings:
    """The public settings of a policy, which both parties and the dealer know.

    Raises ConfigError for values that are out of bounds.

    name: the policy's, see `mpcache policies`. budget: how many tokens a decode step attends to. It is a number of
    tokens (1 or more) or a fraction of the prompt (below 1). A fraction is raised to the least that the policy needs.
    Policies that only evict after the prompt keep so many of its tokens. prefill_budget: how many tokens before it a
    block of the prompt attends to (reading.py); 0: to all of them, exactly.
    """

    name: str
    budget: float = setting(0.125, above=0, most=MOST_TOKENS)
    prefill_budget: int = setting(0, least=0, most=MOST_TOKENS)

    __pydantic_config__: ClassVar[Any] = STRICT

    def __post_init__(self) -> None:
        for reason in self._out_of_bounds() or self.contradictions():
            raise ConfigError(f"cache policy {self.name[:LONGEST_NAME]!r}: {reason}")
        for name, kind in field_types(type(self)).items():  # 40 and 40.0 are equal, and so is their JSON
            if kind is float:
                object.__setattr__(self, name, float(getattr(self, name)))

    def _out_of_bounds(self) -> list[str]:
        if len(self.name) > LONGEST_NAME:
            return [f"no policy has a name of more than {LONGEST_NAME} characters"]
        found = []
        for one in fields(self):
            value = getattr(self, one.name)
            if reason := bounds_of(one).refusal(value):
                found.append(f"{one.name} {reason}, not {str(value)[:40]}")
        if not found and self.budget >= 1 and self.budget % 1 > 0:
            found.append("a budget above 1 is a whole number of tokens")
        return found

    # ------------------------------------------------------------ what settings of a policy change

    def contradictions(self) -> list[str]:
        """Reasons to refuse settings that are each within their bounds, but not together."""
        return []

    def always(self) -> dict[str, int]:
        """What the policy cannot do without, by name, in tokens."""
        return {"new token": 1}

    def layer_pattern(self) -> tuple[int, int]:
        """(offset, period): layers from the offset on repeat what they do with this period: generation/price.py."""
        return 0, 1

    # ------------------------------------------------------------ the budget

    def check_budget(self) -> None:
        """Raises ConfigError if the budget, in tokens, is below what the policy cannot do without."""
        always = self.always()
        if 1 <= self.budget < sum(always.values()):
            parts = " + ".join(f"{count} {name}" for name, count in always.items())
            raise ConfigError(
                f"cache policy {self.name!r}: a budget of {self.budget:g} tokens is below the "
                f"{sum(always.values())} that it needs with these settings ({parts})"
            )

    def budget_tokens(self, prompt_tokens: int) -> int:
        """The budget in tokens; a fraction never gives less than the policy needs."""
        if self.budget >= 1:
            return int(self.budget)
        return max(math.ceil(self.budget * prompt_tokens), sum(self.always().values()))


@dataclass(frozen=True)
class SinkSettings(PolicySettings):
    """sinks: first tokens, recent: last tokens, both always kept and attended to."""

    sinks: int = setting(4, least=0, most=MOST_TOKENS)
    recent: int = setting(16, least=1, most=MOST_TOKENS)

    def always(self) -> dict[str, int]:
        return {"sinks": self.sinks, "recent": self.recent}
