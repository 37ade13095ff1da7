"""Several prompts in the same rounds, with three real processes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

import mpcache
from mpcache.generation.batch import batch_cost
from mpcache.generation.plan import phase_costs
from mpcache.inspection.watched import plain_answer
from mpcache.model.config_file import read_model_config
from mpcache.parties.batch import Batch
from mpcache.parties.client import Connection, Generation
from mpcache.parties.command.main import main
from mpcache.parties.launcher import launched_model, write_settings
from mpcache.policies import policy_settings
from mpcache.protocols.errors import HandshakeError, PeerLost
from mpcache.protocols.session import Cost
from tests.asking import asking
from tests.end_to_end.test_generation import LONG_PROMPT, OTHER_PROMPT, PROMPT, SMALL

PROMPTS = [PROMPT, LONG_PROMPT, PROMPT[::-1], OTHER_PROMPT[:33]]


def answers_of(batch: Batch, count: int) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in range(count)]
    for lane, token in batch:
        answers[lane].append(token)
    return answers


def costs(batch: Batch) -> list[tuple[int, int, int]]:
    found = []
    for meter in batch.meters:
        assert meter is not None
        cost = meter.prefill.cost + meter.decode.cost
        found.append((cost.online_bytes, cost.correction_bytes, cost.rounds))
    return found


@pytest.mark.parametrize("policy", [policy_settings("full"), SMALL], ids=["full", "mpcache"])
def test_answers_equal_plaintext_and_costs_the_plan(connection: Connection, model: Path, policy: object) -> None:
    requests = [asking(prompt, 3, policy=policy) for prompt in PROMPTS]
    batch = Batch(connection, requests)
    assert answers_of(batch, len(PROMPTS)) == [plain_answer(model, prompt, 3, policy) for prompt in PROMPTS]  # type: ignore[arg-type]
    config = read_model_config(model)
    planned = [sum(phase_costs(config, request.public), Cost()) for request in requests]
    assert costs(batch) == [(one.online_bytes, one.correction_bytes, one.rounds) for one in planned]
    assert batch.rounds == batch_cost(planned).rounds


def test_eight_prompts_take_the_rounds_of_one(connection: Connection, model: Path) -> None:
    prompts = [[*PROMPT[i % 7 :], *PROMPT[: i % 7]] for i in range(8)]
    batch = Batch(connection, [asking(prompt, 3) for prompt in prompts])
    assert answers_of(batch, 8) == [plain_answer(model, prompt, 3) for prompt in prompts]
    alone = Generation(connection, asking(PROMPT, 3))
    assert list(alone) and alone.meter is not None
    assert batch.rounds == (alone.meter.prefill.cost + alone.meter.decode.cost).rounds


def test_an_end_token_ends_one_answer_alone(connection: Connection, model: Path) -> None:
    plain = [plain_answer(model, prompt, 5) for prompt in PROMPTS]
    end = plain[0][1]
    batch = Batch(connection, [asking(prompt, 5, end_tokens=(end,)) for prompt in PROMPTS])
    expected = [tokens[: tokens.index(end) + 1] if end in tokens else tokens for tokens in plain]
    assert answers_of(batch, len(PROMPTS)) == expected and len(expected[0]) < max(map(len, expected))


def test_too_many_prompts_are_refused_in_words(connection: Connection) -> None:
    with pytest.raises(PeerLost, match="the owner allows 8 prompts in a batch, not 9"):
        answers_of(Batch(connection, [asking(PROMPT, 1)] * 9), 9)


def test_a_prompt_that_does_not_fit_is_refused_with_all(connection: Connection) -> None:
    with pytest.raises((PeerLost, HandshakeError), match="do not fit the model's 128 positions"):
        answers_of(Batch(connection, [asking(PROMPT, 5), asking([1] * 125, 5)]), 2)


@pytest.mark.parametrize("victim", ["owner", "dealer"])
def test_a_process_that_dies_ends_all_and_is_named(model: Path, victim: str) -> None:
    with launched_model(model) as parties:
        processes = {"owner": parties.owner.process, "dealer": parties.dealer.process}
        batch = iter(Batch(parties.connection, [asking(prompt, 50) for prompt in PROMPTS]))
        next(batch)
        os.kill(processes[victim].pid, signal.SIGKILL)
        with pytest.raises(PeerLost, match=f"the {victim}"):
            for _ in batch:
                pass


def test_the_command_answers_a_file_of_prompts(stories: Path, tmp_path: Path) -> None:
    texts = ["Once upon a time", "Lily had a cat.\nThe cat", "Tom"]
    prompts, written = tmp_path / "prompts.jsonl", tmp_path / "out.json"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    with launched_model(stories) as running:
        folder = running.connection.state.parent
        places = {"owner": running.owner.address, "dealer": running.dealer.address, "tokenizer": stories}
        settings = write_settings(folder / "client.toml", {**places, "max_new_tokens": 4})
        options = ("--prompts", prompts, "--batch", 2, "--json", written)
        arguments = map(str, ("client", "--config", settings, *options))
        result = CliRunner(catch_exceptions=False).invoke(main, list(arguments))
    assert result.exit_code == 0, result.output
    plain = [mpcache.generate(mpcache.load_model(stories), text, max_new_tokens=4).text for text in texts]
    for number, text in enumerate(plain, 1):
        assert f"{number}: {text.strip()}" in result.output
    assert "2 prompts, 8 new tokens" in result.output and "1 prompts, 4 new tokens" in result.output
    record = json.loads(written.read_text())
    assert [answer["answer"] for answer in record["answers"]] == plain
    assert [batch["prompts"] for batch in record["batches"]] == [2, 1]
    assert record["batches"][0]["rounds"] == max(answer["rounds"] for answer in record["answers"][:2])


def test_a_client_that_stops_a_batch_leaves_the_others_well(connection: Connection) -> None:
    batch = iter(Batch(connection, [asking(prompt, 20) for prompt in PROMPTS]))
    next(batch)
    batch.close()  # type: ignore[attr-defined]
    assert len(list(Generation(connection, asking(PROMPT, 2)))) == 2
