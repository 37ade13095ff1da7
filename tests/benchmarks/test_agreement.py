from mpcache.benchmarks.cases.ablations import compared_policies
from mpcache.benchmarks.cases.agreement import agreement_cases, agreement_rows
from mpcache.benchmarks.measure.runner import run_cases
from mpcache.benchmarks.records.store import Records
from mpcache.demo import DEMO_MODEL


def test_secure_decoding_answers_as_plaintext_does() -> None:
    policies = compared_policies("full,mpcache:budget=40:sinks=2:recent=8:clusters=8+4")
    records = run_cases(agreement_cases(DEMO_MODEL, ["day-sheet"], [100], policies, 1), Records())
    assert [r.get("error") for r in records] == [None, None]
    assert [r["same"] for r in records] == [1, 1]
    assert [r["ranges"]["passed"] for r in records] == [0, 0]
    assert agreement_rows(records)[0][3:] == ["1 of 1", "1 of 1", "1 of 1", "none"]


def test_a_difference_is_counted_and_named_by_its_document() -> None:
    cases = [
        {"seed": 0, "expected": [1], "plain": [1], "mpc": [1]},
        {"seed": 1, "expected": [1], "plain": [1], "mpc": [2]},
    ]
    record = {"status": "done", "task": "copy", "policy": "full", "tokens": 512, "same": 1, "asked": 2, "cases": cases}
    assert agreement_rows([record]) == [["copy", "full", "512", "1 of 2", "2 of 2", "1 of 2", "1"]]
