"""Day sheets: seeded, answerable from the sheet alone, of the asked length; held-out names stay out of training."""

import random
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mpcache.demo.daysheet import (
    KINDS,
    DaySheet,
    Fact,
    build_tokenizer,
    is_held_out,
    names,
    sheet_of_tokens,
    training_pieces,
)

TOKENIZER = build_tokenizer()


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def test_names_are_split_once_and_for_all() -> None:
    train, heldout = set(names("train")), set(names("heldout"))
    assert not train & heldout
    assert 0.08 < len(heldout) / len(train | heldout) < 0.12
    assert all(is_held_out(name) for name in heldout)
    with pytest.raises(ValueError, match="split"):
        names("test")


def test_training_never_names_a_held_out_person() -> None:
    heldout = set(names("heldout"))
    for seed in range(40):
        text = "".join(piece for piece, _ in islice(training_pieces(random.Random(seed), 512), 200))
        assert not heldout & set(text.replace(".", " ").split())


def test_held_out_sheets_name_only_held_out_people() -> None:
    assert all(is_held_out(fact.name) for seed in range(20) for fact in DaySheet(seed, "heldout").facts)


def test_a_seed_determines_the_sheet_and_another_changes_it() -> None:
    assert DaySheet(3).text == DaySheet(3).text
    assert DaySheet(3).questions == DaySheet(3).questions
    assert len({DaySheet(seed).text for seed in range(50)}) == 50
    assert DaySheet(3).text != DaySheet(3, "heldout").text
    assert DaySheet(3, sentences=50).lines[:20] == DaySheet(3, sentences=20).lines


@given(st.integers(0, 2**40), st.integers(1, 12), st.integers(1, 90))
@settings(max_examples=30, deadline=None)
def test_every_question_has_one_answer_in_the_sheet(seed: int, people: int, sentences: int) -> None:
    sheet = DaySheet(seed, people=people, sentences=sentences)
    facts = sheet.facts
    assert len({(fact.name, fact.kind) for fact in facts}) == len(facts) == len(sheet.questions)
    for question, answer in sheet.questions:
        [fact] = [fact for fact in facts if fact.question == question]
        assert answer == fact.answer and answer.endswith("\n")
        assert sheet.text.count(f" {fact.sentence}") == 1


def test_a_person_s_facts_are_scattered() -> None:
    facts = DaySheet(1, people=20, sentences=120).facts
    apart = [j - i for i, fact in enumerate(facts) for j in range(i + 1, len(facts)) if facts[j].name == fact.name]
    assert sum(apart) / len(apart) > len(facts) / 5


@pytest.mark.parametrize("tokens", [128, 512, 1024, 2048])
def test_prompt_and_answer_fill_the_asked_tokens(tokens: int) -> None:
    for seed in range(5):
        sheet = sheet_of_tokens(seed, "heldout", tokens, TOKENIZER)
        lengths = [len(TOKENIZER.encode(sheet.text + question + answer).ids) for question, answer in sheet.questions]
        assert tokens - 16 < max(lengths) <= tokens


def test_names_are_two_tokens_and_values_one() -> None:
    for split in ("train", "heldout"):
        assert all(len(ids(f" {name}")) == 2 for name in names(split))
    for kind in KINDS.values():
        assert all(len(ids(f" {value}")) == 1 for value in kind.values)


def test_pieces_encode_as_the_whole_text_does() -> None:
    """Training encodes piece by piece; a prompt is encoded at once."""
    for seed in range(10):
        pieces = [piece for piece, _ in islice(training_pieces(random.Random(seed), 256), 60)]
        assert ids("".join(pieces)) == [token for piece in pieces for token in ids(piece)]


def test_training_asks_what_has_been_said_and_only_once() -> None:
    for seed in range(10):
        said, question, asked = "", "", list[str]()
        for piece, is_answer in islice(training_pieces(random.Random(seed), 256), 100):
            if is_answer:
                asked.append(question)
                assert any(piece == fact.answer and f" {fact.sentence}" in said for fact in _facts(question))
            question = piece
            said += piece
        assert asked and len(set(asked)) == len(asked)


def _facts(question: str) -> list[Fact]:
    """Facts that would answer a question, one for each value of its kind."""
    name = next(word for word in question.replace("?", "").split() if word in set(names("train")))
    kind = next(kind for kind in KINDS if Fact(name, kind, "").question == question)
    return [Fact(name, kind, value) for value in KINDS[kind].values]


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back_from_the_tokenizer(text: str) -> None:
    encoded = ids(text)
    assert TOKENIZER.decode(encoded, skip_special_tokens=False) == text


def test_a_user_s_own_text_starts_with_the_begin_token() -> None:
    encoded = TOKENIZER.encode("Zoë's room? 1234 £ 日本\n\n  ok")
    assert encoded.tokens[0] == "<s>"
    assert TOKENIZER.decode(encoded.ids) == "Zoë's room? 1234 £ 日本\n\n  ok"


def test_the_tokenizer_survives_its_file() -> None:
    again = Tokenizer.from_str(TOKENIZER.to_str())
    sheet = DaySheet(5)
    assert again.encode(sheet.text).ids == TOKENIZER.encode(sheet.text).ids
