"""What an answer tells the owner: its length, and that only if the client lets it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mpcache.inspection.watched import plain_answer
from mpcache.parties.client import Connection, Generation
from tests.asking import asking
from tests.end_to_end.test_generation import PROMPT

REQUEST = asking(PROMPT, 6)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_answer_ends_with_an_end_token_of_the_clients(connection: Connection, model: Path) -> None:
    tokens = plain_answer(model, PROMPT, 6)
    end = tokens[2]
    generation = Generation(connection, replace(REQUEST, end_tokens=(end, 95)))
    assert list(generation) == tokens[: tokens.index(end) + 1]
    assert generation.meter is not None and generation.meter.tokens == tokens.index(end) + 1


def test_a_models_description_names_no_end_tokens(connection: Connection) -> None:
    generation = Generation(connection, REQUEST)
    list(generation)
    assert generation.model is not None and "end" not in generation.model.to_json()


def test_an_answer_of_fixed_length_takes_the_same_whatever_ends_it(connection: Connection, model: Path) -> None:
    tokens = plain_answer(model, PROMPT, 6)
    answers, costs = [], []
    for ends in ((), (tokens[0],), (tokens[2],)):
        generation = Generation(connection, replace(REQUEST, end_tokens=ends, fixed_length=True))
        answers.append(list(generation))
        assert generation.session is not None and generation.meter is not None
        assert generation.meter.tokens == 6
        costs.append(generation.session.cost)
    assert answers == [tokens, tokens[:1], tokens[: tokens.index(tokens[2]) + 1]]
    assert costs[0] == costs[1] == costs[2]


def test_the_session_does_not_wait_for_who_reads_its_tokens(connection: Connection) -> None:
    """A slow reader, or the decoding of a token's text, would show in the time of the next message."""
    generation = Generation(connection, REQUEST)
    reader = iter(generation)
    next(reader)
    until(lambda: generation.meter is not None and generation.meter.tokens == 6)
    assert len(list(reader)) == 5
