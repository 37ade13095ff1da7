"""Every policy on pretrained models: on secret shares the same tokens kept and picked, and the same generated, as in
plaintext. What is opened to see that is opened in this test alone."""

import json
from pathlib import Path

import pytest

from mpcache.demo import DEMO_MODEL
from mpcache.demo.daysheet import sheet_of_tokens
from mpcache.model.checkpoint import load_checkpoint
from mpcache.model.tokenizer import load_tokenizer
from mpcache.policies import PolicySettings, available_policies
from tests.asking import asked
from tests.mpcache.policies.matrix import fitting
from tests.mpcache.policies.private import LOGIT_ERROR, compare_decisions, generate_plain, generate_privately

WHOLE_MODEL = 10
"""A whole model's queries and keys differ from plaintext's as its logits do: ten times a single decision's error."""
ALWAYS = {"only_if_cheaper": False, "evict_if_cheap": False}
"""So short a prompt would else be kept and attended to in full."""
POLICIES = [pytest.param(name, marks=[pytest.mark.slow] if name != "mpcache" else []) for name in available_policies()]


def generate_both_ways(folder: Path, prompt: list[int], new_tokens: int, policy: PolicySettings) -> list[int | None]:
    """Private tokens, after they and all decisions were held against plaintext's."""
    checkpoint, plan = load_checkpoint(folder), asked(len(prompt), new_tokens, policy=policy)
    plain, private = generate_plain(checkpoint, plan, prompt), generate_privately(checkpoint, plan, prompt)
    agreed = compare_decisions(private.decisions, plain.decisions, WHOLE_MODEL)
    for ours, theirs, margin in zip(private.tokens, plain.tokens, plain.margins, strict=True):
        if ours != theirs:
            assert margin < LOGIT_ERROR or agreed < len(plain.decisions)
            break
    return private.tokens


@pytest.mark.parametrize("name", POLICIES)
def test_a_story_goes_on_as_in_plaintext(stories: Path, name: str) -> None:
    case = json.loads((stories / "reference.json").read_text())["prompts"][2]
    settings = fitting(
        name,
        **ALWAYS,
        budget=24,
        sinks=2,
        recent=4,
        clusters=(8, 4),
        page=4,
        representatives=2,
        window=8,
        cluster=2,
        called=1,
    )
    tokens = generate_both_ways(stories, case["ids"], 12, settings)
    assert name != "full" or tokens == case["next_ids"][:12]


@pytest.mark.parametrize("name", POLICIES)
def test_a_day_sheet_is_answered_as_in_plaintext(name: str) -> None:
    tokenizer = load_tokenizer(DEMO_MODEL)
    sheet = sheet_of_tokens(3, "heldout", 150, tokenizer)
    question, answer = sheet.questions[0]
    settings = fitting(name, **ALWAYS, budget=48, recent=8, clusters=(16, 8), page=8)
    tokens = generate_both_ways(DEMO_MODEL, tokenizer.encode(sheet.text + question).ids, 3, settings)
    if name in ("full", "mpcache"):
        assert tokenizer.decode([t for t in tokens if t is not None]).startswith(answer)
