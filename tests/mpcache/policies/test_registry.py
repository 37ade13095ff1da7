"""Policies of others: registered in the process, or offered by a distribution that is installed."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mpcache.parties.settings import DealerSettings
from mpcache.policies import (
    PolicySettings,
    available_policies,
    check_policy,
    policy_class,
    policy_names,
    policy_settings,
    register_policy,
    registry,
    setting,
)
from mpcache.policies.clusters import ClusterSettings
from mpcache.policies.full import Full
from mpcache.protocols.backends.mpc import MpcBackend
from mpcache.protocols.backends.plain import PlainBackend
from mpcache.protocols.errors import ConfigError
from mpcache.protocols.local import run_parties
from mpcache.protocols.ring import RING_BITS, decode
from mpcache.protocols.session import Session
from mpcache.wire import to_wire
from tests.mpcache.policies.driving import attention, random_case
from tests.mpcache.policies.private import sharing
from tests.mpcache.policies.received import received

PLUGIN = '''
from dataclasses import dataclass

from mpcache.policies import Policy, PolicySettings, setting


@dataclass(frozen=True)
class NewestSettings(PolicySettings):
    """first: tokens that stay in front."""

    name: str = "newest"
    first: int = setting(0, least=0, most=1 << 20)

    def always(self) -> dict[str, int]:
        return {"first": self.first, "last": 1}


class Newest(Policy):
    """Keeps the first and the last tokens of the prompt."""

    name = "newest"
    summary = "the first and the last tokens of the prompt"
    mpc_cost = "nothing beyond attention to what is left"
    settings_class = NewestSettings
    settings: NewestSettings

    def evict(self) -> None:
        n, first = self.prompt_tokens, self.settings.first
        for layer in range(self.config.layers):
            self.keep_ranges(layer, (0, first), (max(first, n - self.budget + first), n))
'''
ENTRY_POINTS = """
[mpcache.policies]
newest = newest_tokens:Newest
broken = newest_tokens:Nothing
other = newest_tokens:Newest
mpcache = newest_tokens:Newest
"""


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A distribution on the path that nobody has imported."""
    (tmp_path / "newest_tokens.py").write_text(PLUGIN)
    info = tmp_path / "newest_tokens-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: newest-tokens\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("newest_tokens", None)


@pytest.mark.usefixtures("distribution")
def test_a_policy_of_another_distribution_is_loaded_when_it_is_asked_for() -> None:
    assert "newest" in policy_names() and policy_class("mpcache").__module__ == "mpcache.policies.mpcache"
    assert "newest_tokens" not in sys.modules
    settings = policy_settings("newest:first=2", budget=8)
    assert "newest_tokens" in sys.modules and settings == check_policy(settings)
    assert received(to_wire(settings)) == settings
    with pytest.raises(ConfigError, match="first must be at least 0 and at most 1,048,576"):
        received(json.dumps({"name": "newest", "budget": 8, "first": 1 << 21}))
    with pytest.raises(ConfigError, match="a budget of 2 tokens is below the 3"):
        check_policy(policy_settings("newest:first=2:budget=2"))


@pytest.mark.usefixtures("distribution")
def test_it_runs_in_plaintext_and_privately() -> None:
    case = random_case(policy_settings("newest:first=2", budget=8), 20, 3, layers=2, head_size=32)
    plain = attention(case, PlainBackend())
    for new, step in enumerate(plain):  # values are the positions' unit vectors
        kept = {0, 1, *range(14, 20), *range(20, 21 + new)}
        assert all(set(x.nonzero()[:, 1].tolist()) == kept for x in step)

    def program(session: Session) -> list[torch.Tensor]:
        out = attention(case, MpcBackend(session), sharing(session))
        return [decode(session.run(session.open(torch.stack([x.share for x in step]), RING_BITS))) for step in out]

    private, _ = run_parties(program)
    for ours, theirs in zip(private, plain, strict=True):
        assert (ours - torch.stack(theirs)).abs().max() < 2e-3


@pytest.mark.usefixtures("distribution")
def test_one_that_cannot_be_loaded_is_named_with_its_distribution() -> None:
    with pytest.raises(ConfigError, match=r"'broken' of newest-tokens cannot be used: .*Nothing"):
        policy_class("broken")
    with pytest.raises(ConfigError, match="'other' of newest-tokens calls itself 'newest'"):
        policy_class("other")


@pytest.mark.usefixtures("distribution")
def test_a_name_that_a_peer_sends_loads_nothing() -> None:
    """Neither of another distribution, nor of anything else; a name in a party's own settings does."""
    for name in ("newest", "newest_tokens:Newest", "newest_tokens", "os", "mpcache.policies.full", "../full", ""):
        with pytest.raises(ConfigError, match="unknown cache policy"):
            received(json.dumps({"name": name, "budget": 0.5}))
    assert "newest_tokens" not in sys.modules
    DealerSettings("127.0.0.1:0", policies=("newest",))
    assert received(to_wire(policy_settings("newest", budget=8))).name == "newest"


# ---------------------------------------------------------------- registered here


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(registry, "_asked_for", {})


class Everything(Full):
    name = "everything"


def test_a_registered_policy_is_one_of_all() -> None:
    assert register_policy(Everything) is Everything and register_policy(Everything) is Everything
    assert available_policies()["everything"] is Everything
    assert policy_settings("everything", budget=3) == PolicySettings("everything", 3)
    assert list(available_policies()) == sorted(available_policies())


def test_a_name_that_is_taken_is_refused() -> None:
    register_policy(Everything)
    for taken in ("everything", "full"):
        with pytest.raises(ConfigError, match=f"there is a cache policy '{taken}' already"):
            register_policy(type("Another", (Full,), {"name": taken}))


@dataclass(frozen=True)
class _Text(PolicySettings):
    kind: str = "any"


@dataclass(frozen=True)
class _Long(PolicySettings):
    sizes: tuple[int, ...] = setting((1,), least=1, most=9)


@dataclass(frozen=True)
class _Open(PolicySettings):
    first: int = setting(0, least=0)


class _NoDataclass(PolicySettings):
    pass


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"name": "Has:colons"}, "small letters, digits"),
        ({"name": "x" * 65}, "small letters, digits"),
        ({"name": 3}, "lacks name"),
        ({"settings_class": _Text}, "its setting 'kind' needs bounds"),
        ({"settings_class": _Long}, "its setting 'sizes' needs bounds"),
        ({"settings_class": _Open}, "its setting 'first' needs bounds"),
        ({"settings_class": _NoDataclass}, "_NoDataclass is no @dataclass"),
    ],
    ids=str,
)
def test_a_policy_that_is_not_whole_is_refused(members: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        register_policy(type("Another", (Full,), {"name": "another", **members}))


def test_a_policy_that_does_not_say_what_leaves_the_cache_is_refused() -> None:
    members = {"name": "another", "summary": "", "mpc_cost": ""}
    with pytest.raises(ConfigError, match="lacks evict"):
        register_policy(type("Another", (registry.Policy,), members))


def test_settings_that_do_not_say_how_large_clusters_are_are_refused() -> None:
    @dataclass(frozen=True)
    class Unsized(ClusterSettings):
        name: str = "unsized"

    class Selecting(Full):
        name = "unsized"
        settings_class = Unsized

    with pytest.raises(ConfigError, match=r"'unsized': .*Unsized lacks sizes"):
        register_policy(Selecting)
