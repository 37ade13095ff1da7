"""What `mpcache bench all` consists of, without running it."""

from dataclasses import asdict

import pytest

from mpcache.benchmarks.cases.agreement import ANSWERED
from mpcache.benchmarks.cases.quality import QualityOptions
from mpcache.benchmarks.cases.tasks import TASKS
from mpcache.benchmarks.measure.processes import ProcessPool
from mpcache.benchmarks.measure.runner import Case
from mpcache.benchmarks.run.suite import FULL, QUICK, Suite, quality_options, sample, suite_parts
from mpcache.demo import DEMO_MODEL
from mpcache.model.tokenizer import load_tokenizer

SUITES = pytest.mark.parametrize("suite", [FULL, QUICK], ids=["full", "quick"])


def parts(suite: Suite) -> dict[str, list[Case]]:
    return dict(suite_parts(suite, DEMO_MODEL, ProcessPool()))


def policies(options: QualityOptions) -> list[dict[str, object]]:
    """Every policy's settings that the quality part measures."""
    entries = [c.with_budget(budget) for c in options.policies for budget in options.budgets]
    return [asdict(c.settings) for c in [*options.policies[:1], *entries]]


@SUITES
def test_secure_answers_are_sampled_from_the_cases_of_the_quality_part(suite: Suite) -> None:
    options = quality_options(suite, DEMO_MODEL)
    cases = [case.settings for case in sample(suite, DEMO_MODEL)]
    assert cases and options.policies[0].settings.name == "full"
    for settings in cases:
        assert settings["task"] in options.tasks and settings["tokens"] in options.tokens
        assert settings["placement"] in options.placements and settings["documents"] <= options.documents
        assert settings["model"] == options.model.name and settings["policy"] in policies(options)


def test_all_tasks_with_an_answer_are_sampled_and_their_answers_are_short() -> None:
    assert FULL.agreement_tasks == ANSWERED
    tokenizer = load_tokenizer(DEMO_MODEL)
    for name in TASKS:
        (first, *_) = TASKS[name].generate(tokenizer, 512, 0)
        assert (name in ANSWERED) == (first.scored == "exact")
        assert name not in ANSWERED or len(first.turns[0][1]) <= 24


@SUITES
def test_no_two_cases_of_a_run_have_one_record(suite: Suite) -> None:
    settings = [str(case.settings) for cases in parts(suite).values() for case in cases]
    assert len(set(settings)) == len(settings)


def test_the_full_run_has_whole_models_ours_and_spus_side_by_side() -> None:
    made = parts(FULL)
    assert list(made)[-3:] == ["decode, whole model", "peers, whole model", "agreement"]
    for case in [*made["decode, whole model"], *made["prefill"]]:
        settings = case.settings
        assert settings["layers"] == 12 and settings["program"]["head"] and settings["program"]["embedding"]
    (spu,) = made["peers, whole model"]
    assert (spu.settings["system"], spu.settings["what"], spu.settings["tokens"]) == ("spu-aby3", "model", 512)
    assert "decode, whole model" not in parts(QUICK)
