"""Each role's TOML file: every key, its type and its default. Samples with comments: docs/config/."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mpcache.generation.backends import PRIVATE_BACKENDS
from mpcache.generation.batch import MOST_PROMPTS
from mpcache.generation.network import LOOPBACK, parse_network
from mpcache.generation.request import AUTOMATIC
from mpcache.parties.tls import DEFAULT_TIMEOUT
from mpcache.policies import PolicySettings, check_policy, policy_class, policy_from_table, policy_settings
from mpcache.policies.blocks import LARGEST_BLOCK
from mpcache.protocols.errors import ConfigError
from mpcache.suggest import suggestion
from mpcache.typed_fields import field_types, typed_fields

DEFAULT_POLICY = policy_settings()
MAY_BE_ZERO = ("temperature", "prefill_block", "draft", "max_passes")


@dataclass(frozen=True)
class RoleSettings:
    """What every role has. Numbers are above zero and finite; those in MAY_BE_ZERO may be zero."""

    def __post_init__(self) -> None:
        for name, kind in field_types(type(self)).items():
            value = getattr(self, name)
            if kind in (int, float) and not (0 < value < math.inf or (value == 0 and name in MAY_BE_ZERO)):
                raise ConfigError(f"{name} must be above zero and finite, not {value!r}")


S = TypeVar("S", bound=RoleSettings)


@dataclass(frozen=True)
class OwnerSettings(RoleSettings):
    """The model owner. listen: host:port; model: folder; state: where weight-mask keys are kept, and seeds of prepared
    sessions; prepare: whether clients may prepare sessions; prepared_hours: after which unused ones are deleted.

    max_batch: prompts whose generations may share their rounds; each takes the memory of a session.
    max_prefill_block: tokens of a prompt that may go through the model at once, which decide what memory that takes.
    max_step_gib: of one correlation or message. policies: the cache policies that clients may ask for, all that come
    with MPCache if there are none (one of another distribution is loaded for its name here); backends: likewise, of
    'mpc' and 'crypten' (a baseline that does not keep what 'mpc' promises, see docs/threat-model.md).
    """

    listen: str
    dealer: str
    model: Path
    certificates: Path = Path("certificates")
    state: Path = Path("state")
    insecure: bool = False
    prepare: bool = False
    prepared_hours: float = 168.0
    max_prepared_sessions: int = 64
    max_prepared_sessions_per_client: int = 16
    timeout_seconds: float = DEFAULT_TIMEOUT
    hello_seconds: float = 10.0
    planning_seconds: float = 30.0
    drain_seconds: float = 300.0
    max_sessions: int = 4
    max_sessions_per_client: int = 2
    max_prompt_tokens: int = 2048
    max_new_tokens: int = 256
    max_batch: int = MOST_PROMPTS
    max_prefill_block: int = LARGEST_BLOCK
    max_step_gib: float = 2.0
    policies: tuple[str, ...] = ()
    backends: tuple[str, ...] = ("mpc",)

    def __post_init__(self) -> None:
        super().__post_init__()
        _know_policies(self.policies)
        _check_backends(self.backends)


@dataclass(frozen=True)
class ClientSettings(RoleSettings):
    """The data owner. tokenizer: folder with tokenizer.json, and what says which tokens end an answer; state: for
    masked weights, and seeds of prepared sessions; model_digest: accept this model alone; policy: 'name:key=value', or
    a table of settings (mpcache policies); network: what protocols are chosen for; prefill_block: tokens of the prompt
    that go through the model at once, 0 for a number that follows from the network; max_model_gib: of masked weights
    and cache that are accepted; max_step_gib: of one correlation or message; fixed_length: generate max_new_tokens,
    whatever they are, so that the answer's length says nothing; draft, max_passes: tokens that a pass tries ahead, and
    how many passes there are at most (0: as many as may be needed)."""

    owner: str
    dealer: str
    tokenizer: Path
    certificates: Path = Path("certificates")
    state: Path = Path("state")
    insecure: bool = False
    prepared_hours: float = 168.0
    timeout_seconds: float = DEFAULT_TIMEOUT
    max_new_tokens: int = 32
    fixed_length: bool = False
    temperature: float = 0.0
    model_digest: str = ""
    max_model_gib: float = 16.0
    max_step_gib: float = 2.0
    network: str = LOOPBACK.name
    prefill_block: int = AUTOMATIC
    policy: PolicySettings = DEFAULT_POLICY
    draft: int = 0
    max_passes: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_network(self.network)


@dataclass(frozen=True)
class DealerSettings(RoleSettings):
    """The dealer. memory_mib: what it may make ahead, per session; workers: how many processes make it (1: the dealer's
    own); ray: the address of a Ray cluster where they are, and then 1 stands for as many as it has processors;
    max_calls_per_certificate: sessions that one party takes part in or waits for; max_prefill_block: as the owner's;
    max_model_gib: of masks of weights
    and cache, for each session; max_step_gib: of one correlation; policies and backends: as the owner's. state: the
    folder of prepared sessions; prepare: whether they are made and handed over; max_prepared_gib: disk space that they
    may take, in all and for one client's certificate.
    """

    listen: str
    certificates: Path = Path("certificates")
    state: Path = Path("state")
    insecure: bool = False
    prepare: bool = False
    prepared_hours: float = 168.0
    max_prepared_gib: float = 16.0
    max_prepared_gib_per_client: float = 4.0
    timeout_seconds: float = DEFAULT_TIMEOUT
    hello_seconds: float = 10.0
    planning_seconds: float = 30.0
    drain_seconds: float = 300.0
    memory_mib: int = 128
    workers: int = 1
    ray: str = ""
    max_sessions: int = 16
    max_calls_per_certificate: int = 16
    max_prompt_tokens: int = 4096
    max_new_tokens: int = 1024
    max_prefill_block: int = LARGEST_BLOCK
    max_model_gib: float = 16.0
    max_step_gib: float = 2.0
    policies: tuple[str, ...] = ()
    backends: tuple[str, ...] = ("mpc",)

    def __post_init__(self) -> None:
        super().__post_init__()
        _know_policies(self.policies)
        _check_backends(self.backends)


def _know_policies(names: tuple[str, ...]) -> None:
    """Raises ConfigError. From now on a peer may name them."""
    for name in names:
        policy_class(name)


def _check_backends(names: tuple[str, ...]) -> None:
    for name in names:
        if name not in PRIVATE_BACKENDS:
            raise ConfigError(f"unknown backend {name[:40]!r} ({suggestion(name[:40], PRIVATE_BACKENDS)})")
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
    defaults = {f.name: f.default for f in dataclasses.fields(kind) if isinstance(f.default, Path)}
    try:
        values = typed_fields(kind, {**defaults, **raw}, _READERS)
        return kind(**{name: path.parent / v if isinstance(v, Path) else v for name, v in values.items()})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


_READERS = {PolicySettings: lambda raw: check_policy(policy_from_table(raw))}
