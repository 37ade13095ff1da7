"""Whole generations as a benchmark, with a prompt that is short enough for a test."""

from pathlib import Path

import pytest

from mpcache.benchmarks.cases import generation
from mpcache.benchmarks.cases.ablations import compared_policies
from mpcache.benchmarks.cases.generation import PROMPT, generation_cases, generation_rows, prompt_tokens
from mpcache.benchmarks.measure.runner import run_cases
from mpcache.benchmarks.records.store import Records
from mpcache.demo import DEMO_MODEL
from mpcache.generation.plan import phase_costs
from mpcache.model.checkpoint import load_checkpoint
from tests.asking import asked
from tests.benchmarks.test_report import generated


def test_a_generation_costs_what_its_plan_says_and_answers_as_plaintext_does(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = prompt_tokens(DEMO_MODEL)[-80:]
    monkeypatch.setattr(generation, "prompt_tokens", lambda model: prompt)
    (policy,) = compared_policies("mpcache:budget=40:sinks=2:recent=8")
    (record,) = run_cases(generation_cases(DEMO_MODEL, [policy], 2, 2), Records())
    assert record["status"] == "done", record.get("error")
    assert record["same"] and record["answer"] == record["plain_answer"]
    assert record["ranges"]["passed"] == 0 and {p["layer"] for p in record["ranges"]["places"]} >= {0, 1, 2, 3}
    config = load_checkpoint(DEMO_MODEL).config
    planned = phase_costs(config, asked(len(prompt), record["new_tokens"], policy=policy.settings))
    for phase, cost in zip(("prefill", "token"), planned, strict=True):
        figures = record[phase]
        assert figures["correlation_bytes"] == cost.correction_bytes
        # the client's word whether to go on is a message that the last token needs not
        assert abs(figures["online_bytes"] - cost.online_bytes) <= 1 and abs(figures["rounds"] - cost.rounds) <= 1
    assert record["first_token_seconds"] > record["prefill"]["all_seconds"][0]
    assert len(record["prefill"]["all_seconds"]) == len(record["token"]["all_seconds"]) == 2
    assert set(record) - {"contains"} >= {"waited_for_dealer_seconds", "peak_memory_bytes"} <= set(record["contains"])
    assert set(record["peak_memory_bytes"]) in ({"owner", "client", "dealer"}, {"client"})
    assert [row[2] for row in generation_rows([record])] == ["prefill", "a token"]


def test_a_failed_generation_is_a_record_with_its_reason(tmp_path: Path) -> None:
    (record,) = run_cases(generation_cases(tmp_path, compared_policies("full"), 1, 1), Records())
    assert record["status"] == "failed" and str(tmp_path) in record["error"]
    assert generation_rows([record]) == [] and record["settings"]["prompt"] == PROMPT


def test_memory_that_the_system_did_not_tell_is_left_blank() -> None:
    record = {**generated("full", 6.0), "peak_memory_bytes": {"client": 3 << 20, "owner": None}}
    first, _ = generation_rows([record])
    assert first[-4:-1] == ["", "3", ""]
