import dataclasses
import tomllib
from pathlib import Path

import pytest

from mpcache.parties.settings import ClientSettings, DealerSettings, OwnerSettings, load_settings
from mpcache.policies import PolicySettings, policy_settings
from mpcache.protocols.errors import ConfigError

SAMPLES = Path(__file__).resolve().parents[2] / "docs" / "config"
CLIENT = 'owner = "127.0.0.1:1"\ndealer = "127.0.0.1:2"\ntokenizer = "model"\n'
DEALER = 'listen = "127.0.0.1:0"\n'


@pytest.mark.parametrize(
    ("name", "kind"), [("owner", OwnerSettings), ("client", ClientSettings), ("dealer", DealerSettings)]
)
def test_the_samples_name_every_key_and_its_default(name: str, kind: type) -> None:
    path = SAMPLES / f"{name}.toml"
    fields = {f.name: f for f in dataclasses.fields(kind)}
    assert list(tomllib.loads(path.read_text())) == list(fields)
    loaded = load_settings(path, kind)
    for key, field in fields.items():
        if field.default is not dataclasses.MISSING:
            expected = SAMPLES / field.default if isinstance(field.default, Path) else field.default
            assert getattr(loaded, key) == expected
    if name == "client":
        table = tomllib.loads(path.read_text())["policy"]
        assert list(table) == [f.name for f in dataclasses.fields(policy_settings())]
    for line in path.read_text().splitlines():
        assert not line or line.startswith("#") or "# required" in line or "# default" in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("listen = [", "not valid TOML"),
        ("", "'listen' is required"),
        (DEALER + "insecur = true", "unknown setting 'insecur' .did you mean 'insecure'"),
        (DEALER + "colour = 1", r"unknown setting 'colour' \(known: listen"),
        (DEALER + 'memory_mib = "256"', "memory_mib must be a whole number"),
        (DEALER + "memory_mib = true", "memory_mib must be a whole number"),
        (DEALER + "memory_mib = 0", "must be above zero"),
        (DEALER + "insecure = 1", "insecure must be true or false"),
        (DEALER + "certificates = 1", "certificates must be a path"),
        ("listen = 7000", "listen must be text in quotes"),
    ],
)
def test_a_bad_file_is_an_error_that_says_what_to_change(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "dealer.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_settings(path, DealerSettings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('policy = "quest"', policy_settings("quest")),
        ("policy.budget = 100", policy_settings(budget=100)),
        ('[policy]\nname = "mpcache"\nclusters = []', policy_settings(clusters=())),
        ('policy = "mpcache:budget=0.25:clusters=8+4"', policy_settings(budget=0.25, clusters=(8, 4))),
        ("", policy_settings()),
    ],
)
def test_a_policy_is_a_spelling_or_a_table(tmp_path: Path, text: str, expected: PolicySettings) -> None:
    path = tmp_path / "client.toml"
    path.write_text(CLIENT + text)
    assert load_settings(path, ClientSettings).policy == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('policy = "mpcach"', "client.toml: unknown cache policy 'mpcach' .did you mean 'mpcache'"),
        ("policy.budgett = 1", "client.toml: cache policy 'mpcache': unknown setting 'budgett' .did you mean 'budget'"),
        ("policy.budget = 26", r"client.toml: cache policy 'mpcache': a budget of 26 tokens is below the 27"),
        ("policy = 7", "client.toml: a cache policy is written as 'name:key=value' or as a table"),
        ('policy = "quest:pages=4"', "client.toml: cache policy 'quest': unknown setting 'pages' .did you mean 'page'"),
    ],
)
def test_a_policy_that_is_wrong_says_what_to_change(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "client.toml"
    path.write_text(CLIENT + text)
    with pytest.raises(ConfigError, match=message):
        load_settings(path, ClientSettings)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        load_settings(tmp_path / "nowhere.toml", DealerSettings)
