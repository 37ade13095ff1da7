"""Peers: every case gives a record, whether it was measured, failed or is absent, and no process is left behind."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mpcache.benchmarks.peers import processes, spu_peer
from mpcache.benchmarks.peers.__main__ import main
from mpcache.benchmarks.peers.case import BUDGET, Case, cases, selection_layout
from mpcache.benchmarks.peers.crypten_roles import plans
from mpcache.benchmarks.peers.processes import CaseFailed, run_together
from mpcache.benchmarks.peers.systems import measure_case
from mpcache.model.config import ModelConfig
from mpcache.policies import policy_class
from mpcache.policies.clusters import ClusterPolicy
from mpcache.policies.mpcache import MPCacheSettings
from mpcache.protocols.backends.plain import PlainBackend
from mpcache.protocols.errors import ConfigError, MpcacheError

SMALL = Case("block", 40, repeat=2, limit_seconds=600, hidden=32, heads=2, intermediate=48, vocabulary=50, layers=2)

needs_spu = pytest.mark.skipif(
    spu_peer.absence(SMALL) is not None, reason="SPU is not installed: benchmarks/peers/spu/environment"
)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen]:
    """The processes that cases start."""
    found: list[subprocess.Popen] = []
    original = subprocess.Popen

    def start(*arguments: object, **options: object) -> subprocess.Popen:
        found.append(original(*arguments, **options))  # type: ignore[call-overload]
        return found[-1]

    monkeypatch.setattr(processes.subprocess, "Popen", start)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "policy", "tokens"),
    [("attention", "full", 40), ("block", "mpcache", 1024), ("selection", "top-k", 512), ("model", "full", 8)],
)
def test_crypten_computes_what_plaintext_does_at_the_planned_cost(
    what: str, policy: str, tokens: int, started: list[subprocess.Popen]
) -> None:
    case = replace(SMALL, what=what, policy=policy, tokens=tokens)
    record = measure_case("crypten", case)
    assert record["status"] == "done", record
    assert record["error"] < 0.1
    planned = plans(case)[1]
    assert record["online_bytes"] == planned.cost().online_bytes
    assert record["correlation_bytes"] == planned.cost().correction_bytes
    assert record["rounds"] == len(planned.messages)
    assert record["messages"] == sum((a > 0) + (b > 0) for a, b in planned.messages)
    assert len(record["all_seconds"]) == case.repeat and record["cpu_seconds"] > 0
    assert len(started) == 3 and all(process.poll() == 0 for process in started)


@needs_spu
@pytest.mark.slow
@pytest.mark.parametrize("protocol", list(spu_peer.PARTIES))
@pytest.mark.parametrize(
    ("what", "policy", "tokens"),
    [("block", "full", 40), ("block", "mpcache", 1024), ("selection", "top-k", 512), ("model", "full", 8)],
)
def test_spu_computes_what_plaintext_does(
    protocol: str, what: str, policy: str, tokens: int, started: list[subprocess.Popen]
) -> None:
    record = measure_case(f"spu-{protocol.lower()}", replace(SMALL, what=what, policy=policy, tokens=tokens))
    assert record["status"] == "done", record
    assert record["error"] < 0.1
    assert record["online_bytes"] > 0 and record["messages"] >= record["messages_per_party"] > 0
    assert record["correlation_bytes"] is None and record["rounds"] is None, "SPU does not tell them"
    assert len(started) == spu_peer.PARTIES[protocol] and all(process.poll() == 0 for process in started)


def test_a_system_that_is_not_installed_is_named_as_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(spu_peer.PYTHON_VARIABLE, str(tmp_path / "python"))
    record = measure_case("spu-aby3", SMALL)
    assert record["status"] == "absent" and "not installed" in record["reason"]
    assert record["seconds"] is None and record["online_bytes"] is None


@pytest.mark.slow
def test_a_case_that_takes_too_long_fails_and_leaves_nothing(started: list[subprocess.Popen]) -> None:
    record = measure_case("crypten", replace(SMALL, limit_seconds=1))
    assert record["status"] == "failed" and "within 1 second" in record["reason"]
    assert len(started) == 3 and all(process.poll() is not None for process in started)


def test_a_process_that_fails_ends_the_others_and_is_quoted(tmp_path: Path, started: list[subprocess.Popen]) -> None:
    waits = [sys.executable, "-c", "import signal; signal.pause()"]
    fails = [sys.executable, "-c", "import sys; print('the reason'); sys.exit(3)"]
    with pytest.raises(CaseFailed, match="second ended with exit status 3: the reason"):
        run_together({"first": waits, "second": fails}, 60, tmp_path, tmp_path)
    assert [process.poll() for process in started] == [-15, 3]


def test_an_spu_without_its_statistics_is_refused() -> None:
    party = {"cpu_seconds": [1.0], "seconds": [1.0], "errors": [0.0], "peak_mib": 1}
    with pytest.raises(CaseFailed, match="no link statistics"):
        spu_peer._figures("SEMI2K", [party, party], ["nothing", "of use"])


@pytest.mark.parametrize("tokens", [512, 1024, 2048, 8192])
@pytest.mark.parametrize("policy", ["mpcache", "top-k"])
def test_a_selection_stays_within_an_eighth_of_the_tokens(policy: str, tokens: int) -> None:
    least = sum(MPCacheSettings().always().values()) if policy == "mpcache" else 0
    layout = selection_layout(policy, tokens)
    candidates, size_before = layout["clustered"], layout["clustered"]
    for size, count in layout["levels"]:
        assert size_before % size == 0 and 0 < count * size < candidates
        candidates, size_before = count * size, size
    outside = layout["cached"] - layout["clustered"]
    assert candidates + outside <= max(tokens / 8, least)


@pytest.mark.parametrize("tokens", [512, 1024, 2048, 8192])
def test_peers_select_as_our_policy_does(tokens: int) -> None:
    config = ModelConfig("gpt2", 2, 32, 48, 1, 2, 2, 16, 2 * tokens, 1e-5, "gelu_tanh")
    settings = MPCacheSettings(budget=BUDGET, only_if_cheaper=False, evict_if_cheap=False)
    policy = policy_class("mpcache")(settings, config, PlainBackend(), tokens)
    assert isinstance(policy, ClusterPolicy)
    keys = torch.zeros(2, tokens, 16)
    policy.preset(0, keys, keys, keys, torch.rand(2, tokens))
    policy.advance(tokens)
    layout = selection_layout("mpcache", tokens)
    (size, count), outside = layout["levels"][-1], layout["cached"] + 1 - layout["clustered"]
    assert policy.picks(layout["cached"] + 1) == layout["levels"]
    assert policy.attended() == count * size + outside


def test_too_few_tokens_to_select_from_are_refused() -> None:
    with pytest.raises(ConfigError, match="nothing can be selected"):
        selection_layout("mpcache", 24)


def test_only_cases_that_exist_are_made_and_the_head_once() -> None:
    made = cases(["block", "selection", "head"], [512, 1024], ["full", "top-k"], 3, 60)
    assert [(c.what, c.policy, c.tokens) for c in made] == [
        ("block", "full", 512),
        ("block", "full", 1024),
        ("selection", "top-k", 512),
        ("selection", "top-k", 1024),
        ("head", "full", 0),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--what", "blok"], "unknown part 'blok'"),
        (["--policy", "h2o"], "unknown policy 'h2o'"),
        (["--what", "selection"], "none of full is a policy of selection"),
        (["--system", "mp-spdz"], "unknown system 'mp-spdz'"),
        (["--tokens", "0"], "at least one token"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_runs(
    options: list[str], message: str, started: list[subprocess.Popen]
) -> None:
    result = CliRunner().invoke(main, options)
    assert isinstance(result.exception, MpcacheError) and message in str(result.exception)
    assert not started


def test_the_command_writes_every_record_the_absent_ones_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(spu_peer.PYTHON_VARIABLE, str(tmp_path / "python"))
    file = tmp_path / "records.json"
    options = ["--what", "selection,attention", "--policy", "mpcache", "--tokens", "1024", "--json", str(file)]
    options += ["--system", "spu-aby3,spu-semi2k"]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0, result.output
    records = json.loads(file.read_text())
    assert [(r["system"], r["protocol"], r["what"], r["status"]) for r in records] == [
        ("spu", "ABY3", "selection", "absent"),
        ("spu", "SEMI2K", "selection", "absent"),
        ("spu", "ABY3", "attention", "absent"),
        ("spu", "SEMI2K", "attention", "absent"),
    ]
    assert result.output.count("absent") == len(records)
