from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from mpcache.benchmarks.cases.ablations import compared_policies
from mpcache.benchmarks.cases.quality import QualityOptions, quality_tables, run_quality
from mpcache.benchmarks.cases.scoring import Outcome, Score, score
from mpcache.benchmarks.cases.tasks import TASKS
from mpcache.benchmarks.records.store import Records, read_records
from mpcache.demo import DEMO_MODEL
from mpcache.generation.loop import prefill, steps
from mpcache.generation.recorded import record
from mpcache.model.checkpoint import load_checkpoint
from mpcache.model.decoder import Decoder
from mpcache.model.tokenizer import load_tokenizer
from mpcache.parties.workers.pool import InProcess, Pool
from mpcache.parties.workers.processes import LocalProcess
from mpcache.policies import PolicySettings, available_policies, new_cache
from mpcache.protocols.backends.plain import PlainBackend
from mpcache.protocols.errors import PeerLost
from tests.asking import asked
from tests.mpcache.policies.matrix import fitting

TOKENIZER = load_tokenizer(DEMO_MODEL)
SMALL = dict(budget=40, sinks=2, recent=8, page=4, clusters=(8, 4), window=8, cluster=2, called=4)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    checkpoint = load_checkpoint(DEMO_MODEL)
    return Decoder(checkpoint.config, PlainBackend(), checkpoint.tensors)


@pytest.mark.parametrize("name", available_policies())
def test_a_recorded_prefill_gives_every_policy_the_cache_of_its_own(decoder: Decoder, name: str) -> None:
    """Generation goes on from it with the same tokens and logits as after a prefill under the policy."""
    policy = fitting(name, **SMALL)
    ids = TASKS["day-sheet"].generate(TOKENIZER, 150, 0)[0].document
    plan = asked(len(ids), 1, policy=policy)
    own = new_cache(policy, decoder, len(ids))
    for _ in prefill(decoder, plan, ids, own):
        pass
    given = record(decoder, ids[50:], record(decoder, ids[:50])).cache(decoder, policy)
    assert given.attended() == own.attended()
    for token in (5, 17, 90):
        expected, x = (decoder.forward([token], 1, cache) for cache in (own, given))
        assert (x - expected).norm() < 1e-4 * expected.norm()


def test_the_full_cache_scores_as_generation_does(decoder: Decoder) -> None:
    samples = [TASKS["day-sheet"].generate(TOKENIZER, 256, seed) for seed in range(3)]
    results = score(decoder, samples, {"full": PolicySettings("full")})
    right = 0
    for sample in (s for group in samples for s in group):
        prompt = [*sample.document, *sample.turns[0][0]]
        answer = sample.turns[0][1]
        right += list(steps(decoder, asked(len(prompt), len(answer)), prompt)) == list(answer)
    assert results["full", "end"].right == results["full", "later"].right == right > 0
    assert results["full", "end"].attended == 1.0


@pytest.mark.parametrize("task", TASKS)
def test_a_task_fits_its_length_and_follows_from_its_seed(task: str) -> None:
    for tokens in (200, 400):
        samples = TASKS[task].generate(TOKENIZER, tokens, 3)
        assert samples == TASKS[task].generate(TOKENIZER, tokens, 3) != TASKS[task].generate(TOKENIZER, tokens, 4)
        for sample in samples:
            used = len(sample.document) + sum(len(q) + len(a) for q, a in sample.turns)
            assert tokens - 120 <= used <= tokens + 40
            assert all(q and a for q, a in sample.turns)


def test_a_needle_lies_where_its_label_says() -> None:
    for seed in range(5):
        (sample,) = TASKS["needle"].generate(TOKENIZER, 400, seed)
        value = list(sample.turns[0][1][:-1])
        place = next(i for i in range(len(sample.document)) if list(sample.document[i : i + len(value)]) == value)
        assert sample.label is not None
        depth = int(sample.label.removeprefix("depth ").rstrip("%")) / 100
        assert abs(place / len(sample.document) - depth) < 0.1


