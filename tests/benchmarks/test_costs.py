"""The cost benchmarks, on a shape that is small enough for a test, over real processes."""

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from mpcache.benchmarks.cases.ablations import compared_policies
from mpcache.benchmarks.cases.decode import WARM_UP, Workload, decode_cases
from mpcache.benchmarks.cases.networks import MESSAGE_SECONDS, bound_seconds, model_seconds
from mpcache.benchmarks.cases.ops import OPERATIONS
from mpcache.benchmarks.cases.prefill import prefill_cases
from mpcache.benchmarks.measure.delay import DelayedChannel
from mpcache.benchmarks.measure.processes import ProcessPool
from mpcache.benchmarks.measure.program import Program
from mpcache.benchmarks.measure.runner import run_cases
from mpcache.benchmarks.records.record import Record
from mpcache.benchmarks.records.store import Records
from mpcache.benchmarks.run.commands import bench
from mpcache.generation.loop import Program as AnyProgram
from mpcache.generation.network import Network
from mpcache.generation.plan import plan_parts
from mpcache.policies import available_policies, spelled
from mpcache.protocols.errors import ConfigError
from mpcache.protocols.session import Cost
from mpcache.protocols.transport import channel_pair
from tests.asking import asked
from tests.mpcache.policies.matrix import fitting

FEW = dict(budget=24, sinks=2, recent=8, page=4, clusters=(8, 4), window=8, cluster=2, called=1)
TOKENS = 60


def planned(workload: Workload, settings: Record, program: AnyProgram, steps: int) -> list[Cost]:
    setup = workload.setup(TOKENS)
    (policy,) = compared_policies(settings["label"])
    request = asked(TOKENS, steps, policy=policy.settings)
    return [part.cost() for part in plan_parts(setup.config, request, program)]


def test_every_policys_step_costs_what_its_plan_says() -> None:
    workload, pool = Workload("tiny", 2, Program("decode")), ProcessPool()
    compared = compared_policies(",".join(spelled(fitting(name, **FEW)) for name in available_policies()))
    try:
        cases = decode_cases(workload, [TOKENS], compared, ["mpc"], 1, pool)
        records = run_cases(cases, Records())
    finally:
        pool.close()
    assert [r.get("error") for r in records] == [None] * len(records)
    for record in records:
        _, eviction, *steps = planned(workload, record["settings"], Program("decode"), WARM_UP + 1)
        measured = (record["online_bytes"], record["correlation_bytes"], record["rounds"])
        assert measured == (steps[-1].online_bytes, steps[-1].correction_bytes, steps[-1].rounds)
        assert record["eviction"]["online_bytes"] == eviction.online_bytes
        assert sum(part["online_bytes"] for part in record["parts"].values()) == record["online_bytes"]
        assert set(record["cpu_seconds_by_process"]) == {"owner", "client", "dealer"}
        assert all(record["cpu_seconds_by_process"].values())


def test_a_prefill_and_a_head_on_a_slower_network() -> None:
    network = Network("slow", 0.004, 1e8)
    pool = ProcessPool()
    try:
        prompt = Workload("tiny", 1, Program("prefill", embedding=True, head=True), network)
        step = Workload("tiny", 1, Program("decode", head=True), network)
        full = compared_policies("full")
        cases = prefill_cases(prompt, [TOKENS], full, ["mpc", "plain"], pool, 2)
        cases += decode_cases(step, [TOKENS], full, ["mpc"], 2, pool, "network")
        private, plain, slow = run_cases(cases, Records())
    finally:
        pool.close()
    assert len(private["all_seconds"]) == 2 and private["seconds"] in private["all_seconds"]
    assert private["rounds"] > 0 and private["parts"]["head"]["rounds"] > 0 and plain["online_bytes"] == 0
    terms = model_seconds(slow)
    assert terms["latency"] == pytest.approx(slow["rounds"] * (0.004 / 2 + MESSAGE_SECONDS))
    assert bound_seconds(slow) > terms["latency"]
    assert slow["parts"]["head"]["rounds"] > 0
    two_way = slow["rounds"] - 4 - 1  # the linear layers' and the head's messages go one way
    assert slow["seconds"] > two_way * 0.004 / 2


def test_a_process_that_fails_is_recorded_with_its_reason() -> None:
    pool = ProcessPool()
    workload = Workload("tiny", 1, Program("decode"))
    try:
        cases = decode_cases(workload, [TOKENS], compared_policies("full"), ["mpc"], 10_000, pool)
        cases += decode_cases(workload, [TOKENS], compared_policies("full"), ["mpc"], 1, pool)
        failed, done = run_cases(cases, Records())
    finally:
        pool.close()
    assert failed["status"] == "failed" and "new tokens" in failed["error"]
    assert done["status"] == "done"


def test_a_delayed_message_arrives_no_earlier_than_the_network_lets_it() -> None:
    network = Network("slow", 0.02, 1e6)
    a, b = (DelayedChannel(channel, network) for channel in channel_pair())
    begun = time.monotonic()
    a.send(bytes(10_000))
    a.send(b"later")
    assert bytes(b.receive(10_000)) == bytes(10_000)
    assert time.monotonic() - begun >= 0.02
    assert bytes(b.receive(5)) == b"later"


@pytest.mark.parametrize("name", ["multiply 100,000", "linear 768 to 3,072", "compact 1,024 to 512 rows of 128"])
def test_an_operation_tells_its_cost(name: str) -> None:
    cost = OPERATIONS[name].run()
    assert cost.online_bytes > 0 and cost.correction_bytes > 0 and cost.rounds > 0


def test_the_command_prints_and_writes_and_refuses_in_words(tmp_path: Path) -> None:
    runner = CliRunner()
    arguments = ["decode", "--shape", "tiny", "--tokens", str(TOKENS), "--policy", "full", "--repeat", "1"]
    result = runner.invoke(bench, [*arguments, "--json", str(tmp_path / "records.json")])
    assert result.exit_code == 0 and "A decode step" in result.output
    (record,) = json.loads((tmp_path / "records.json").read_text())
    wanted = {"policy", "tokens", "seconds", "cpu_seconds", "online_bytes", "correlation_bytes", "rounds", "parts"}
    assert wanted <= set(record)
    for change in (["--tokens", "many"], ["--backend", "magic"], ["--network", "moon"], ["--shape", "gpt9"]):
        assert isinstance(runner.invoke(bench, [*arguments, *change]).exception, ConfigError)
