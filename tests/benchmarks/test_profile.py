"""What kind of work a process's CPU seconds went to."""

import importlib
import json
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from mpcache.benchmarks.cases.profile import PROFILED, Profiled, profile_cases, spent_rows, usage_rows
from mpcache.benchmarks.measure import kinds, profiler
from mpcache.benchmarks.measure.kinds import KINDS, OUTSIDE, Work, all_work
from mpcache.benchmarks.measure.processes import ProcessPool
from mpcache.benchmarks.measure.profiler import profiled
from mpcache.benchmarks.measure.runner import run_cases
from mpcache.benchmarks.measure.usage import Used, used_so_far
from mpcache.benchmarks.records.store import Records
from mpcache.benchmarks.run.commands import bench
from mpcache.protocols import linear, products
from mpcache.protocols.errors import ConfigError
from mpcache.protocols.local import run_shared
from mpcache.protocols.ring import encode
from mpcache.protocols.softmax import softmax


def found(work: Work) -> Any:
    owner: Any = importlib.import_module(work.module)
    for name in work.function.split("."):
        owner = getattr(owner, name)
    return owner


def test_every_function_of_the_table_is_there_and_of_a_known_kind() -> None:
    for work in all_work():
        assert callable(found(work)), work
        assert not isinstance(work.kind, str) or work.kind in KINDS


def test_functions_are_measured_wherever_they_were_imported_to_and_as_before_afterwards() -> None:
    before = [found(work) for work in all_work()]
    with profiled():
        assert linear.times_rows is products.times_rows is not before[all_work().index(_work("times_rows"))]
        assert all(found(work) is not original for work, original in zip(all_work(), before, strict=True))
    assert [found(work) for work in all_work()] == before and linear.times_rows is products.times_rows


def _work(function: str) -> Work:
    return next(work for work in all_work() if work.function == function)


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(1_000))


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`outer` does 0.1 s of one kind and, for a part, 0.3 s of another."""
    module = ModuleType("example")
    vars(module)["burn"] = burn
    exec("def inner(part): burn(0.3)\ndef outer(): burn(0.05); inner('rank'); burn(0.05)", vars(module))
    monkeypatch.setitem(sys.modules, "example", module)
    table = (
        Work("example", "outer", kinds.ARITHMETIC),
        Work("example", "inner", kinds.PRODUCTS, lambda arguments, named: arguments[0]),
    )
    monkeypatch.setattr(profiler, "all_work", lambda: table)
    return module


def test_time_goes_to_the_innermost_function_and_all_together_is_the_processs(example: ModuleType) -> None:
    with profiled() as running:
        before, begun = used_so_far(running), time.process_time()
        example.outer()
        unmeasured = threading.Thread(target=burn, args=(0.2,))
        unmeasured.start(), unmeasured.join()
        used, spent = used_so_far(running) - before, time.process_time() - begun
    assert used.kinds[kinds.ARITHMETIC][OUTSIDE] == pytest.approx(0.1, abs=0.05)
    assert used.kinds[kinds.PRODUCTS]["rank"] == pytest.approx(0.3, abs=0.05)
    assert used.kinds[kinds.GRPC][OUTSIDE] == pytest.approx(spent - 0.4, abs=0.05) and spent > 0.6
    seconds = [seconds for by_part in used.kinds.values() for seconds in by_part.values()]
    assert sum(seconds) == pytest.approx(spent, abs=0.02)
    assert used.user_seconds + used.system_seconds == pytest.approx(spent, abs=0.05)


def test_a_protocol_between_two_parties_is_told_apart() -> None:
    with profiled() as running:
        run_shared(softmax, encode(torch.linspace(-4, 4, 400).reshape(4, 100)))
        used = used_so_far(running)
    assert {kinds.RANDOMNESS, kinds.TABLES, kinds.PACKING, kinds.ARITHMETIC, kinds.PYTHON} <= set(used.kinds)
    assert {"softmax", "maximum", "reciprocal"} <= {part for by_part in used.kinds.values() for part in by_part}
    assert used.kinds[kinds.TABLES]["softmax"] > 0 and json.dumps(used.kinds)


def test_no_profiler_unless_it_is_wanted() -> None:
    before = products.times_rows
    with profiled(False) as running:
        assert running is None and products.times_rows is before
    assert used_so_far(running).kinds == {}


def test_what_was_used_is_a_difference() -> None:
    before, after = Used(1.0, 0.5, 10, {"tables": {"rank": 1.0}}), Used(1.5, 0.75, 30, {"tables": {"rank": 1.25}})
    assert after - before == Used(0.5, 0.25, 20, {"tables": {"rank": 0.25}})
    assert after - Used(0.0, 0.0, 0) == after


@pytest.mark.slow
def test_three_processes_are_profiled(tmp_path: Path) -> None:
    pool, wanted = ProcessPool(), [Profiled("decode", 1, 60, "full"), Profiled("prefill", 1, 60, "full")]
    try:
        records = run_cases(profile_cases("tiny", wanted, 5, pool), Records())
    finally:
        pool.close()
    assert [r.get("error") for r in records] == [None, None]
    for record in records:
        assert record["online_bytes"] > 0 and record["rounds"] > 0
        for role, used in record["processes"].items():
            spent = used["user_seconds"] + used["system_seconds"]
            assert sum(used["kinds"].values()) == pytest.approx(spent, rel=0.1, abs=0.02), role
            if role != "dealer":  # which plans so few steps at once, and deals them after the last was planned
                assert used["kinds"][kinds.RANDOMNESS] > 0 and used["kinds"][kinds.GRPC] > 0
            assert used["faults"] >= 0 and record["peak_memory_bytes"][role] > 0
    assert len(usage_rows(records)) == 6
    assert {row[0] for row in spent_rows(records[1], "kinds")} <= set(KINDS)


def test_the_command_profiles_a_step_and_a_prefill_or_one_of_them() -> None:
    assert {what.kind for what in PROFILED} == {"decode", "prefill"}
    runner = CliRunner()
    assert "page faults" in runner.invoke(bench, ["profile", "--help"]).output
    assert runner.invoke(bench, ["profile", "--only", "memory"]).exit_code == 2
    assert isinstance(runner.invoke(bench, ["profile", "--shape", "gpt9"]).exception, ConfigError)