def test_scores_have_errors_that_are_not_zero() -> None:
    result = Score([Outcome(True, 0.5)] * 10)
    assert result.exact_match == 1.0 and 0 < result.standard_error < 0.1 and result.perplexity is None
    likely = Score([Outcome(True, 1.0, -6.0, 3), Outcome(True, 1.0, -2.0, 1)])
    assert likely.perplexity == pytest.approx(7.389, abs=1e-3)


@pytest.mark.parametrize("workers", [0, 2])
def test_records_resume_by_policy_and_tables_say_what_the_model_cannot_do(tmp_path: Path, workers: int) -> None:
    pool = Pool(InProcess, workers) if workers else None

    def run(policies: str, budgets: tuple[float, ...]) -> list:
        options = QualityOptions(DEMO_MODEL, ["count"], [150], compared_policies(policies), budgets, ["end"], 2)
        return run_quality(options, Records(tmp_path), pool)

    run("full", (0.5,))
    records = run("full,streaming", (0.25, 0.5))
    assert len(records) == 3 and all(r["ranges"]["passed"] == 0 and r["ranges"]["places"] for r in records)
    before = {r["measured_at"] for r in records if r["policy"] == "full"}
    again = run("full,streaming", (0.25, 0.5))
    assert {r["measured_at"] for r in again if r["policy"] == "full"} == before
    ((title, header, rows),) = quality_tables(again)
    assert "beyond this model" in title and header == ["policy", "25.0%", "50.0%"]
    assert [row[0] for row in rows] == ["full", "streaming"]


@pytest.mark.slow
def test_processes_measure_what_one_measures(tmp_path: Path) -> None:
    options = QualityOptions(
        DEMO_MODEL, ["count", "needle"], [150], compared_policies("full,streaming"), [0.5], ["end", "later"], 1
    )
    pool = Pool(LocalProcess, 2)
    try:
        records = run_quality(options, Records(tmp_path), pool)
    finally:
        pool.close()
    alone = run_quality(options, Records())
    figures = ("task", "tokens", "placement", "policy", "attended", "asked", "right", "ranges", "status")
    assert len(records) == 8
    assert [[r[name] for name in figures] for r in records] == [[r[name] for name in figures] for r in alone]


def test_a_group_whose_worker_is_lost_has_failed_and_the_others_go_on_and_it_is_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = []

    class Mortal(InProcess):
        """The first one that is started is lost with its first call."""

        def __init__(self) -> None:
            super().__init__()
            self.first = not started
            started.append(self)

        def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Future[Any]:
            if not self.first:
                return super().call(function, arguments)
            self.lost = True
            future: Future[Any] = Future()
            future.set_exception(PeerLost("a worker process was ended"))
            return future

    options = QualityOptions(DEMO_MODEL, ["count"], [150, 160], compared_policies("full"), [], ["later"], documents=1)
    records = run_quality(options, Records(tmp_path), Pool(Mortal, 1))
    assert [(r["status"], r["settings"]["tokens"]) for r in records] == [("done", 150), ("failed", 160)]
    assert records[1]["error"] == "a worker process was ended" and "count 160 later full" in capsys.readouterr().err
    assert len(started) == 2
    again = run_quality(options, Records(tmp_path))
    assert [r["status"] for r in again] == ["done", "done"] and again[0] == records[0]


def test_an_interrupted_run_keeps_the_groups_that_are_done(tmp_path: Path) -> None:
    class Interrupted(InProcess):
        def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Future[Any]:
            if self._state:
                raise KeyboardInterrupt
            return super().call(function, arguments)

    options = QualityOptions(DEMO_MODEL, ["count"], [150, 160], compared_policies("full"), [], ["later"], documents=1)
    with pytest.raises(KeyboardInterrupt):
        run_quality(options, Records(tmp_path), Pool(Interrupted, 1))
    assert [r["tokens"] for r in read_records(tmp_path)] == [160]
