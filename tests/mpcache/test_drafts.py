"""Several tokens a pass: whatever is drafted, the answer is that of one token a step, and its messages are the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from mpcache.generation import passes
from mpcache.generation.loop import Meter, steps
from mpcache.generation.network import parse_network
from mpcache.generation.plan import phase_costs
from mpcache.generation.prefilled import prefilled_cache
from mpcache.generation.price import price
from mpcache.generation.request import MOST_DRAFTS, TAKING_DRAFTS, GenerationRequest, Stop
from mpcache.model.checkpoint import Checkpoint, weight_shapes
from mpcache.model.config import ModelConfig
from mpcache.model.decoder import Decoder
from mpcache.model.shapes import SHAPES
from mpcache.policies import Policy, PolicySettings, available_policies, policy_class, policy_settings
from mpcache.protocols.backends.mpc import MpcBackend
from mpcache.protocols.backends.plain import PlainBackend
from mpcache.protocols.errors import ConfigError, HandshakeError
from mpcache.protocols.plan import PlanSession, ShapeArithmetic
from mpcache.protocols.session import Cost
from tests.asking import asked
from tests.mpcache.policies.matrix import TAKING_DRAFTS as TAKING
from tests.mpcache.policies.matrix import small
from tests.mpcache.policies.private import LOGIT_ERROR, generate_plain, generate_privately, planning_in_full, watch

LLAMA = ModelConfig("llama", 24, 32, 16, 2, 4, 2, 8, 64, 1e-5, "silu")
GPT2 = replace(LLAMA, family="gpt2", key_value_heads=4, activation="gelu_tanh")
PROMPT = [10, 4, 12, 1, 2, 3, 11, 1, 6, 1, 2, 13, 13, 2, 7, 2, 13, 1, 3, 7, 1, 12]
NEW = 12


def random_model(config: ModelConfig, seed: int = 5) -> Checkpoint:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {name: random(*shape) / shape[1] ** 0.5 for name, shape in weight_shapes(config).items()}
    tensors["embedding"] = random(*weight_shapes(config)["embedding"])
    if config.family == "gpt2":
        tensors["position_embedding"] = random(*weight_shapes(config)["position_embedding"])
        tensors["positions"] = tensors["position_embedding"].t()
        tensors |= {
            f"{name}.bias": random(shape[0]) / 4 for name, shape in weight_shapes(config).items() if "." in name
        }
        tensors["head.bias"] = random(config.vocabulary) / 4
    return Checkpoint(config, tensors, "")


MODELS = {config.family: random_model(config) for config in (LLAMA, GPT2)}


def plainly(
    checkpoint: Checkpoint, request: GenerationRequest, stop: Stop | None = None
) -> tuple[list[int | None], int]:
    """Tokens, and passes after the first."""
    decoder, meter = Decoder(checkpoint.config, PlainBackend(), checkpoint.tensors), Meter(Cost)
    tokens = []
    for token in steps(decoder, request, PROMPT, stop=stop, on_pass=meter.drafted):
        meter.token()
        tokens.append(token)
    return tokens, len(meter.steps)


def never(token: int) -> bool:
    """An answer ends when it is as long as it may be, then; where its length is fixed, no stop is given at all."""
    return False


Guess = Callable[[list[int], int], list[int]]
"""(the tokens that are right, whatever is asked for) to drafts."""
GUESSES: dict[str, Guess] = {
    "all right": lambda right, number: right,
    "all wrong": lambda right, number: [(token + 1) % 24 for token in right],
    "the first right": lambda right, number: [*right[:1], *((token + 1) % 24 for token in right[1:])],
    "right now and then": lambda right, number: [
        (token + (i * 5 + number * 3) % 2) % 24 for i, token in enumerate(right)
    ],
}


def guess(monkeypatch: pytest.MonkeyPatch, answer: Sequence[int | None], made: Guess) -> None:
    """Have drafts made from the right answer."""

    class Guesser:
        def __init__(self, prompt: Sequence[int], room: int) -> None:
            assert list(prompt) == PROMPT
            self.known, self.number = 0, 0

        def add(self, tokens: Sequence[int]) -> None:
            self.known += len(tokens)

        def draft(self, count: int) -> list[int]:
            self.number += 1
            right = [*(token or 0 for token in answer), *[0] * count][self.known : self.known + count]
            return made(right, self.number)

    monkeypatch.setattr(passes, "PromptLookup", Guesser)


def test_policies_whose_steps_only_add_to_the_cache_take_drafts() -> None:
    assert {settings.name for settings in TAKING.values()} == {"full", "snapkv", "keydiff", "random", "mpcache"}
    assert {name for name in TAKING if name.startswith("mpcache")} == {
        "mpcache, static only",
        "mpcache, per head, static only",
        "mpcache, answer beside clusters",
        "mpcache, answer beside clusters in stripes",
    }


# ---------------------------------------------------------------- in plaintext


@pytest.mark.parametrize("made", [*GUESSES, "looked up"])
@pytest.mark.parametrize("draft", [1, 2, 4, 7])
@pytest.mark.parametrize("family", MODELS)
def test_the_answer_is_that_of_one_token_a_step(
    monkeypatch: pytest.MonkeyPatch, family: str, draft: int, made: str
) -> None:
    request = asked(len(PROMPT), NEW, prefill_block=16)
    expected, single = plainly(MODELS[family], request)
    assert single == NEW - 1
    if made in GUESSES:
        guess(monkeypatch, expected, GUESSES[made])
    tokens, taken = plainly(MODELS[family], replace(request, draft=draft), never)
    assert tokens == expected
    assert -(-(NEW - 1) // (draft + 1)) <= taken <= NEW - 1
    if made == "all right":
        assert taken == -(-(NEW - 1) // (draft + 1))
    if made == "all wrong":
        assert taken == NEW - 1
    if made == "the first right":
        assert taken == -(-(NEW - 1) // 2)


@pytest.mark.parametrize("settings", TAKING.values(), ids=TAKING)
def test_every_policy_that_takes_drafts_answers_as_without(
    monkeypatch: pytest.MonkeyPatch, settings: PolicySettings
) -> None:
    request = asked(len(PROMPT), NEW, prefill_block=16, policy=settings)
    expected, _ = plainly(MODELS["llama"], request)
    guess(monkeypatch, expected, GUESSES["right now and then"])
    tokens, taken = plainly(MODELS["llama"], replace(request, draft=3), never)
    assert tokens == expected and taken < NEW - 1


@pytest.mark.parametrize("end", range(NEW))
@pytest.mark.parametrize("draft", [2, 5])
def test_an_answer_ends_where_it_would_in_the_middle_of_a_draft(
    monkeypatch: pytest.MonkeyPatch, draft: int, end: int
) -> None:
    whole, _ = plainly(MODELS["gpt2"], asked(len(PROMPT), NEW))
    request, last = asked(len(PROMPT), NEW), whole[end]
    expected, _ = plainly(MODELS["gpt2"], request, lambda token: token == last)
    guess(monkeypatch, whole, GUESSES["all right"])
    tokens, taken = plainly(MODELS["gpt2"], replace(request, draft=draft), lambda token: token == last)
    assert tokens == expected
    assert taken == -(-(len(expected) - 1) // (draft + 1)), "no pass comes after the end"


@pytest.mark.parametrize("new", range(1, 9))
def test_an_answer_is_no_longer_than_it_may_be(monkeypatch: pytest.MonkeyPatch, new: int) -> None:
    whole, _ = plainly(MODELS["llama"], asked(len(PROMPT), NEW))
    guess(monkeypatch, whole, GUESSES["all right"])
    tokens, taken = plainly(MODELS["llama"], asked(len(PROMPT), new, draft=3), never)
    assert tokens == whole[:new] and taken == -(-(new - 1) // 4)


def test_a_draft_may_reach_beyond_the_models_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    for family, checkpoint in MODELS.items():
        short = replace(checkpoint.config, max_positions=len(PROMPT) + NEW)
        tensors = dict(checkpoint.tensors)
        if family == "gpt2":
            tensors["position_embedding"] = tensors["position_embedding"][:, : short.max_positions]
            tensors["positions"] = tensors["position_embedding"].t()
        model, request = Checkpoint(short, tensors, ""), asked(len(PROMPT), NEW, draft=5)
        request.check_for(short)
        assert plainly(model, request, never)[0] == plainly(model, replace(request, draft=0))[0]


@pytest.mark.parametrize("made", GUESSES)
def test_all_passes_are_made_where_their_number_is_fixed(monkeypatch: pytest.MonkeyPatch, made: str) -> None:
    """Whatever was right, and wherever the answer ended."""
    whole, _ = plainly(MODELS["llama"], asked(len(PROMPT), NEW))
    guess(monkeypatch, whole, GUESSES[made])
    for draft, most in ((3, 0), (3, 4), (2, 1)):
        request = asked(len(PROMPT), NEW, draft=draft, max_passes=most)
        tokens, taken = plainly(MODELS["llama"], request)
        assert taken == request.passes == (most or NEW - 1)
        assert tokens == whole[: len(tokens)] and len(tokens) > most


def test_passes_end_at_their_most(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = plainly(MODELS["llama"], asked(len(PROMPT), NEW))
    guess(monkeypatch, whole, GUESSES["all right"])
    assert plainly(MODELS["llama"], asked(len(PROMPT), NEW, draft=1, max_passes=3), never) == (whole[:7], 3)


class Sampling(PlainBackend):
    """Noise that follows from what there is to choose from: so that what is drawn is the same on every way there."""

    def _noisy(self, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        seed = hash(tuple(logits.argsort().tolist()))
        uniform = torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed))
        return logits - temperature * torch.log(-torch.log(uniform))


def test_with_a_temperature_each_place_draws_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn after the same text is drawn alike, drafts or not: so the answers are distributed alike."""
    checkpoint = MODELS["llama"]
    request = asked(len(PROMPT), NEW, temperature=2.0)

    def answer(draft: int) -> list[int | None]:
        decoder = Decoder(checkpoint.config, Sampling(), checkpoint.tensors)
        return list(steps(decoder, replace(request, draft=draft), PROMPT, stop=never))

    expected = answer(0)
    assert expected != plainly(checkpoint, request)[0]
    guess(monkeypatch, expected, GUESSES["right now and then"])
    assert answer(3) == expected


