"""Day logs: seeded, of the asked length, and what a statement says is what a reader that goes line by line finds."""

import random
import re
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.demo.daylog import FAR, KINDS_OF_LOG, STEP, DayLog, Statement, log_of_tokens, log_pieces
from mpcache.demo.daysheet import build_tokenizer, is_held_out, names

TOKENIZER = build_tokenizer()
ROOM = re.compile(r"(\w+) has room (\d+)\.")
JOINS = re.compile(r"(\w+) joins (\w+)\.")
DOSE = re.compile(r"(\w+) takes just (\d+) mg\.")
MORE = re.compile(r"(\w+) takes 5 mg more\.")


def read(text: str) -> dict[str, str]:
    """Everybody's room or dose at the end of a text, worked out sentence by sentence."""
    now: dict[str, str] = {}
    for line in re.findall(r"[^.]+\.", text):
        if found := ROOM.search(line) or DOSE.search(line):
            now[found[1]] = found[2]
        elif found := JOINS.search(line):
            now[found[1]] = now[found[2]]
        elif found := MORE.search(line):
            now[found[1]] = str(int(now[found[1]]) + STEP)
    return now


LOGS = st.builds(
    DayLog,
    seed=st.integers(0, 2**40),
    kind=st.sampled_from(KINDS_OF_LOG),
    sentences=st.integers(1, 120),
    hops=st.integers(0, 3),
    apart=st.integers(0, FAR),
    restated=st.sampled_from((0.0, 0.3, 1.0)),
)


@given(LOGS)
@settings(max_examples=40, deadline=None)
def test_answers_are_what_reading_the_log_gives(log: DayLog) -> None:
    assert {said.name: said.value for said in log.last} == read(log.text)
    for said in log.last:
        assert said.answer == f" {said.value}\n" and said.name in said.question


@given(LOGS)
@settings(max_examples=40, deadline=None)
def test_statements_rest_on_earlier_ones_that_are_far_enough(log: DayLog) -> None:
    for place, line in enumerate(log.lines):
        if isinstance(line, Statement) and line.rests_on is not None:
            base = log.lines[line.rests_on]
            assert isinstance(base, Statement) and place - line.rests_on >= log.apart
            assert 0 < line.hops == base.hops + 1 <= log.hops
        elif isinstance(line, Statement):
            assert line.hops == 0


def test_who_has_moved_on_is_known() -> None:
    log = DayLog(0, sentences=300, restated=0.5)
    now = read(log.text)
    for said in log.last:
        if said.rests_on is not None:
            base = log.lines[said.rests_on]
            assert isinstance(base, Statement)
            assert log.overtaken(said) == (now[base.name] != said.value)
    assert any(log.overtaken(said) for said in log.last)


def test_without_restatement_everybody_is_stated_once() -> None:
    said = [line.name for line in DayLog(1, sentences=200, restated=0.0).lines if isinstance(line, Statement)]
    assert len(set(said)) == len(said)


def test_a_seed_determines_the_log_and_more_sentences_extend_it() -> None:
    assert DayLog(3).text == DayLog(3).text != DayLog(4).text
    assert DayLog(3, sentences=50).lines[:20] == DayLog(3, sentences=20).lines


@pytest.mark.parametrize("tokens", [128, 512, 2048, 8192])
@pytest.mark.parametrize("kind", KINDS_OF_LOG)
def test_prompt_and_answer_fill_the_asked_tokens(tokens: int, kind: str) -> None:
    log = log_of_tokens(DayLog(2, "heldout", kind), tokens, TOKENIZER)
    lengths = [len(TOKENIZER.encode(log.text + said.question + said.answer).ids) for said in log.last]
    assert tokens - 24 < max(lengths) <= tokens
    assert all(is_held_out(said.name) for said in log.last)


def test_training_asks_for_what_holds_so_far() -> None:
    heldout = set(names("heldout"))
    for seed in range(20):
        said, question, asked = "", "", 0
        for piece, is_answer in islice(log_pieces(random.Random(seed), 256, 2), 120):
            if is_answer:
                (name,) = (name for name in read(said) if re.search(rf"\b{name}\b", question))
                assert piece == f" {read(said)[name]}\n"
                asked += 1
            elif piece.startswith("Q:"):
                question = piece
            else:
                said += piece
        assert asked and not heldout & set(re.findall(r"\w+", said))
