"""The reader: without training, it solves day logs where it sees all of them, and fails where it reads blindly."""

from collections.abc import Sequence

import pytest
import torch

from mpcache.demo.daylog import FAR, DayLog, log_of_tokens
from mpcache.demo.reader import HOPS, build_reader
from mpcache.demo.training import log_match

MODEL, TOKENIZER = build_reader()


@pytest.mark.parametrize("tokens", [128, 512, 1024])
def test_every_chain_that_the_layers_reach_is_answered(tokens: int) -> None:
    for right, asked in log_match(MODEL, TOKENIZER, tokens, 2, "room", HOPS).values():
        assert right == asked


def test_a_longer_context_is_read_as_well() -> None:
    model, tokenizer = build_reader(8192)
    cells = log_match(model, tokenizer, 3000, 1, "room", HOPS)
    assert all(right == asked > 0 for right, asked in cells.values())


def answer(ids: Sequence[int]) -> str:
    with torch.no_grad():
        return TOKENIZER.decode([int(MODEL.logits(MODEL(torch.tensor([ids]))[0, -1]).argmax())])


def test_an_answer_is_what_held_when_the_line_was_read() -> None:
    sheet = "Day sheet, Monday 1. {} has room 131.{} {} joins {}. {} has room 150.\n"
    first, second = _two_names()
    filler = " The lift is out of order." * 20
    text = sheet.format(first, filler, second, first, first)
    for name, room in ((second, " 131"), (first, " 150")):
        assert answer(TOKENIZER.encode(f"{text}Q: Which room does {name} have?\nA:").ids) == room


def _two_names() -> tuple[str, str]:
    log = log_of_tokens(DayLog(0, "heldout", apart=FAR), 256, TOKENIZER)
    return log.last[0].name, log.last[1].name
