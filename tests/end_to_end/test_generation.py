"""Three real processes over gRPC with mutual TLS."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mpcache.generation.loop import FULL, Phase
from mpcache.generation.plan import PublicParameters, phase_costs
from mpcache.inspection.watched import plain_answer
from mpcache.model.config_file import read_model_config
from mpcache.parties import client
from mpcache.parties.client import Connection, Generation, Request
from mpcache.parties.launcher import local_parties
from mpcache.policies import PolicySettings
from mpcache.protocols.errors import HandshakeError, PeerLost
from mpcache.protocols.session import Cost

PROMPT = [5, 17, 90, 3, 3, 41, 77]


def totals(*phases: Phase) -> tuple[int, int, int]:
    cost = sum((p.cost for p in phases), Cost())
    return cost.online_bytes, cost.correction_bytes, cost.rounds


LONG_PROMPT, OTHER_PROMPT = ([(a * i * i + b * i + 11) % 96 for i in range(70)] for a, b in ((5, 25), (31, 90)))
"""Prompts in which no selection and no token is a near tie."""
SMALL = PolicySettings(budget=24, sinks=2, recent=4, clusters=(8, 4), page=4)


@pytest.mark.parametrize(
    ("prompt", "policy"),
    [
        (PROMPT, FULL),
        (LONG_PROMPT, SMALL),
        (LONG_PROMPT, replace(SMALL, name="h2o")),
        (OTHER_PROMPT, replace(SMALL, representative="extremes", per_head=True, skip_layers=1)),
    ],
    ids=["full", "mpcache", "h2o", "mpcache with other settings"],
)
def test_the_answer_equals_plaintext_and_its_cost_the_plan(
    connection: Connection, model: Path, prompt: list[int], policy: PolicySettings
) -> None:
    generation = Generation(connection, Request(prompt, 3, policy=policy))
    assert list(generation) == plain_answer(model, prompt, 3, policy)
    parameters = PublicParameters(read_model_config(model), len(prompt), 3, policy=policy)
    planned = sum(phase_costs(parameters), Cost())
    assert generation.meter is not None
    measured = totals(generation.meter.prefill, generation.meter.decode)
    assert measured == (planned.online_bytes, planned.correction_bytes, planned.rounds)


def test_crypten_runs_between_the_same_processes(connection: Connection, model: Path) -> None:
    """Its protocols over our transport and dealer: the baseline."""
    generation = Generation(connection, Request(PROMPT[:3], 2, backend="crypten"))
    assert list(generation) == plain_answer(model, PROMPT[:3], 2)
    parameters = PublicParameters(read_model_config(model), 3, 2, backend="crypten")
    planned = sum(phase_costs(parameters), Cost())
    assert generation.meter is not None
    assert totals(generation.meter.prefill, generation.meter.decode)[:2] == (
        planned.online_bytes,
        planned.correction_bytes,
    )


def test_protocols_follow_the_network_and_stay_as_planned(connection: Connection, model: Path) -> None:
    """A slow network is given fewer rounds and more bytes."""
    rounds = []
    for network in ("loopback", "200ms,1gbit"):
        generation = Generation(connection, Request(PROMPT * 9, 2, network=network))
        assert list(generation) == plain_answer(model, PROMPT * 9, 2)
        parameters = PublicParameters(read_model_config(model), len(PROMPT) * 9, 2, network=network)
        planned = sum(phase_costs(parameters), Cost())
        assert generation.meter is not None
        measured = totals(generation.meter.prefill, generation.meter.decode)
        assert measured == (planned.online_bytes, planned.correction_bytes, planned.rounds)
        rounds.append(planned.rounds)
    assert rounds[1] < rounds[0]


def test_masked_weights_are_sent_once(connection: Connection, tmp_path: Path) -> None:
    own_state = replace(connection, state=tmp_path)
    first, second = Generation(own_state, Request(PROMPT, 1)), Generation(own_state, Request(PROMPT, 1))
    assert list(first) == list(second)
    assert first.setup_bytes > 0 and second.setup_bytes == 0


def test_sessions_run_side_by_side(connection: Connection, model: Path) -> None:
    prompts = [PROMPT, PROMPT[::-1]]
    generations = [iter(Generation(connection, Request(p, 3))) for p in prompts]
    answers: list[list[int]] = [[], []]
    for _ in range(3):
        for answer, generation in zip(answers, generations, strict=True):
            answer.append(next(generation))
    assert answers == [plain_answer(model, p, 3) for p in prompts]


def test_an_answer_ends_with_the_clients_end_token(connection: Connection, model: Path) -> None:
    tokens = plain_answer(model, PROMPT, 6)
    end = tokens[2]
    generation = Generation(connection, Request(PROMPT, 6, end_tokens=(end,)))
    assert list(generation) == tokens[: tokens.index(end) + 1]
    assert generation.meter is not None and generation.meter.tokens == tokens.index(end) + 1


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(PROMPT, 5, model_digest="0" * 64), "the client wants 0000000000000000"),
        (Request(PROMPT, 5, backend="magic"), "unknown backend 'magic'"),
        (Request(PROMPT, 5, policy=PolicySettings("magic")), "unknown cache policy 'magic'"),
        (Request(PROMPT, 5, policy=PolicySettings(budget=20)), "a budget of 20 tokens is below the 27"),
        (Request(PROMPT, 5, network="moon"), "the network 'moon' is none of"),
        (Request(PROMPT, 500), "allows 256 new tokens"),
        (Request([1] * 125, 5), "do not fit the model's 128 positions"),
        (Request([1] * 3000, 5), "allows 2048 prompt tokens"),
        (Request([500], 1), "beyond its vocabulary"),
    ],
)
def test_a_disagreement_is_refused_in_words(connection: Connection, request_: Request, message: str) -> None:
    with pytest.raises((PeerLost, HandshakeError), match=message):
        list(Generation(connection, request_))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.setattr(client, "PROTOCOL_VERSION", 99), "speaks protocol version 3, the client 99"),
        (lambda m: m.setattr(client, "PRECISION", "fixed-point 8 bits"), "the client with fixed-point 8 bits"),
        (lambda m: m.setattr(client, "plan_digest", lambda *p: "x"), "plan differs from the owner's"),
    ],
)
def test_another_program_is_refused_before_any_secret_moves(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch], None], message: str
) -> None:
    change(monkeypatch)
    generation = Generation(connection, Request(PROMPT, 2))
    with pytest.raises((PeerLost, HandshakeError), match=message):
        list(generation)
    assert generation.setup_bytes == 0


def test_a_client_that_stops_early_leaves_the_others_well(connection: Connection) -> None:
    generation = iter(Generation(connection, Request(PROMPT, 20)))
    next(generation)
    generation.close()  # type: ignore[attr-defined]
    assert len(list(Generation(connection, Request(PROMPT, 2)))) == 2


LOGIT_ERROR = 0.02
"""See docs/protocols.md."""


@pytest.mark.parametrize("prompts", [slice(1), pytest.param(slice(1, None), marks=pytest.mark.slow)])
def test_stories260k_generates_its_reference_tokens(stories: Path, prompts: slice) -> None:
    chosen = json.loads((stories / "reference.json").read_text())["prompts"][prompts]
    assert chosen
    with local_parties(stories) as where:
        for case in chosen:
            answer = list(Generation(where, Request(case["ids"], 32)))
            for ours, theirs, margin in zip(answer, case["next_ids"], case["margins"], strict=True):
                if ours != theirs:
                    assert margin < LOGIT_ERROR
                    break
