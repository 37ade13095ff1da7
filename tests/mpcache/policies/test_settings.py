"""Settings: what contradicts itself is refused with its reason; TOML and JSON carry them unchanged."""

import tomllib
from dataclasses import fields, replace

import pytest

from mpcache.policies import PolicySettings, policies, policy_class, policy_settings
from mpcache.protocols.errors import ConfigError, HandshakeError
from tests.mpcache.policies.matrix import SETTINGS


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"budget": 0}, "the budget must be above zero and finite, not 0"),
        ({"budget": float("inf")}, "finite"),
        ({"budget": -0.1}, "the budget must be above zero"),
        ({"budget": float("nan")}, "the budget must be above zero"),
        ({"budget": 70.5}, "a whole number of tokens"),
        ({"recent": 0}, "recent must be at least 1"),
        ({"page": 0, "kernel": 0}, "page, kernel must be at least 1"),
        ({"share_layers": 0}, "share_layers must be at least 1"),
        ({"sinks": -1}, "cannot be negative"),
        ({"skip_layers": -1}, "cannot be negative"),
        ({"unshared_layers": -1}, "cannot be negative"),
        ({"keep_ratio": 0.0}, "keep_ratio must be above 0 and at most 1"),
        ({"keep_ratio": 1.5}, "keep_ratio must be above 0 and at most 1"),
        ({"observed_share": 1.5}, "between 0 and 1"),
        ({"clusters": (0,)}, "at least one token"),
        ({"clusters": (24, 16)}, r"whole clusters of the next: not \[\(24, 16\)\]"),
        ({"clusters": (16, 32)}, "whole clusters of the next"),
        ({"clusters": (16, 16)}, "whole clusters of the next"),
        ({"widening": 0.5}, "widening >= 1"),
        ({"representative": "median"}, "'median' is none of extremes, mean"),
        ({"alpha": 1.1}, "alpha lies between 0 and 1"),
        ({"clusters": (10**30,)}, "clusters have at most 1,048,576 tokens"),
        ({"clusters": tuple(2**i for i in range(9))[::-1]}, "at most 8 levels of clusters"),
        ({"name": "x" * 65}, "more than 64 characters"),
        ({"kernel": 4}, "an odd number of tokens"),
        ({"page": 2}, "no more representatives than tokens"),
    ],
    ids=str,
)
def test_a_contradiction_is_refused_with_its_reason(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        replace(PolicySettings(), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [f.name for f in fields(PolicySettings) if str(f.type) in ("int", "float")])
def test_every_number_of_the_settings_has_a_bound(name: str) -> None:
    """A peer chooses them, and they are looped over."""
    with pytest.raises(ConfigError, match=f"(at most: {name} |{name} .* 1)"):
        replace(PolicySettings(page=1 << 20), **{name: 10**30 + 1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            PolicySettings("streaming", budget=19),
            r"below the 20 that it needs with these settings \(4 sinks \+ 16 recent\)",
        ),
        (PolicySettings("snapkv", budget=10), "below the 20"),
        (PolicySettings("keydiff", budget=10), "below the 20"),
        (PolicySettings("h2o", budget=1), "below the 2 .*heavy hitter"),
        (
            PolicySettings("mpcache", budget=26),
            r"below the 27 .*4 sinks \+ 16 recent \+ 3 waiting to fill a cluster \+ 4 in the picked cluster",
        ),
        (PolicySettings("mpcache", budget=19, clusters=()), "below the 20"),
        (PolicySettings("quest", budget=50), "below the 51"),
        (PolicySettings("infllm", budget=50), "below the 51"),
    ],
    ids=lambda value: value.name if isinstance(value, PolicySettings) else "",
)
def test_a_budget_that_the_policy_cannot_keep_is_refused(settings: PolicySettings, reason: str) -> None:
    policy = policy_class(settings.name)
    with pytest.raises(ConfigError, match=reason):
        policy.check(settings)
    least = sum(policy.always(settings).values())
    policy.check(replace(settings, budget=least))
    assert policy.budget_tokens(replace(settings, budget=0.001), 1000) == least, "a fraction is raised instead"


def test_a_fraction_is_of_the_prompt_and_rounded_up() -> None:
    assert policy_class("random").budget_tokens(PolicySettings("random", budget=0.1), 101) == 11
    assert policy_class("random").budget_tokens(PolicySettings("random", budget=11), 101) == 11


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_json_and_toml_carry_every_setting(settings: PolicySettings) -> None:
    assert PolicySettings.from_json(settings.to_json()) == settings
    lines = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        text = (
            str(value).lower() if isinstance(value, bool) else repr(list(value) if isinstance(value, tuple) else value)
        )
        lines.append(f"{field.name} = {text}\n")
    assert policy_settings(tomllib.loads("".join(lines))) == settings


def test_a_name_alone_has_the_defaults() -> None:
    assert policy_settings("quest") == PolicySettings("quest")
    assert policy_settings({}) == PolicySettings()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"budgett": 1}, "unknown setting 'budgett' .did you mean 'budget'"),
        ({"colour": 1}, r"unknown setting 'colour' \(known: name, budget"),
        ({"budget": "many"}, "budget must be a number, not 'many'"),
        ({"budget": True}, "budget must be a number"),
        ({"sinks": 1.5}, "sinks must be a whole number"),
        ({"per_head": 1}, "per_head must be true or false"),
        ({"name": 3}, "name must be text"),
        ({"clusters": 16}, "clusters must be a list of whole numbers"),
        ({"clusters": [16, "4"]}, "clusters must be a list of whole numbers"),
        (["mpcache"], "a name or a table of settings"),
        ({"budget": 0}, "above zero"),
    ],
    ids=str,
)
def test_a_table_that_is_wrong_says_what_to_change(raw: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        policy_settings(raw)


def test_json_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(HandshakeError, match="cannot be read"):
        PolicySettings.from_json("{")


def test_an_unknown_policy_is_named_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"unknown cache policy 'mpcach' .did you mean 'mpcache'"):
        policy_class("mpcach")
    with pytest.raises(ConfigError, match=r"unknown cache policy 'zzz' \(known: full, h2o"):
        policy_class("zzz")


def test_the_registry_has_every_policy_with_a_summary() -> None:
    assert set(policies()) >= {
        "full", "random", "streaming", "h2o", "tova", "snapkv", "keydiff", "quest", "infllm", "mpcache",
    }  # fmt: skip
    assert all(policy.summary and policy.name == name for name, policy in policies().items())
