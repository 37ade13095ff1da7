import pytest

from mpcache.benchmarks.cases.policies import ABLATIONS, parse_contenders
from mpcache.policies import policies
from mpcache.protocols.errors import ConfigError


def test_every_policy_and_every_ablation_can_be_named() -> None:
    assert [c.settings.name for c in parse_contenders("all")] == list(policies())
    assert [c.label for c in parse_contenders("ablations")] == ["mpcache", *ABLATIONS]
    assert parse_contenders("full,full") == parse_contenders("full")


def test_settings_follow_the_name() -> None:
    (contender,) = parse_contenders("mpcache:keep_ratio=1:clusters=8+4:per_head=true")
    settings = contender.settings
    assert (settings.keep_ratio, settings.clusters, settings.per_head) == (1.0, (8, 4), True)
    assert contender.with_budget(0.25).settings.budget == 0.25
    (static,) = parse_contenders("mpcache:clusters=")
    assert static.settings.clusters == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one policy"),
        ("mpcash", "did you mean 'mpcache'"),
        ("mpcache:keep_ratio", "write key=value"),
        ("mpcache:keep_ratio=half", "not a number"),
        ("mpcache:keep=1", "unknown setting"),
    ],
)
def test_mistakes_are_refused_in_words(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_contenders(text)
