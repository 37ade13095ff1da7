"""How many tokens of a prompt go through the model at once: by the network and the memory, the same for everybody."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from mpcache.generation.plan import phase_costs, plan_digest
from mpcache.generation.price import price
from mpcache.generation.request import FULL, GenerationRequest
from mpcache.model.decoder import PREFILL_BLOCK
from mpcache.model.shapes import SHAPES, model_shape
from mpcache.policies import blocks, policy_settings
from mpcache.policies.blocks import LARGEST_BLOCK, PASS_BYTES, chosen_block
from mpcache.protocols.session import ROUND_BYTES
from tests.asking import asked

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "rounds.md").read_text()
GPT2 = model_shape("gpt2", positions=4096)
WAN = GenerationRequest(prompt_tokens=1, max_new_tokens=1, network="wan").round_bytes


def on(network: str, tokens: int, **facts: object) -> int:
    return asked(tokens, 1, network=network, **facts).block_for(GPT2)


def test_a_long_prompt_takes_few_passes_where_rounds_are_dear() -> None:
    assert on("loopback", 512) == PREFILL_BLOCK
    assert PREFILL_BLOCK < on("lan", 512) < on("wan", 512) == 512
    assert on("wan", 500) == 500, "one pass"
    assert on("wan", 60) == PREFILL_BLOCK


def test_a_prefill_of_512_tokens_takes_less_than_a_thousand_rounds_on_a_wide_network() -> None:
    gpt2 = model_shape("gpt2")
    now, before = (
        price(gpt2, asked(512, 1, network="wan", prefill_block=block)).prefill.cost for block in (0, PREFILL_BLOCK)
    )
    assert now.rounds <= 1000 < before.rounds
    assert now.correction_bytes < 1.01 * before.correction_bytes
    assert now.online_bytes < 1.1 * before.online_bytes, "exponentials of hidden scores are opened, as zeros"


@pytest.mark.slow
@pytest.mark.parametrize(
    "row", re.findall(r"^\| (loopback|lan|wan) \| (\d+)( \(chosen\))? \| (\d) \| (.+) \|$", PAGE, re.MULTILINE)
)
def test_the_page_says_what_blocks_cost(row: tuple[str, ...]) -> None:
    network, size, chosen, passes, rest = row
    gpt2, request = model_shape("gpt2"), asked(512, 1, network=network, prefill_block=int(size))
    cost = price(gpt2, request).prefill.cost
    assert len(request.blocks(gpt2)) == int(passes)
    figures = f"{cost.rounds:,} | {cost.online_bytes / 1e9:.3f} | {cost.correction_bytes / 1e9:.3f}"
    assert rest.startswith(figures)
    automatic = asked(512, 1, network=network).block_for(gpt2)
    assert bool(chosen) == (automatic == int(size)) or network == "loopback"


@pytest.mark.parametrize("tokens", [300, 1024, 4000])
@pytest.mark.parametrize("network", ["lan", "wan", "200ms,1gbit"])
def test_a_pass_stays_within_its_memory(network: str, tokens: int) -> None:
    round_bytes = asked(tokens, 1, network=network).round_bytes
    size = on(network, tokens)
    assert PREFILL_BLOCK <= size <= LARGEST_BLOCK
    last = blocks._pass(replace(GPT2, layers=1), tokens - size, size, round_bytes)
    assert size == PREFILL_BLOCK or last.drawn_bytes <= PASS_BYTES


def test_more_heads_leave_room_for_fewer_tokens() -> None:
    wide = replace(GPT2, heads=48, key_value_heads=48, hidden=48 * 64)
    assert chosen_block(FULL, wide, 512, WAN) < chosen_block(FULL, GPT2, 512, WAN)


def test_layers_do_not_matter() -> None:
    assert chosen_block(FULL, replace(GPT2, layers=3), 512, WAN) == chosen_block(FULL, GPT2, 512, WAN)


def test_a_policy_whose_answers_would_follow_the_size_keeps_it() -> None:
    assert on("wan", 512, policy=policy_settings("mpcache:prefill_budget=200")) == PREFILL_BLOCK


def test_on_one_machine_nothing_is_planned_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_pass", None)
    assert chosen_block(FULL, GPT2, 4000, ROUND_BYTES) == PREFILL_BLOCK


@pytest.mark.parametrize("network", ["lan", "wan"])
def test_who_asks_for_the_size_gets_the_plan_of_the_chosen_one(network: str) -> None:
    model = replace(SHAPES["tiny"], max_positions=400)
    automatic = asked(150, 2, network=network)
    told = replace(automatic, prefill_block=automatic.block_for(model))
    assert told.blocks(model) == automatic.blocks(model)
    assert phase_costs(model, told) == phase_costs(model, automatic)
    small = replace(automatic, prefill_block=PREFILL_BLOCK)
    assert phase_costs(model, small)[0].rounds > phase_costs(model, automatic)[0].rounds
    assert plan_digest(model, small) != plan_digest(model, automatic)
