import pytest

from mpcache.benchmarks.cases.ablations import ABLATIONS, compared_policies
from mpcache.policies import available_policies, policy_settings
from mpcache.protocols.errors import ConfigError


def test_every_policy_and_every_ablation_can_be_named() -> None:
    assert [c.settings.name for c in compared_policies("all")] == list(available_policies())
    assert [c.label for c in compared_policies("ablations")] == ["mpcache", *ABLATIONS, "mpcache-paper"]
    for label, spelling in ABLATIONS.items():
        (ablated,) = compared_policies(label)
        assert ablated.settings == policy_settings(spelling) != policy_settings("mpcache")
    assert compared_policies("full,full") == compared_policies("full")


def test_settings_follow_the_name() -> None:
    (policy,) = compared_policies("mpcache:keep_ratio=1:clusters=8+4:per_head=true")
    settings = policy.settings
    assert (settings.keep_ratio, settings.clusters, settings.per_head) == (1.0, (8, 4), True)
    assert policy.with_budget(0.25).settings.budget == 0.25
    (half,) = compared_policies("mpcache-half:recent=8")
    assert half.label == "mpcache-half:recent=8"
    assert half.settings == policy_settings("mpcache", keep_ratio=0.5, most_kept=7, recent=8)
    (static,) = compared_policies("mpcache:clusters=")
    assert static.settings.clusters == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one policy"),
        ("mpcash", "did you mean 'mpcache'"),
        ("mpcache-hall", "did you mean 'mpcache-half'"),
        ("mpcache:keep_ratio", "write key=value"),
        ("mpcache:keep_ratio=half", "not a number"),
        ("mpcache:keep=1", "unknown setting"),
    ],
)
def test_mistakes_are_refused_in_words(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compared_policies(text)
