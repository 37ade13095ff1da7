from dataclasses import replace

import pytest

from mpcache.generation.network import parse_network
from mpcache.generation.plan import phase_costs
from mpcache.generation.price import Price, Prices, price, seconds
from mpcache.generation.request import FULL, GenerationRequest
from mpcache.model.config import ModelConfig
from mpcache.model.shapes import SHAPES, model_shape
from mpcache.policies import PolicySettings, available_policies
from mpcache.protocols.errors import ConfigError
from mpcache.protocols.session import Cost
from tests.mpcache.policies.matrix import fitting

SMALL = replace(SHAPES["tiny"], layers=7)
FEW = dict(budget=24, sinks=2, recent=8, page=4, clusters=(8, 4), window=8, cluster=2, called=1)


def whole(prices: Prices) -> Cost:
    return sum([prices.prefill.cost, prices.eviction.cost, prices.decoding.cost], Cost())


def asked(prompt: int, new: int, policy: PolicySettings = FULL) -> GenerationRequest:
    """new: tokens after the first."""
    return GenerationRequest(prompt_tokens=prompt, max_new_tokens=new + 1, policy=policy, prefill_block=16)


def planned(model: ModelConfig, request: GenerationRequest) -> Cost:
    return sum(phase_costs(model, request), Cost())


@pytest.mark.parametrize("name", available_policies())
def test_a_price_from_few_layers_equals_the_plan_of_all(name: str) -> None:
    policy = fitting(name, **FEW)
    request = asked(70, 10, policy)
    assert whole(price(SMALL, request)) == planned(SMALL, request)


@pytest.mark.parametrize("prompt", [1, 15, 33, 130, 257])
@pytest.mark.parametrize("heads", [3, 4])
def test_prompts_of_any_number_of_blocks(prompt: int, heads: int) -> None:
    """Three heads are places that are no multiple of eight in a block that is not full."""
    model = replace(SMALL, heads=heads, key_value_heads=heads, hidden=8 * heads)
    for policy in (FULL, fitting("mpcache", **FEW)):
        assert whole(price(model, asked(prompt, 2, policy))) == planned(model, asked(prompt, 2, policy))


@pytest.mark.parametrize(
    "changes",
    [
        {"share_layers": 3, "skip_layers": 1},
        {"share_layers": 2, "unshared_layers": 1},
        {"share_layers": 1, "keep_ratio": 1.0},
        {"share_layers": 5, "unshared_layers": 1, "skip_layers": 1},
        {"clusters": (), "per_head": True},
    ],
)
def test_mpcaches_layers_repeat_as_its_settings_say(changes: dict[str, object]) -> None:
    policy = fitting("mpcache", **{**FEW, **changes})
    request = asked(70, 3, policy)
    assert whole(price(SMALL, request)) == planned(SMALL, request)


@pytest.mark.parametrize("layers", [3, 7, 8])
def test_layers_that_share_what_a_block_of_the_prompt_reads(layers: int) -> None:
    model, policy = replace(SMALL, layers=layers), fitting("snapkv", **FEW, prefill_budget=140)
    request = asked(250, 2, policy)
    assert whole(price(model, request)) == planned(model, request)


def test_a_gpt2_shape_and_a_prompt_of_one_block() -> None:
    model = replace(SHAPES["tiny"], family="gpt2", activation="gelu_tanh", key_value_heads=4, layers=4)
    assert whole(price(model, asked(9, 2))) == planned(model, asked(9, 2))


def test_another_backend_than_ours_has_no_price() -> None:
    with pytest.raises(ConfigError, match="only the backend 'mpc'"):
        price(SMALL, replace(asked(9, 2), backend="crypten"))


def test_seconds_grow_with_each_of_rounds_bytes_and_distance() -> None:
    loopback, lan = parse_network("loopback"), parse_network("lan")
    few = Price({"linear": Cost(1000, 1000, 100, 3)})
    more = few + Price({"attention": Cost(1000, 0, 0, 0)})
    assert seconds(few, lan) < seconds(more, lan) and seconds(few, loopback) < seconds(few, lan)


def test_networks_are_read_and_refused_in_words() -> None:
    network = parse_network("5ms,100mbit")
    assert (network.round_trip, network.bandwidth) == (0.005, 12.5e6)
    assert network.seconds(10, 12_500_000) == pytest.approx(1.025)
    for text in ("moon", "5,100mbit", "5ms", "5ms,0mbit", "-1ms,1gbit"):
        with pytest.raises(ConfigError, match="the network"):
            parse_network(text)


def test_an_unknown_shape_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="neither a known shape"):
        model_shape("gpt9")
