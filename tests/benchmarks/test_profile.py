"""Whose work a process's CPU seconds were."""

import json
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from mpcache.benchmarks.cases.profile import PROFILED, Profiled, profile_cases, spent_rows, usage_rows
from mpcache.benchmarks.measure import kinds
from mpcache.benchmarks.measure.kinds import KINDS, OUTSIDE, ROUNDS, Place, kind_of, protocol_of
from mpcache.benchmarks.measure.processes import ProcessPool
from mpcache.benchmarks.measure.profiler import PROFILER, UNSEEN, Profiler, profiled
from mpcache.benchmarks.measure.runner import run_cases
from mpcache.benchmarks.measure.usage import Used, used_so_far
from mpcache.benchmarks.records.store import Records
from mpcache.benchmarks.run.commands import bench
from mpcache.protocols.errors import ConfigError
from mpcache.protocols.linear import LinearMask
from mpcache.protocols.truncation import TruncationMask

P = "mpcache.protocols"
SESSION = (Place(f"{P}.session", "_run"), Place(f"{P}.session", "run"), Place("mpcache.model.decoder", "blocks"))
DRAWING = Place(f"{P}.correlation", "take", LinearMask("w", (4, 4), (1, 4), (1, 4), 48))
DEALING = Place(f"{P}.correlation", "correction", TruncationMask((3,), 48, 16))


@pytest.mark.parametrize(
    ("stack", "kind", "protocol"),
    [
        ([Place(f"{P}.products.limbs", "product"), Place(f"{P}.linear", "linear")], kinds.PRODUCTS, "linear"),
        ([Place(f"{P}.randomness", "raw"), DRAWING, Place(f"{P}.rank", "top_k")], kinds.RANDOMNESS, "linear"),
        ([Place(f"{P}.ring", "unpack"), DRAWING], kinds.PACKING, "linear"),
        ([Place(f"{P}.lookup", "_lookup"), Place(f"{P}.comparison", "sign")], kinds.TABLES, "comparison"),
        ([Place(f"{P}.lookup", "deal"), Place(f"{P}.softmax", "deal"), DEALING], kinds.TABLES, "softmax"),
        ([Place(f"{P}.ring", "shift_right"), Place(f"{P}.truncation", "_known")], kinds.ARITHMETIC, "truncation"),
        ([DEALING, Place("mpcache.parties.dealer", "_deal")], kinds.ARITHMETIC, "truncation"),
        ([Place(f"{P}.ring", "pack"), Place(f"{P}.session", "_round")], kinds.PACKING, ROUNDS),
        ([Place("mpcache.parties.link", "send"), Place(f"{P}.session", "_round")], kinds.GRPC, ROUNDS),
        ([Place("threading", "wait"), Place("grpc._channel", "_next")], kinds.GRPC, OUTSIDE),
        ([Place("mpcache.policies.full", "attend")], kinds.PYTHON, OUTSIDE),
        ([Place("somewhere.else", "work")], kinds.PYTHON, OUTSIDE),
        ([Place(f"{P}.softmax", "softmax"), Place("mpcache.generation.plan", "plan_parts")], kinds.PLANNING, OUTSIDE),
    ],
)
def test_a_stack_is_of_the_kind_and_protocol_of_its_innermost_known_place(
    stack: list[Place], kind: str, protocol: str
) -> None:
    assert kind in KINDS and kind_of([*stack, *SESSION]) == kind and protocol_of([*stack, *SESSION]) == protocol


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(1_000))


def _namespace(module: str) -> dict[str, object]:
    """`burn` as a function of another module."""
    space: dict[str, object] = {"__name__": module, "burn": burn}
    exec("def work(seconds): burn(seconds)", space)
    return space


def test_the_seconds_of_all_kinds_are_the_processs_and_go_to_whose_work_they_were() -> None:
    tables, products = _namespace(f"{P}.lookup")["work"], _namespace(f"{P}.products")["work"]

    def work() -> None:
        for _ in range(30):
            tables(0.02)  # type: ignore[operator]
            products(0.04)  # type: ignore[operator]

    thread = threading.Thread(target=work)
    with profiled() as profiler:
        assert profiler is not None
        before, begun = used_so_far(profiler), time.process_time()
        thread.start()
        while thread.is_alive():
            time.sleep(0.05)
        used, spent = used_so_far(profiler) - before, time.process_time() - begun
    seconds = {kind: sum(by_protocol.values()) for kind, by_protocol in used.kinds.items()}
    assert sum(seconds.values()) == pytest.approx(spent, rel=0.05, abs=0.05)
    assert used.user_seconds + used.system_seconds == pytest.approx(spent, rel=0.05, abs=0.05)
    assert 0.3 < seconds[kinds.TABLES] < 0.9 and 0.8 < seconds[kinds.PRODUCTS] < 1.5
    assert seconds[kinds.PRODUCTS] > seconds[kinds.TABLES]
    assert set(seconds) <= {*KINDS, PROFILER, UNSEEN}


def test_no_profiler_unless_it_is_wanted() -> None:
    threads = threading.active_count()
    with profiled(False) as profiler:
        assert profiler is None and threading.active_count() == threads
    assert used_so_far(profiler).kinds == {}


def test_a_profiler_ends_with_its_block() -> None:
    with profiled():
        assert "profiler" in [thread.name for thread in threading.enumerate()]
    assert "profiler" not in [thread.name for thread in threading.enumerate()]


def test_what_was_used_is_a_difference() -> None:
    before, after = Used(1.0, 0.5, 10, {"tables": {"rank": 1.0}}), Used(1.5, 0.75, 30, {"tables": {"rank": 1.25}})
    assert after - before == Used(0.5, 0.25, 20, {"tables": {"rank": 0.25}})
    assert after - Used(0.0, 0.0, 0) == after


@pytest.mark.slow
def test_three_processes_are_profiled(tmp_path: Path) -> None:
    pool, profiled = ProcessPool(), [Profiled("decode", 1, 60, "full"), Profiled("prefill", 1, 60, "full")]
    try:
        records = run_cases(profile_cases("tiny", profiled, 5, pool), Records())
    finally:
        pool.close()
    assert [r.get("error") for r in records] == [None, None]
    for record in records:
        assert record["online_bytes"] > 0 and record["rounds"] > 0
        for role, used in record["processes"].items():
            spent = used["user_seconds"] + used["system_seconds"]
            assert sum(used["kinds"].values()) == pytest.approx(spent, rel=0.1, abs=0.02), role
            assert used["faults"] >= 0 and record["peak_memory_bytes"][role] > 0
    assert len(usage_rows(records)) == 6
    assert {row[0] for row in spent_rows(records[1], "kinds")} <= set(KINDS)


def test_the_command_profiles_a_step_and_a_prefill_or_one_of_them() -> None:
    assert {what.kind for what in PROFILED} == {"decode", "prefill"}
    runner = CliRunner()
    assert "page faults" in runner.invoke(bench, ["profile", "--help"]).output
    assert runner.invoke(bench, ["profile", "--only", "memory"]).exit_code == 2
    assert isinstance(runner.invoke(bench, ["profile", "--shape", "gpt9"]).exception, ConfigError)


def test_records_are_json() -> None:
    profiler = Profiler().start()
    profiler.stop()
    assert json.dumps(used_so_far(profiler).kinds)
