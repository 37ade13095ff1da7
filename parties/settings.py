"""Each role's TOML file: every key, its type and its default. Samples with comments: docs/config/."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mpcache.generation.backends import PRIVATE_BACKENDS
from mpcache.generation.network import LOOPBACK, parse_network
from mpcache.parties.tls import DEFAULT_TIMEOUT
from mpcache.policies import PolicySettings, check_policy, policy_class, policy_settings
from mpcache.protocols.errors import ConfigError

S = TypeVar("S")
DEFAULT_POLICY = PolicySettings()


@dataclass(frozen=True)
class OwnerSettings:
    """The model owner. listen: host:port; model: folder; state: where weight-mask keys are kept.

    max_step_gib: of one correlation or message. policies: the cache policies that clients may ask for, all if there are
    none; backends: likewise, of 'mpc' and 'crypten' (a baseline that does not keep what 'mpc' promises, see
    docs/threat-model.md).
    """

    listen: str
    dealer: str
    model: Path
    certificates: Path = Path("certificates")
    state: Path = Path("state")
    insecure: bool = False
    timeout_seconds: float = DEFAULT_TIMEOUT
    hello_seconds: float = 10.0
    planning_seconds: float = 30.0
    drain_seconds: float = 300.0
    max_sessions: int = 4
    max_sessions_per_client: int = 2
    max_prompt_tokens: int = 2048
    max_new_tokens: int = 256
    max_step_gib: float = 2.0
    policies: tuple[str, ...] = ()
    backends: tuple[str, ...] = ("mpc",)

    def __post_init__(self) -> None:
        for name in self.policies:
            policy_class(name)
        _check_backends(self.backends)


@dataclass(frozen=True)
class ClientSettings:
    """The data owner. tokenizer: folder with tokenizer.json, and what says which tokens end an answer; model_digest:
    accept this model alone; policy: a name, or a table of settings (mpcache/policies/settings.py); network: what
    protocols are chosen for; max_model_gib: of masked weights and cache that are accepted; max_step_gib: of one
    correlation or message; fixed_length: generate max_new_tokens, whatever they are, so that the answer's length says
    nothing."""

    owner: str
    dealer: str
    tokenizer: Path
    certificates: Path = Path("certificates")
    state: Path = Path("state")
    insecure: bool = False
    timeout_seconds: float = DEFAULT_TIMEOUT
    max_new_tokens: int = 32
    fixed_length: bool = False
    temperature: float = 0.0
    model_digest: str = ""
    max_model_gib: float = 16.0
    max_step_gib: float = 2.0
    network: str = LOOPBACK.name
    policy: PolicySettings = DEFAULT_POLICY

    def __post_init__(self) -> None:
        parse_network(self.network)


@dataclass(frozen=True)
class DealerSettings:
    """The dealer. memory_mib: what it may make ahead, per session; max_calls_per_certificate: sessions that one party
    takes part in or waits for; max_model_gib: of masks of weights and cache, for each session; max_step_gib: of one
    correlation; backends: as the owner's."""

    listen: str
    certificates: Path = Path("certificates")
    insecure: bool = False
    timeout_seconds: float = DEFAULT_TIMEOUT
    hello_seconds: float = 10.0
    planning_seconds: float = 30.0
    drain_seconds: float = 300.0
    memory_mib: int = 128
    max_sessions: int = 16
    max_calls_per_certificate: int = 8
    max_prompt_tokens: int = 4096
    max_new_tokens: int = 1024
    max_model_gib: float = 16.0
    max_step_gib: float = 2.0
    backends: tuple[str, ...] = ("mpc",)

    def __post_init__(self) -> None:
        _check_backends(self.backends)


def _check_backends(names: tuple[str, ...]) -> None:
    for name in names:
        if name not in PRIVATE_BACKENDS:
            raise ConfigError(f"unknown backend {name[:40]!r} (known: {', '.join(PRIVATE_BACKENDS)})")
    if not names:
        raise ConfigError(f"backends names at least one of {', '.join(PRIVATE_BACKENDS)}")


def load_settings(path: Path, kind: type[S]) -> S:
    """Read a TOML file. Relative paths in it are relative to it. Raises ConfigError that says what to change."""
    try:
        raw = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in raw:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, 1)
            hint = f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(fields)})"
            raise ConfigError(f"{path}: unknown key {key!r}{hint}")
    for name, f in fields.items():
        if name not in raw and f.default is dataclasses.MISSING:
            raise ConfigError(f"{path}: the key {name!r} is required")
    defaults = {n: f.default for n, f in fields.items() if f.default is not dataclasses.MISSING}
    values = {n: _typed(path, n, str(fields[n].type), v) for n, v in {**defaults, **raw}.items()}
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _typed(path: Path, name: str, kind: str, value: Any) -> Any:
    if kind == "PolicySettings":
        try:
            return value if isinstance(value, PolicySettings) else check_policy(policy_settings(value))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    if kind == "Path" and isinstance(value, str | Path):
        return path.parent / value
    if kind.startswith("tuple"):
        if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
            return tuple(value)
        raise ConfigError(f"{path}: {name} must be a list of names in quotes, not {value!r}")
    accepted: tuple[type, ...] = {"str": (str,), "bool": (bool,), "int": (int,), "float": (int, float)}.get(kind, ())
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind != "bool"):
        wanted = {"Path": "a path in quotes", "str": "text in quotes", "bool": "true or false"}.get(kind, "a number")
        raise ConfigError(f"{path}: {name} must be {wanted}, not {value!r}")
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and not (0 < value < float("inf") or (value == 0 and name == "temperature"))
    ):
        raise ConfigError(f"{path}: {name} must be above zero and finite, not {value!r}")
    return float(value) if kind == "float" and isinstance(value, int | float) else value
