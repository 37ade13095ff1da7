"""The budget of rounds in docs/rounds.md, against the plan."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mpcache.generation.network import NETWORKS
from mpcache.generation.request import GenerationRequest
from mpcache.generation.rounds import Round, block_rounds
from mpcache.model.shapes import SHAPES
from mpcache.protocols.backends.mpc import LOGIT_WIDTH
from mpcache.protocols.maximum import argmax
from mpcache.protocols.plan import PlanSession, ShapeArithmetic
from mpcache.protocols.session import Cost

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rounds.md"
BEFORE = {"loopback": 3_884_690, "lan": 3_656_114, "wan": 4_701_678}
"""Bytes of the block before rounds were traded for bytes."""

STEPS = [  # what is opened, by the protocols that open it: the first that fits
    ("maximum", "> maximum >"),
    ("range of the sum", "inverse_root .*(from_tables|sign)"),
    ("sum of squares", "inverse_root"),
    ("exponentials", "> exponentials"),
    ("weights", "weighed > mask"),
    ("weighed values", "weighed > open_rows"),
    ("inverse", "scale_rows"),
    ("attention", "divide > truncate"),
    ("stream", "open_rows"),
    ("norm", "stream_norm > truncate"),
    ("scale", "normed_linear|stream_norm"),
    ("queries, keys, values", "reshape > .*truncate"),
    ("into the cache", "^enter"),
    ("activation", "^activation"),
    ("layer", "^linear$"),
]
LAYERS = ("projection", "first layer", "second layer")


def step(a_round: Round) -> str:
    openings = a_round.openings
    return next(name for name, pattern in STEPS if any(re.search(pattern, opening) for opening in openings))


def block(network: str) -> tuple[list[Round], Cost]:
    return block_rounds(SHAPES["gpt2"], GenerationRequest(prompt_tokens=1023, max_new_tokens=1, network=network))


def rows(columns: int) -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if len(row) == columns and not row[0].startswith("--")]


@pytest.mark.parametrize("network", NETWORKS)
def test_the_budget_lists_every_round_in_order(network: str) -> None:
    table = [row for row in rows(6) if row[0] not in NETWORKS]
    heading = next(row for row in table if "loopback" in row)
    listed = [row[0] for row in table if row[1].isdigit() for _ in range(int(row[heading.index(network)]))]
    assert ["layer" if name in LAYERS else name for name in listed] == [step(a_round) for a_round in block(network)[0]]


@pytest.mark.parametrize("network", NETWORKS)
def test_the_figures_of_the_budget_are_the_plans(network: str) -> None:
    rounds, cost = block(network)
    (row,) = [row for row in rows(6) if row[0] == network]
    assert row[1:4] == [f"{n:,}" for n in (len(rounds), cost.online_bytes, cost.correction_bytes)]
    assert row[5] == f"{round(BEFORE[network], -3):,}"


def test_a_block_takes_at_most_thirty_rounds_on_a_slow_network_and_no_more_bytes_on_one_machine_than_before() -> None:
    assert len(block("wan")[0]) <= 30
    rounds, cost = block("loopback")
    assert len(rounds) < 49 and cost.online_bytes + cost.correction_bytes < BEFORE["loopback"]


def test_the_rounds_of_an_arg_max_are_those_that_are_written() -> None:
    found = []
    for network in ("loopback", "lan", "wan"):
        session = PlanSession()
        session.round_bytes = NETWORKS[network].round_bytes
        with ShapeArithmetic():
            session.run(argmax(session, torch.empty((1, 50_257), dtype=torch.int64, device="meta"), LOGIT_WIDTH))
        found.append(session.cost.rounds)
    assert "takes {} rounds on loopback, {} on LAN and {} on WAN".format(*found) in PAGE.read_text()


def test_what_a_round_is_worth_is_what_is_written() -> None:
    worth = [f"{NETWORKS[name].round_bytes:,}" for name in ("loopback", "lan", "wan")]
    assert "{} on one machine, {} on\nLAN, {} on WAN".format(*worth) in PAGE.read_text()
