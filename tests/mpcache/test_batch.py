"""Several generations in the same rounds, in one process: answers as one by one, bytes and rounds as planned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mpcache
from mpcache.generation import in_process_batch
from mpcache.generation.batch import batch_cost, batch_digest, batch_of, check_batch
from mpcache.generation.in_process_batch import InProcessBatch
from mpcache.generation.loop import Meter
from mpcache.generation.plan import phase_costs, plan_digest
from mpcache.generation.price import price
from mpcache.generation.request import ClientRequest
from mpcache.inspection.watched import plain_answer
from mpcache.model.checkpoint import load_checkpoint
from mpcache.model.shapes import SHAPES, model_shape
from mpcache.parties.threads import session_threads
from mpcache.policies import policy_settings
from mpcache.protocols.session import Cost
from tests.asking import asked, asking
from tests.mpcache.models import save_random_model

MADE_BY = ((5, 25, 30), (31, 90, 7), (3, 8, 70), (2, 9, 1))
PROMPTS = [[(a * i * i + b * i + 11) % 96 for i in range(n)] for a, b, n in MADE_BY]
POLICY = policy_settings("mpcache:budget=8:sinks=1:recent=4:clusters=2:only_if_cheaper=false:evict_if_cheap=false")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_random_model(folder, "llama")
    return folder


def run(folder: Path, requests: list[ClientRequest]) -> tuple[list[list[int]], InProcessBatch]:
    batch = InProcessBatch(load_checkpoint(folder), requests)
    answers: list[list[int]] = [[] for _ in requests]
    for lane, token in batch:
        answers[lane].append(token)
    assert not session_threads()
    return answers, batch


def cost(meter: Meter | None) -> Cost:
    assert meter is not None
    return meter.prefill.cost + meter.decode.cost


def counted(cost: Cost) -> tuple[int, int, int]:
    return cost.online_bytes, cost.correction_bytes, cost.rounds


@pytest.mark.parametrize("policy", [policy_settings("full"), POLICY], ids=["full", "mpcache"])
def test_answers_are_those_of_one_by_one_and_costs_are_as_planned(folder: Path, policy: Any) -> None:
    requests = [asking(prompt, 4, policy=policy) for prompt in PROMPTS]
    answers, batch = run(folder, requests)
    assert answers == [plain_answer(folder, prompt, 4, policy) for prompt in PROMPTS]
    model = load_checkpoint(folder).config
    planned = [sum(phase_costs(model, request.public), Cost()) for request in requests]
    assert [counted(cost(meter)) for meter in batch.meters] == [counted(one) for one in planned]
    assert batch.rounds == batch_cost(planned).rounds == max(one.rounds for one in planned)
    assert batch_cost(planned).online_bytes == sum(one.online_bytes for one in planned)


def test_eight_prompts_take_the_rounds_of_one(folder: Path) -> None:
    one = asking(PROMPTS[0], 3)
    _, single = run(folder, [one])
    _, batch = run(folder, [asking([*PROMPTS[0][i:], *PROMPTS[0][:i]], 3) for i in range(8)])
    assert batch.rounds == single.rounds == sum(phase_costs(load_checkpoint(folder).config, one.public), Cost()).rounds
    assert batch.rounds <= 1.3 * single.rounds


def test_an_answer_may_end_before_the_others(folder: Path) -> None:
    plain = [plain_answer(folder, prompt, 5) for prompt in PROMPTS]
    end = plain[1][1]
    requests = [asking(prompt, 5, end_tokens=(end,)) for prompt in PROMPTS]
    answers, batch = run(folder, requests)
    assert answers == [tokens[: tokens.index(end) + 1] if end in tokens else tokens for tokens in plain]
    assert len(answers[1]) < max(map(len, answers)) == 5
    assert batch.rounds == max(cost(meter).rounds for meter in batch.meters)


def test_a_batch_of_one_is_a_generation(folder: Path) -> None:
    answers, batch = run(folder, [asking(PROMPTS[0], 2)])
    with mpcache.InProcess(mpcache.load_model(folder)) as parties:
        alone = parties.generate(PROMPTS[0], max_new_tokens=2, policy="full")
    assert answers == [list(alone.tokens)]
    assert counted(cost(batch.meters[0])) == counted(alone.prefill.cost + alone.decode.cost)


def test_what_cannot_share_rounds_is_refused(folder: Path) -> None:
    checkpoint = load_checkpoint(folder)
    with pytest.raises(mpcache.ConfigError, match="a batch needs a prompt"):
        InProcessBatch(checkpoint, [])
    with pytest.raises(mpcache.ConfigError, match="differ in nothing but their prompts"):
        InProcessBatch(checkpoint, [asking(PROMPTS[0], 2), asking(PROMPTS[1], 3)])
    with pytest.raises(mpcache.ConfigError, match="only the backend 'mpc'"):
        check_batch([asking(prompt, 2, backend="crypten") for prompt in PROMPTS])


@pytest.mark.parametrize("side", ["owner", "client"])
def test_what_goes_wrong_in_one_lane_ends_all_and_is_raised(
    folder: Path, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    steps = in_process_batch.steps

    def failing(decoder: Any, request: Any, prompt: Any, **options: Any) -> Iterator[int | None]:
        for number, token in enumerate(steps(decoder, request, prompt, **options)):
            if number == 1 and request.prompt_tokens == 7 and (prompt is None) == (side == "owner"):
                raise ZeroDivisionError(f"of the {side}")
            yield token

    monkeypatch.setattr(in_process_batch, "steps", failing)
    with pytest.raises(ZeroDivisionError, match=f"of the {side}"):
        run(folder, [asking(prompt, 30) for prompt in PROMPTS])


def test_to_leave_a_batch_early_ends_its_threads(folder: Path) -> None:
    for _ in InProcessBatch(load_checkpoint(folder), [asking(prompt, 30) for prompt in PROMPTS]):
        break
    for thread in session_threads():
        thread.join(60)
    assert not session_threads()


def test_the_library_answers_a_list_of_prompts(folder: Path) -> None:
    model = mpcache.load_model(folder)
    with mpcache.InProcess(model) as parties:
        answers = parties.generate_batch(PROMPTS, max_new_tokens=3, policy="full")
        with pytest.raises(mpcache.ConfigError, match="a batch is a list of prompts"):
            parties.generate_batch("one prompt")
        with pytest.raises(mpcache.ConfigError, match="unknown option 'on_block'"):
            parties.generate_batch(PROMPTS, on_block=print)  # type: ignore[call-arg]
    assert [list(answer.tokens) for answer in answers] == [plain_answer(folder, prompt, 3) for prompt in PROMPTS]
    assert [answer.request.prompt_tokens for answer in answers] == [len(prompt) for prompt in PROMPTS]


# ---------------------------------------------------------------- plans


def test_the_fingerprint_of_a_batch_is_that_of_all_its_plans() -> None:
    model, first = SHAPES["tiny"], asked(5, 2)
    requests = batch_of(first, [9, 5])
    digest, each = batch_digest(model, requests)
    assert each == [plan_digest(model, request) for request in requests] and each[0] == each[2]
    assert batch_digest(model, [first]) == (each[0], [each[0]])
    others = (batch_of(first, lengths) for lengths in ([5, 9], [9], [9, 5, 5], [9, 6]))
    assert digest not in [each[0], *(batch_digest(model, other)[0] for other in others)]


@pytest.mark.parametrize("network", ["loopback", "lan", "wan"])
def test_a_shared_price_has_the_rounds_of_one_and_the_bytes_of_all(network: str) -> None:
    one = price(model_shape("gpt2"), asked(100, 2, network=network)).total
    eight = one.shared(8)
    assert eight.cost == replace(one.cost.times(8), rounds=one.cost.rounds)
    assert eight.multiply_adds == 8 * one.multiply_adds
