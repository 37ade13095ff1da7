"""Settings: what contradicts itself is refused with its reason; TOML, JSON and spellings carry them unchanged."""

import json
import tomllib
from dataclasses import asdict, dataclass, fields, replace

import pytest

from mpcache.policies import (
    PRESETS,
    LabelledPolicy,
    PolicySettings,
    SinkSettings,
    available_policies,
    check_policy,
    parse_policies,
    policy_class,
    policy_from_table,
    policy_settings,
    spelled,
)
from mpcache.policies.clusters import PageSettings
from mpcache.policies.full import Full
from mpcache.policies.mpcache import MPCacheSettings
from mpcache.policies.random import RandomSettings
from mpcache.policies.registry import register_policy
from mpcache.policies.settings import MOST_LAYERS, MOST_TOKENS
from mpcache.protocols.errors import ConfigError, HandshakeError
from mpcache.wire import to_wire
from tests.mpcache.policies.matrix import SETTINGS
from tests.mpcache.policies.received import received


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("mpcache", {"budget": 0}, "budget must be above 0 and at most 1,048,576, not 0"),
        ("mpcache", {"budget": float("inf")}, "budget must be above 0"),
        ("mpcache", {"budget": -0.1}, "budget must be above 0"),
        ("mpcache", {"budget": float("nan")}, "budget must be above 0"),
        ("mpcache", {"budget": 70.5}, "a whole number of tokens"),
        ("mpcache", {"recent": 0}, "recent must be at least 1"),
        ("quest", {"page": 0}, "page must be at least 1"),
        ("quest", {"picks": -1}, "picks must be at least 0"),
        ("snapkv", {"kernel": 0}, "kernel must be at least 1"),
        ("mpcache", {"share_layers": 0}, "share_layers must be at least 1"),
        ("mpcache", {"sinks": -1}, "sinks must be at least 0"),
        ("mpcache", {"skip_layers": -1}, "skip_layers must be at least 0"),
        ("mpcache", {"unshared_layers": -1}, "unshared_layers must be at least 0"),
        ("mpcache", {"keep_ratio": 0.0}, "keep_ratio must be above 0 and at most 1"),
        ("mpcache", {"keep_ratio": 1.5}, "keep_ratio must be above 0 and at most 1"),
        ("mpcache", {"most_kept": 0.5}, "most_kept must be at least 1"),
        ("mpcache", {"observed_share": 1.5}, "at least 0 and at most 1"),
        ("mpcache", {"clusters": (0,)}, "clusters must be at least 1"),
        ("mpcache", {"clusters": (10**30,)}, "clusters must be .* at most 1,048,576"),
        ("mpcache", {"clusters": (4, 0)}, "clusters must be at least 1"),
        ("mpcache", {"clusters": (24, 16)}, r"whole clusters of the next: not \[\(24, 16\)\]"),
        ("mpcache", {"clusters": (16, 32)}, "whole clusters of the next"),
        ("mpcache", {"clusters": (16, 16)}, "whole clusters of the next"),
        ("mpcache", {"clusters": (1,) * 9}, "clusters must have at most 8 items"),
        ("recall", {"called": 3}, "called is a power of two: not 3"),
        ("recall", {"cluster": 0}, "cluster must be at least 1"),
        ("mpcache", {"widening": 0.5}, "widening must be at least 1"),
        ("mpcache", {"representative": "median"}, "representative must be one of extremes, mean, not median"),
        ("mpcache", {"alpha": 1.1}, "alpha must be at least 0 and at most 1"),
        ("snapkv", {"kernel": 4}, "an odd number of tokens"),
        ("infllm", {"page": 2}, "no more representatives than tokens"),
        ("random", {"seed": -1}, "seed must be at least 0"),
        ("x" * 65, {}, "no policy has a name of more than 64 characters"),
    ],
    ids=str,
)
def test_a_contradiction_is_refused_with_its_reason(name: str, changes: dict[str, object], reason: str) -> None:
    settings = policy_settings(name) if name in available_policies() else PolicySettings("full")
    with pytest.raises(ConfigError, match=reason):
        replace(settings, **{"name": name, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "setting", "most"),
    [
        ("full", "budget", MOST_TOKENS),
        ("streaming", "sinks", MOST_TOKENS),
        ("streaming", "recent", MOST_TOKENS),
        ("snapkv", "window", MOST_TOKENS),
        ("snapkv", "kernel", 255),
        ("quest", "page", MOST_TOKENS),
        ("infllm", "representatives", MOST_TOKENS),
        ("infllm", "window", MOST_TOKENS),
        ("mpcache", "window", MOST_TOKENS),
        ("mpcache", "picks", MOST_TOKENS),
        ("mpcache", "most_kept", 1024),
        ("mpcache", "widening", 1024),
        ("mpcache", "share_layers", MOST_LAYERS),
        ("mpcache", "unshared_layers", MOST_LAYERS),
        ("mpcache", "skip_layers", MOST_LAYERS),
        ("recall", "called", 64),
        ("random", "seed", 1 << 63),
    ],
)
def test_what_a_peer_may_choose_has_an_upper_bound(name: str, setting: str, most: int) -> None:
    settings = policy_settings(name, **({"page": most} if setting == "representatives" else {}))
    replace(settings, **{setting: most})  # type: ignore[arg-type]
    raw = {**asdict(settings), setting: 2 * most}
    with pytest.raises(ConfigError, match=f"{setting} must be .* and at most {most:,}, not"):
        received(json.dumps(raw))


