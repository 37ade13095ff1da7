"""Three real processes over gRPC with mutual TLS."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mpcache.generation.loop import Phase
from mpcache.generation.plan import phase_costs, plan_parts
from mpcache.generation.request import FULL, PRECISION, ClientRequest, GenerationRequest
from mpcache.inspection.watched import plain_answer
from mpcache.model.config_file import read_model_config
from mpcache.parties import handshake
from mpcache.parties.client import Connection, Generation
from mpcache.parties.launcher import local_parties
from mpcache.policies import PolicySettings, policy_settings
from mpcache.policies.mpcache import MPCacheSettings
from mpcache.protocols.errors import HandshakeError, PeerLost
from mpcache.protocols.session import Cost
from tests.asking import asking

PROMPT = [5, 17, 90, 3, 3, 41, 77]


def totals(*phases: Phase) -> tuple[int, int, int]:
    cost = sum((p.cost for p in phases), Cost())
    return cost.online_bytes, cost.correction_bytes, cost.rounds


def planned_cost(model: Path, request: GenerationRequest) -> Cost:
    return sum(phase_costs(read_model_config(model), request), Cost())


LONG_PROMPT, OTHER_PROMPT = ([(a * i * i + b * i + 11) % 96 for i in range(70)] for a, b in ((5, 25), (31, 90)))
"""Prompts in which no selection and no token is a near tie."""
SMALL = MPCacheSettings(budget=24, sinks=2, recent=4, clusters=(8, 4), only_if_cheaper=False, evict_if_cheap=False)


@pytest.mark.parametrize(
    ("prompt", "policy"),
    [
        (PROMPT, FULL),
        (LONG_PROMPT, SMALL),
        (LONG_PROMPT, policy_settings("h2o", budget=24)),
        (OTHER_PROMPT, replace(SMALL, representative="extremes", per_head=True, skip_layers=1)),
    ],
    ids=["full", "mpcache", "h2o", "mpcache with other settings"],
)
def test_the_answer_equals_plaintext_and_its_cost_the_plan(
    connection: Connection, model: Path, prompt: list[int], policy: PolicySettings
) -> None:
    request = asking(prompt, 3, policy=policy)
    generation = Generation(connection, request)
    assert list(generation) == plain_answer(model, prompt, 3, policy)
    planned = planned_cost(model, request.public)
    assert generation.meter is not None
    measured = totals(generation.meter.prefill, generation.meter.decode)
    assert measured == (planned.online_bytes, planned.correction_bytes, planned.rounds)


@pytest.mark.parametrize("policy", [FULL, replace(SMALL, cluster_answer=False)], ids=["full", "mpcache"])
def test_drafts_give_the_answer_of_plaintext_in_passes_that_cost_what_is_planned(
    connection: Connection, model: Path, policy: PolicySettings
) -> None:
    request = asking(LONG_PROMPT, 6, policy=policy, draft=3)
    generation = Generation(connection, request)
    assert list(generation) == plain_answer(model, LONG_PROMPT, 6, policy)
    assert generation.meter is not None and 2 <= len(generation.meter.steps) <= 5
    blocks, passes = len(request.public.blocks(read_model_config(model))), len(generation.meter.steps)
    parts = list(plan_parts(read_model_config(model), request.public))[: blocks + 1 + passes]
    planned = sum((part.cost() for part in parts), Cost())
    measured = totals(generation.meter.prefill, generation.meter.decode)
    assert measured == (planned.online_bytes, planned.correction_bytes, planned.rounds)


def test_crypten_runs_between_the_same_processes(connection: Connection, model: Path) -> None:
    """Its protocols over our transport and dealer: the baseline."""
    request = asking(PROMPT[:3], 2, backend="crypten")
    generation = Generation(connection, request)
    assert list(generation) == plain_answer(model, PROMPT[:3], 2)
    planned = planned_cost(model, request.public)
    assert generation.meter is not None
    assert totals(generation.meter.prefill, generation.meter.decode)[:2] == (
        planned.online_bytes,
        planned.correction_bytes,
    )


def test_protocols_follow_the_network_and_stay_as_planned(connection: Connection, model: Path) -> None:
    """A slow network is given fewer rounds and more bytes; of a prompt, one block where there were two."""
    rounds = []
    for network in ("loopback", "200ms,1gbit"):
        request = asking(PROMPT * 14, 2, network=network)
        generation = Generation(connection, request)
        assert list(generation) == plain_answer(model, PROMPT * 14, 2)
        planned = planned_cost(model, request.public)
        assert generation.meter is not None
        measured = totals(generation.meter.prefill, generation.meter.decode)
        assert measured == (planned.online_bytes, planned.correction_bytes, planned.rounds)
        rounds.append(planned.rounds)
    assert rounds[1] < rounds[0]


def test_masked_weights_are_sent_once(connection: Connection, tmp_path: Path) -> None:
    own_state = replace(connection, state=tmp_path)
    first, second = Generation(own_state, asking(PROMPT, 1)), Generation(own_state, asking(PROMPT, 1))
    assert list(first) == list(second)
    assert first.setup_bytes > 0 and second.setup_bytes == 0


def test_sessions_run_side_by_side(connection: Connection, model: Path) -> None:
    prompts = [PROMPT, PROMPT[::-1]]
    generations = [iter(Generation(connection, asking(p, 3))) for p in prompts]
    answers: list[list[int]] = [[], []]
    for _ in range(3):
        for answer, generation in zip(answers, generations, strict=True):
            answer.append(next(generation))
    assert answers == [plain_answer(model, p, 3) for p in prompts]


def test_an_answer_ends_with_the_clients_end_token(connection: Connection, model: Path) -> None:
    tokens = plain_answer(model, PROMPT, 6)
    end = tokens[2]
    generation = Generation(connection, asking(PROMPT, 6, end_tokens=(end,)))
    assert list(generation) == tokens[: tokens.index(end) + 1]
    assert generation.meter is not None and generation.meter.tokens == tokens.index(end) + 1


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (asking(PROMPT, 5, model_digest="0" * 64), "the client wants 0000000000000000"),
        (asking(PROMPT, 5, backend="magic"), "unknown backend 'magic'"),
        (asking(PROMPT, 5, policy=PolicySettings("magic")), "unknown cache policy 'magic'"),
        (asking(PROMPT, 5, policy=MPCacheSettings(budget=20)), "a budget of 20 tokens is below the 27"),
        (asking(PROMPT, 5, network="moon"), "the network 'moon' is none of"),
        (asking(PROMPT, 500), "allows 256 new tokens"),
        (asking(PROMPT, 100, draft=4), "100 with 4 drafts each are up to 496"),
        (asking(PROMPT, 5, policy=policy_settings("tova"), draft=1), "'tova' takes no drafts"),
        (asking([1] * 125, 5), "do not fit the model's 128 positions"),
        (asking([1] * 3000, 5), "allows 2048 prompt tokens"),
        (asking([500], 1), "beyond its vocabulary"),
    ],
)
def test_a_disagreement_is_refused_in_words(connection: Connection, request_: ClientRequest, message: str) -> None:
    with pytest.raises((PeerLost, HandshakeError), match=message):
        list(Generation(connection, request_))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.setattr(handshake, "PROTOCOL_VERSION", 99), "speaks protocol version 6, the client 99"),
        (lambda m: m.setattr(handshake, "batch_digest", lambda *p: ("x", ["x"])), "plan differs from the owner's"),
    ],
)
def test_another_program_is_refused_before_any_secret_moves(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch], None], message: str
) -> None:
    change(monkeypatch)
    generation = Generation(connection, asking(PROMPT, 2))
    with pytest.raises((PeerLost, HandshakeError), match=message):
        list(generation)
    assert generation.setup_bytes == 0


def test_another_precision_is_refused_before_any_secret_moves(connection: Connection) -> None:
    generation = Generation(connection, asking(PROMPT, 2, precision="fixed-point 8 bits"))
    with pytest.raises(PeerLost, match=f"the owner computes with {PRECISION}, not fixed-point 8 bits"):
        list(generation)
    assert generation.setup_bytes == 0


def test_whole_numbers_may_stand_for_fractions(connection: Connection) -> None:
    """The owner reads 0 as 0.0: both must mean the same request."""
    assert len(list(Generation(connection, asking(PROMPT, 1, temperature=0)))) == 1


def test_a_client_that_stops_early_leaves_the_others_well(connection: Connection) -> None:
    generation = iter(Generation(connection, asking(PROMPT, 20)))
    next(generation)
    generation.close()  # type: ignore[attr-defined]
    assert len(list(Generation(connection, asking(PROMPT, 2)))) == 2


LOGIT_ERROR = 0.02
"""See docs/protocols.md."""


@pytest.mark.parametrize("prompts", [slice(1), pytest.param(slice(1, None), marks=pytest.mark.slow)])
def test_stories260k_generates_its_reference_tokens(stories: Path, prompts: slice) -> None:
    chosen = json.loads((stories / "reference.json").read_text())["prompts"][prompts]
    assert chosen
    with local_parties(stories) as where:
        for case in chosen:
            answer = list(Generation(where, asking(case["ids"], 32)))
            for ours, theirs, margin in zip(answer, case["next_ids"], case["margins"], strict=True):
                if ours != theirs:
                    assert margin < LOGIT_ERROR
                    break