# ---------------------------------------------------------------- on secret shares


def planned_transcript(checkpoint: Checkpoint, request: GenerationRequest) -> tuple[list[Any], Cost]:
    session = planning_in_full()
    session.round_bytes = request.round_bytes
    planned = watch(session)
    list(steps(Decoder(checkpoint.config, MpcBackend(session)), request, None))
    return planned, session.cost


@pytest.mark.parametrize("family", MODELS)
def test_privately_the_answer_is_that_of_plaintext_and_messages_do_not_tell_what_was_right(
    monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    checkpoint, single = MODELS[family], asked(len(PROMPT), 6, prefill_block=16)
    plain = generate_plain(checkpoint, single, PROMPT)
    assert min(plain.margins) > LOGIT_ERROR, "the test's own model is too close to a tie"
    request = replace(single, draft=2, max_passes=3)
    planned, cost = planned_transcript(checkpoint, request)
    found = []
    for made in ("all right", "right now and then", "all wrong"):
        guess(monkeypatch, plain.tokens, GUESSES[made])
        private = generate_privately(checkpoint, request, PROMPT, record=False)
        assert private.tokens == plain.tokens[: len(private.tokens)]
        assert private.transcript == planned and private.cost == cost
        found.append(len(private.tokens))
    assert found[0] == 6 and found[2] == 4 and 4 < found[1] <= 6


@pytest.mark.slow
@pytest.mark.parametrize("settings", TAKING.values(), ids=TAKING)
def test_privately_every_policy_that_takes_drafts_answers_as_in_plaintext(
    monkeypatch: pytest.MonkeyPatch, settings: PolicySettings
) -> None:
    checkpoint, single = MODELS["llama"], asked(len(PROMPT), 6, prefill_block=16, policy=settings)
    plain = generate_plain(checkpoint, single, PROMPT)
    guess(monkeypatch, plain.tokens, GUESSES["right now and then"])
    request = replace(single, draft=3, max_passes=3)
    private = generate_privately(checkpoint, request, PROMPT, record=False)
    close = [margin < LOGIT_ERROR for margin in plain.margins]
    until = close.index(True) if True in close else len(plain.tokens)
    assert until > 2 and private.tokens[:until] == plain.tokens[: min(until, len(private.tokens))]
    planned, cost = planned_transcript(checkpoint, request)
    assert private.transcript == planned and private.cost == cost


@pytest.mark.parametrize("network", ["loopback", "wan"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_price_equals_the_plan_of_all_layers(family: str, network: str) -> None:
    model = replace(SHAPES["tiny"], family=family, layers=5, activation="gelu_tanh")
    if family == "llama":
        model = replace(model, activation="silu")
    request = asked(40, 5, draft=3, network=network, max_passes=3, prefill_block=16)
    prices = price(model, request)
    assert len(prices.decode) == 3
    assert sum([prices.prefill.cost, prices.eviction.cost, prices.decoding.cost], Cost()) == sum(
        phase_costs(model, request), Cost()
    )


def told(model: ModelConfig, request: GenerationRequest, right: int) -> Cost:
    """Of a pass after so many tokens of the answer, if both parties knew which those are: positions and the cache's
    tokens are public."""
    session = PlanSession(listed=False)
    session.round_bytes = request.round_bytes
    decoder = Decoder(model, MpcBackend(session))
    with ShapeArithmetic():
        zeros = decoder.backend.zeros
        cache = prefilled_cache(decoder, request.policy, request.prompt_tokens, zeros)
        cache.advance(request.prompt_tokens)
        if right:
            decoder.blocks(zeros((right, model.hidden)), cache)
        before = session.cost.copy()
        decoder.next_tokens(decoder.forward(None, request.draft + 1, cache))
        decoder.backend.announce(None)
    return session.cost - before


@pytest.mark.parametrize("network", ["lan", "wan"])
@pytest.mark.parametrize("family", MODELS)
def test_hiding_what_was_right_costs_less_than_a_fifth_more_than_telling_it(family: str, network: str) -> None:
    """After 24 passes of which nothing was right, which telling gains most from: docs/drafts.md has larger models."""
    model = replace(SHAPES["gpt2"], family=family, layers=1, max_positions=4096)
    request = asked(512, 26, draft=4, network=network)
    link, last = parse_network(network), price(model, request).decode[24].cost
    hidden, open_ = (link.seconds(c.rounds, c.online_bytes) for c in (last, told(model, request, 24)))
    assert open_ < hidden < 1.2 * open_
    assert last.correction_bytes < 1.2 * told(model, request, 24).correction_bytes


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("policy", TAKING_DRAFTS)
def test_the_policies_that_are_named_take_drafts(policy: str) -> None:
    asked(40, 5, policy=policy_settings(policy), draft=1).check_values()


def test_a_policy_that_cannot_take_drafts_says_why() -> None:
    for name in set(available_policies()) - {"full", "snapkv", "keydiff", "random"}:
        request = asked(40, 5, policy=small(name))
        request.check_values()
        with pytest.raises(ConfigError, match=rf"'{name}' takes no drafts, as .*: leave out draft, or take one"):
            replace(request, draft=1).check_values()


def test_a_policy_of_ones_own_takes_drafts_if_it_leaves_steps_as_they_are() -> None:
    class Newest(policy_class("full")):  # type: ignore[misc]
        name = "newest"

    class Stepping(Newest):
        def step(self, *arguments: Any) -> Any:
            return super().step(*arguments)

    assert Newest.refuses_drafts(PolicySettings("newest")) == ""
    assert issubclass(Stepping, Policy) and "wrong draft" in Stepping.refuses_drafts(PolicySettings("newest"))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"draft": -1}, f"between 0 and {MOST_DRAFTS} tokens, not -1"),
        ({"draft": MOST_DRAFTS + 1}, f"between 0 and {MOST_DRAFTS} tokens, not 17"),
        ({"draft": 2, "max_passes": 5}, "5 new tokens take 1 to 4 passes after the first"),
        ({"draft": 2, "max_passes": -1}, "max_passes cannot be -1"),
        ({"max_passes": 2}, "lower max_new_tokens in place of max_passes"),
        ({"draft": 1, "backend": "crypten"}, "'crypten' takes no drafts"),
    ],
)
def test_what_a_peer_asks_for_is_bounded(facts: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        asked(4, 5, **facts).check_values()
    with pytest.raises(HandshakeError, match=message):
        asked(4, 5, **facts).check("owner", LLAMA, 10, 100, 64)


def test_a_party_bounds_the_places_that_are_answered_for() -> None:
    """As a client learns the next token after wrong drafts, too."""
    request = asked(4, 5, draft=3)
    assert (request.passes, request.answered, request.cached) == (4, 17, 21)
    request.check("owner", LLAMA, 10, 17, 64)
    with pytest.raises(HandshakeError, match="allows 16 new tokens, and 5 with 3 drafts each are up to 17"):
        request.check("owner", LLAMA, 10, 16, 64)
    replace(request, max_passes=2).check("owner", LLAMA, 10, 9, 64)


def test_without_drafts_each_token_is_a_pass_and_a_place() -> None:
    request = asked(4, 5)
    assert (request.passes, request.answered, request.cached) == (4, 5, request.tokens)