def test_every_setting_of_every_policy_has_bounds() -> None:
    """What `register_policy` asks of a policy holds of ours: none can be registered with a setting of any size."""

    @dataclass(frozen=True)
    class Unbounded(SinkSettings):
        name: str = "unbounded"
        pages: int = 3

    class Policy(Full):
        name = "unbounded"
        settings_class = Unbounded

    with pytest.raises(ConfigError, match=r"its setting 'pages' needs bounds.*setting\(default, least="):
        register_policy(Policy)


NUMBERS = [
    (name, one.name)
    for name in available_policies()
    for one in fields(policy_settings(name))
    if str(one.type) in ("int", "float")
]


@pytest.mark.parametrize(("name", "setting"), NUMBERS)
def test_every_number_of_the_settings_has_a_bound(name: str, setting: str) -> None:
    """A peer chooses them, and they are looped over."""
    with pytest.raises(ConfigError, match=setting):
        replace(policy_settings(name), **{setting: 10**30 + 1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            SinkSettings("streaming", budget=19),
            r"below the 20 that it needs with these settings \(4 sinks \+ 16 recent\)",
        ),
        (policy_settings("snapkv", budget=10), "below the 20"),
        (policy_settings("keydiff", budget=10), "below the 20"),
        (policy_settings("h2o", budget=1), "below the 2 .*heavy hitter"),
        (
            MPCacheSettings(budget=26),
            r"below the 27 .*4 sinks \+ 16 recent \+ 3 waiting to fill a cluster \+ 4 in the picked cluster",
        ),
        (MPCacheSettings(budget=19, clusters=()), "below the 20"),
        (PageSettings("quest", budget=50), "below the 51"),
        (policy_settings("infllm", budget=50), "below the 51"),
        (policy_settings("recall", budget=50), r"below the 51 .*15 waiting to fill clusters \+ 16 called"),
    ],
    ids=lambda value: value.name if isinstance(value, PolicySettings) else "",
)
def test_a_budget_that_the_policy_cannot_keep_is_refused(settings: PolicySettings, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_policy(settings)
    least = sum(settings.always().values())
    check_policy(replace(settings, budget=least))
    assert replace(settings, budget=0.001).budget_tokens(1000) == least, "a fraction is raised instead"


@pytest.mark.parametrize(
    "settings", [PolicySettings("quest"), SinkSettings("quest"), PageSettings("full"), MPCacheSettings(name="quest")]
)
def test_settings_of_another_policy_are_refused(settings: PolicySettings) -> None:
    with pytest.raises(ConfigError, match=rf"made by policy_settings\('{settings.name}'"):
        check_policy(settings)


def test_a_fraction_is_of_the_prompt_and_rounded_up() -> None:
    assert RandomSettings(budget=0.1).budget_tokens(101) == 11
    assert RandomSettings(budget=11).budget_tokens(101) == 11


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_json_toml_and_spelling_carry_every_setting(settings: PolicySettings) -> None:
    assert received(to_wire(settings)) == settings
    assert policy_settings(spelled(settings)) == settings
    lines = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        text = (
            str(value).lower() if isinstance(value, bool) else repr(list(value) if isinstance(value, tuple) else value)
        )
        lines.append(f"{field.name} = {text}\n")
    assert policy_from_table(tomllib.loads("".join(lines))) == settings


def test_a_name_alone_has_the_defaults() -> None:
    assert policy_settings("quest") == PageSettings("quest") == policy_from_table("quest")
    assert policy_from_table({}) == MPCacheSettings() == policy_settings()


def test_a_preset_is_a_policy_with_settings_and_takes_others() -> None:
    later = policy_settings("mpcache-later:budget=0.05")
    assert later == MPCacheSettings(budget=0.05, keep_ratio=1.0)
    assert later == policy_settings("mpcache-later", budget=0.05)
    assert later == policy_from_table({"name": "mpcache-later", "budget": 0.05})
    assert parse_policies("mpcache-later:budget=0.05") == [LabelledPolicy("mpcache-later:budget=0.05", later)]
    paper = policy_settings("mpcache-paper:picks=3")
    assert isinstance(paper, MPCacheSettings)
    assert (paper.clusters, paper.keep_ratio, paper.picks) == ((32, 16), 0.5, 3)
    assert not paper.only_if_cheaper and not paper.evict_if_cheap
    with pytest.raises(ConfigError, match=r"'mpcache-later': 'budget=0.2' is given twice"):
        policy_settings("mpcache-later:budget=0.1:budget=0.2")
    with pytest.raises(ConfigError, match="did you mean 'mpcache-later'"):
        policy_settings("mpcache-latr")
    with pytest.raises(ConfigError, match="did you mean 'mpcache-paper'"):
        parse_policies("mpcache-papr")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_of_a_policy_and_can_be_spelled(name: str) -> None:
    settings = policy_settings(name)
    assert settings == policy_settings(PRESETS[name].policy) == policy_settings(spelled(settings))
    assert name not in available_policies()


def test_a_preset_s_name_is_no_new_policy_s() -> None:
    class Later(Full):
        name = "mpcache-later"

    with pytest.raises(ConfigError, match="there is a cache policy 'mpcache-later' already"):
        register_policy(Later)


def test_a_quarter_survives_but_three_times_the_budget_at_most() -> None:
    assert MPCacheSettings(budget=0.125).kept_tokens(2000) == 500
    assert MPCacheSettings(budget=0.05).kept_tokens(2000) == 300
    assert MPCacheSettings(budget=512).kept_tokens(8192) == 1536
    assert MPCacheSettings(budget=512).kept_tokens(700) == 512
    assert MPCacheSettings(budget=0.05, most_kept=7.0).kept_tokens(2000) == 500
    assert MPCacheSettings(budget=0.5, keep_ratio=0.25).kept_tokens(2000) == 1000, "what a step attends to is kept"
    assert MPCacheSettings(budget=0.5, clusters=()).kept_tokens(2000) == 1000
    assert MPCacheSettings(keep_ratio=1.0).kept_tokens(2000) == 2000


@pytest.mark.parametrize(
    ("picks", "picked", "stripes"),
    [(0, 500, 1), (2, 8, 2), (2, 31, 7), (2, 32, 16), (2, 63, 31), (2, 64, 64), (1, 64, 64), (1, 9, 4), (5, 160, 80)],
)
def test_how_many_stripes_there_are_follows_from_what_is_picked(picks: int, picked: int, stripes: int) -> None:
    """Few are made fewer, as what belongs together must not meet in one; plenty are made more, as that costs less."""
    assert MPCacheSettings(picks=picks).stripes(1000, picked).count == stripes


def test_settings_follow_a_name_or_are_keywords() -> None:
    expected = MPCacheSettings(budget=0.25, clusters=(8, 4), per_head=True)
    assert policy_settings("mpcache:budget=0.25:clusters=8+4:per_head=true") == expected
    assert policy_settings("mpcache:clusters=8+4", budget=0.25, per_head=True) == expected
    assert policy_settings("mpcache:clusters=").sizes() == ()  # type: ignore[attr-defined]
    assert policy_from_table("mpcache:clusters=8+4:budget=0.25:per_head=true") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mpcash", "unknown cache policy 'mpcash' .did you mean 'mpcache'"),
        ("mpcache:keep_ratio", "cache policy 'mpcache': 'keep_ratio' is no setting: write key=value"),
        ("mpcache:keep_ratio=half", "'mpcache': keep_ratio=half: not a number, such as keep_ratio=0.5"),
        ("mpcache:clusters=8x4", "clusters=8x4: not a number, such as clusters=8.4"),
        ("mpcache:per_head=1", "per_head must be true or false"),
        ("mpcache:budget=1:budget=2", "'budget=2' is given twice"),
        ("mpcache:keep=1", "unknown setting 'keep' .known: name, budget"),
        ("mpcache:name=quest", "its name stands before its settings"),
        (
            "quest:clusters=4",
            r"'quest': unknown setting 'clusters' "
            r"\(known: name, budget, prefill_budget, sinks, recent, picks, only_if_cheaper, page\)",
        ),
        ("quest:pages=4", "'quest': unknown setting 'pages' .did you mean 'page'"),
        ("mpcache:clusters=24+16", "whole clusters of the next"),
    ],
)
def test_a_spelling_that_is_wrong_says_what_to_change(text: str, message: str) -> None:
    for parse in (policy_settings, policy_from_table, parse_policies):
        with pytest.raises(ConfigError, match=message):
            parse(text)


