"""The CrypTen baseline: near plaintext where its approximations hold, and where they do not."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mpcache.generation.loop import steps
from mpcache.generation.request import FULL
from mpcache.model.checkpoint import weight_shapes
from mpcache.model.config import ModelConfig
from mpcache.model.decoder import Decoder
from mpcache.model.rotary import rotary_tables
from mpcache.policies import new_cache
from mpcache.protocols.backends.crypten import CryptenBackend
from mpcache.protocols.backends.interface import KeyValues
from mpcache.protocols.backends.plain import PlainBackend
from mpcache.protocols.crypten.dry_run import DryRunSession
from mpcache.protocols.errors import PlanError
from mpcache.protocols.local import run_parties
from mpcache.protocols.session import Cost, Session
from tests.asking import asked

PLAIN = PlainBackend()
G = torch.Generator().manual_seed(7)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=G)


def run_backend(
    operation: Callable[..., Any], *values: torch.Tensor, owner: dict[str, Any] | None = None
) -> tuple[torch.Tensor, Cost]:
    """(revealed result, party 0's cost) of operation(backend, *secrets); `owner`: options that party 0 alone knows."""

    def program(session: Session) -> tuple[torch.Tensor, Cost]:
        backend = CryptenBackend(session)
        known = owner or {}
        options = known if session.party == 0 else dict.fromkeys(known)
        secrets = [
            backend.input(v if session.party == i % 2 else None, v.shape, party=i % 2) for i, v in enumerate(values)
        ]
        before = session.cost.copy()
        result = operation(backend, *secrets, **options)
        return backend.reveal(result), session.cost - before

    (first, cost), (second, _) = run_parties(program)
    assert torch.equal(first, second)
    return first, cost


def error_of(operation: Callable[..., Any], *values: torch.Tensor, **owner: Any) -> float:
    """Largest difference from the plain backend."""
    result, _ = run_backend(operation, *values, owner=owner)
    expected = operation(PLAIN, *values, **owner)
    assert result.shape == expected.shape
    return float((result - expected).abs().max())


# ---------------------------------------------------------------- layers


def test_linear_with_a_bias_that_the_owner_alone_knows() -> None:
    x, weight, bias = normal(3, 8), normal(5, 8), normal(5)
    assert error_of(lambda b, x, w, bias: b.linear(x, w, bias), x, weight, bias=bias) < 1e-3
    assert error_of(lambda b, x, w: b.linear(x, w), x, weight) < 1e-3


def test_every_product_with_a_weight_opens_all_of_it() -> None:
    """CrypTen's masks are used once, so the weight is sent again for each product: 8 bytes an element, both ways."""
    x, weight = normal(1, 64), normal(32, 64)
    _, cost = run_backend(lambda b, x, w: b.linear(x, w), x, weight)
    revealed = 8 * 32
    assert cost == Cost(8 * (64 + 32 * 64) + revealed, 8 * (64 + 32 * 64) + revealed, 8 * 32, 2)


def test_embedding_of_tokens_that_the_client_alone_knows() -> None:
    table, tokens = normal(6, 11), [3, 0, 10]

    def program(session: Session) -> torch.Tensor | None:
        backend = CryptenBackend(session)
        secret = backend.weight("embedding", (6, 11), table if session.party == 0 else None)
        return backend.reveal(backend.embed(tokens if session.party == 1 else None, 3, secret))

    for result in run_parties(program):
        assert result is not None and (result - table[:, tokens].t()).abs().max() < 1e-3


def test_the_norm() -> None:
    x = normal(4, 32) * 3 + 1
    assert error_of(lambda b, x: b.rms_norm(x, 1e-3), x) < 0.02


def test_rotary_positions() -> None:
    assert error_of(lambda b, x: b.rotate(x, *rotary_tables(100.0, 4, 0, 5)), normal(2, 5, 4)) < 1e-3


def test_products_and_known_summands() -> None:
    x, y, known = normal(3, 4) * 10, normal(3, 4), normal(3, 4)
    assert error_of(lambda b, x, y, known: b.add_known(b.multiply(x, y), known), x, y, known=known) < 1e-3


@pytest.mark.parametrize("kind, bound, error", [("silu", 20, 0.01), ("gelu_tanh", 15, 0.01), ("gelu", 0.5, 0.01)])
def test_activations_near_zero(kind: str, bound: float, error: float) -> None:
    assert error_of(lambda b, x: b.activation(x, kind), torch.linspace(-bound, bound, 81)) < error


@pytest.mark.parametrize("masked", [False, True])
def test_attention_over_a_cache_that_grew(masked: bool) -> None:
    q, k, v = normal(2, 6, 4), normal(2, 5, 4), normal(2, 5, 4)
    visible = torch.ones(6, 5).tril(1).bool() if masked else None

    def operation(b: Any, q: Any, k: Any, v: Any) -> Any:
        cached = b.append(None, k[:, :3], v[:, :3])
        cached = b.append(cached, k[:, 3:], v[:, 3:])
        assert isinstance(cached, KeyValues) and cached.tokens == 5
        return b.attend(q, cached, visible)

    assert error_of(operation, q, k, v) < 0.02


def test_parts_are_joined() -> None:
    assert error_of(lambda b, x, y: b.concatenate([x, y], 1), normal(2, 3), normal(2, 4)) < 1e-4


# ---------------------------------------------------------------- a sparse prefill


@pytest.mark.parametrize("picks", [1, 2])
def test_runs_are_chosen_in_stripes_and_gathered(picks: int) -> None:
    """Of six runs of two tokens, in two stripes, between one token before them and two after."""
    means, keys, values = normal(2, 6, 4) * 3, normal(2, 15, 4), normal(2, 15, 4)

    def gathered(b: Any, queries: Any, means: Any, keys: Any, values: Any) -> Any:
        choice = b.choose_runs(queries, b.mask(means), 2, picks)
        found = b.gather_runs(b.append(None, keys, values), 1, 13, choice)
        assert found.tokens == 3 + 2 * picks * 2
        return b.concatenate([found.keys, found.values], 2)

    for _ in range(3):
        assert error_of(gathered, normal(2, 3, 4), means, keys, values) < 1e-3


# ---------------------------------------------------------------- the next token


def choose(temperature: float) -> tuple[int | None, int | None]:
    x, head, bias = normal(1, 8), normal(23, 8), normal(23)
    expected = int((x @ head.t() + bias).argmax())

    def program(session: Session) -> list[int] | None:
        backend = CryptenBackend(session)
        owner = session.party == 0
        secret = backend.input(x if owner else None, x.shape, 0)
        weight = backend.weight("head", (23, 8), head if owner else None)
        return backend.next_tokens(secret, weight, bias if owner else None, 23, temperature)

    at_owner, at_client = run_parties(program)
    assert at_owner is None, "the owner must not learn a token"
    return at_client and at_client[0], expected


def test_the_client_alone_learns_the_best_token() -> None:
    token, expected = choose(0.0)
    assert token == expected


def test_a_high_temperature_samples() -> None:
    tokens = {choose(1000.0)[0] for _ in range(6)}
    assert len(tokens) > 1 and all(t is not None and 0 <= t < 23 for t in tokens)


@pytest.mark.parametrize(("found", "token"), [(-1.0, 22), (23.0, 0), (2.0**40, 2**40 % 23)])
def test_what_is_no_token_is_made_one_in_silence(monkeypatch: pytest.MonkeyPatch, found: float, token: int) -> None:
    """Else the client would fail on it, which its owner, who may have chosen weights for it, would see."""
    monkeypatch.setattr(CryptenBackend, "linear", lambda backend, *_: None)
    monkeypatch.setattr(CryptenBackend, "_run", lambda backend, *_: torch.tensor([found]))
    assert run_parties(lambda s: CryptenBackend(s).next_tokens(None, None, None, 23, 0.0))[1] == [token]  # type: ignore[arg-type]


@pytest.mark.parametrize("goes_on", [True, False])
def test_the_client_says_whether_it_goes_on(goes_on: bool) -> None:
    heard = run_parties(lambda s: CryptenBackend(s).announce(goes_on if s.party == 1 else None))
    assert heard == (goes_on, goes_on)


def test_an_input_without_a_value_is_refused() -> None:
    with pytest.raises(PlanError, match="party 0 has no value"):
        run_parties(lambda s: CryptenBackend(s).weight("w", (2, 2), None), timeout=1)


# ---------------------------------------------------------------- where CrypTen's approximations end


def function_of(name: str, values: list[float]) -> torch.Tensor:
    """CrypTen's function of that name, as the backend runs it."""
    return run_backend(lambda b, x: b._map(lambda a: getattr(a, name)(), x), torch.tensor(values))[0]


def test_softmax_holds_for_few_scores() -> None:
    scores = normal(3, 20) * 3
    assert error_of(lambda b, x: b.softmax(x) if b is not PLAIN else x.softmax(-1), scores) < 0.02


@pytest.mark.parametrize("count", [256, 1024])
def test_softmax_of_many_equal_scores_is_far_off(count: int) -> None:
    result, _ = run_backend(lambda b, x: b.softmax(x), torch.zeros(1, count))
    assert (result * count - 1).abs().max() > 1000


def test_exp_is_a_power_that_turns_round() -> None:
    x = torch.tensor([-0.5, -2.0, -4.0, -7.0])
    ratio = function_of("exp", x.tolist()) / x.exp()
    assert (ratio - torch.exp(-x * x / 512)).abs().max() < 0.03  # (1 + x/256)^256 against e^x
    assert function_of("exp", [-30.0, -256.0, -480.0]).abs().max() < 1e-3
    assert function_of("exp", [-520.0]).item() > 1000


def test_reciprocal_and_inverse_root_have_a_narrow_range() -> None:
    x = torch.tensor([0.1, 1.0, 7.0, 50.0])
    assert (function_of("reciprocal", x.tolist()) * x - 1).abs().max() < 0.05
    assert (function_of("inv_sqrt", x.tolist()) * x.sqrt() - 1).abs().max() < 0.02
    assert abs(function_of("reciprocal", [1000.0]).item() * 1000 - 1) > 0.5


def test_erf_is_wrong_beyond_one_and_below_zero() -> None:
    """CrypTen's x^5 is (x^3)^2 = x^6, so its odd powers above the third have the wrong size and sign."""
    assert abs(function_of("erf", [0.5]).item() - 0.5205) < 0.01
    assert abs(function_of("erf", [2.5]).item() - 0.9996) > 10
    assert abs(function_of("erf", [-1.0]).item() + 0.8427) > 0.1


# ---------------------------------------------------------------- a whole model


PROMPT = [5, 17, 40, 3, 3]
CONFIG = ModelConfig(
    family="llama", vocabulary=48, hidden=32, intermediate=40, layers=1, heads=4, key_value_heads=2, head_size=8,
    max_positions=16, norm_epsilon=1e-5, activation="silu",
)  # fmt: skip
MODELS = {"llama": CONFIG, "gpt2": replace(CONFIG, family="gpt2", key_value_heads=4, activation="gelu_tanh")}


def random_tensors(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Weights whose mean squares stay inside the range of CrypTen's inverse square root."""
    shapes = weight_shapes(config)
    tensors = {name: normal(*shape) / shape[1] ** 0.5 for name, shape in shapes.items()}
    tensors["embedding"] = normal(*shapes["embedding"])
    if config.family == "gpt2":
        tensors["positions"] = normal(config.max_positions, config.hidden)
        tensors |= {f"{name}.bias": normal(shape[0]) * 0.1 for name, shape in shapes.items() if name != "embedding"}
    return tensors


@pytest.mark.parametrize("family", MODELS)
def test_a_model_runs_as_planned_and_near_plaintext(family: str) -> None:
    config, plan = MODELS[family], asked(len(PROMPT), 2, prefill_block=3)
    tensors = random_tensors(config)
    plain = Decoder(config, PLAIN, tensors)
    expected = plain.forward(PROMPT, len(PROMPT), new_cache(FULL, plain, len(PROMPT)))

    def program(session: Session) -> tuple[list[int | None], Cost, torch.Tensor | None]:
        backend = CryptenBackend(session)
        owner = session.party == 0
        decoder = Decoder(config, backend, tensors if owner else None)
        tokens = list(steps(decoder, plan, None if owner else PROMPT))
        cost = session.cost.copy()
        hidden = decoder.forward(None if owner else PROMPT, len(PROMPT), new_cache(FULL, decoder, len(PROMPT)))
        return tokens, cost, backend.reveal(hidden)

    (at_owner, cost, hidden), (at_client, _, _) = run_parties(program)
    assert hidden is not None and (hidden - expected).abs().max() < 0.02
    assert at_owner == [None, None] and all(t is not None for t in at_client)

    session = DryRunSession()
    list(steps(Decoder(config, CryptenBackend(session)), plan, None))
    assert session.plan.cost() == cost