def test_equal_settings_have_equal_json() -> None:
    assert to_wire(PageSettings("quest", budget=40)) == to_wire(PageSettings("quest", budget=40.0))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"budgett": 1}, "cache policy 'mpcache': unknown setting 'budgett' .did you mean 'budget'"),
        ({"name": "quest", "clusters": [4]}, "cache policy 'quest': unknown setting 'clusters'"),
        ({"colour": 1}, r"unknown setting 'colour' \(known: name, budget"),
        ({"budget": "many"}, "budget must be a number, not 'many'"),
        ({"budget": True}, "budget must be a number"),
        ({"sinks": 1.5}, "sinks must be a whole number"),
        ({"per_head": 1}, "per_head must be true or false"),
        ({"name": 3}, "name is text in quotes"),
        ({"clusters": 16}, "clusters must be a list of whole numbers"),
        ({"clusters": [16, "4"]}, "clusters must be a list of whole numbers"),
        (["mpcache"], "written as 'name:key=value' or as a table"),
        ({"budget": 0}, "above 0"),
        ({"sinks": 10**400}, "sinks must be"),
        ({"budget": 10**400}, "budget is too large"),
    ],
    ids=str,
)
def test_a_table_that_is_wrong_says_what_to_change(raw: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        policy_from_table(raw)


def test_json_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(HandshakeError, match="cannot be read"):
        received("{")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"name": "magic"}, ConfigError, "unknown cache policy 'magic'"),
        ({"name": "full"}, HandshakeError, "(sinks|page|picks): Unexpected"),
        ({"name": "streaming"}, HandshakeError, "(page|picks): Unexpected keyword argument"),
        ({"name": "infllm"}, HandshakeError, "not every field is there"),
        ({"name": "x" * 10_000}, (ConfigError, HandshakeError), "no policy has a name of more|cannot be read"),
        ({"name": ["quest"]}, HandshakeError, "name: Input should be a valid string"),
        ({"seed": 1}, HandshakeError, "seed: Unexpected keyword argument"),
        ({"sinks": "4"}, HandshakeError, "sinks: Input should be a valid integer"),
        ({"sinks": 4.5}, HandshakeError, "sinks: Input should be"),
        ({"budget": True}, HandshakeError, "budget: Input should be"),
        ({"budget": float("nan")}, HandshakeError, "budget: Input should be a finite number"),
        ({"sinks": -1}, ConfigError, "sinks must be at least 0"),
    ],
    ids=str,
)
def test_what_a_peer_sends_is_read_as_its_policys_settings(
    changes: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        received(json.dumps({**asdict(PageSettings("quest")), **changes}))
    assert len(str(raised.value)) < 300


def test_an_unknown_policy_is_named_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"unknown cache policy 'mpcach' .did you mean 'mpcache'"):
        policy_class("mpcach")
    with pytest.raises(ConfigError, match=r"unknown cache policy 'zzz' \(known: full, h2o"):
        policy_class("zzz")


def test_the_registry_has_every_policy_with_a_summary() -> None:
    assert set(available_policies()) >= {
        "full", "random", "streaming", "h2o", "tova", "snapkv", "keydiff", "quest", "infllm", "mpcache", "recall",
    }  # fmt: skip
    assert all(policy.summary and policy.name == name for name, policy in available_policies().items())
