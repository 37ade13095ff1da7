"""What a model of any size will take, by phase and part, from its shape alone: `mpcache plan`.

A generation's plan is the program itself, run on shapes (plan.py). Here a model of many layers is priced from two of
few: every layer sends what the others send (policies that treat layers differently say how they repeat), so
that costs grow by the same amount with each repetition. Prefill, eviction and each decode step are planned apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from mpcache.generation.loop import decode, decoding, prefill
from mpcache.generation.network import Network
from mpcache.generation.prefilled import prefilled_cache
from mpcache.generation.request import GenerationRequest
from mpcache.model.config import ModelConfig
from mpcache.model.decoder import Decoder
from mpcache.policies import Policy, new_cache, policy_class
from mpcache.policies.reading import ALONE, SHARED
from mpcache.protocols.backends.mpc import MpcBackend
from mpcache.protocols.errors import ConfigError
from mpcache.protocols.plan import Passages, PlanSession, ShapeArithmetic
from mpcache.protocols.session import Cost

Parts = dict[str, Cost]


@dataclass(frozen=True)
class Price:
    """Cost of a phase by part, as party 0 counts it, and the multiply-adds of its weights' products.

    multiply_adds: of one party; the dealer does as many.
    """

    parts: Parts = field(default_factory=dict)
    multiply_adds: int = 0

    @property
    def cost(self) -> Cost:
        return sum(self.parts.values(), Cost())

    def __add__(self, other: Price) -> Price:
        return self._with(other, 1)

    def __sub__(self, other: Price) -> Price:
        return self._with(other, -1)

    def _with(self, other: Price, sign: int) -> Price:
        names = dict.fromkeys([*self.parts, *other.parts])
        parts = {n: self.parts.get(n, Cost()) + other.parts.get(n, Cost()).times(sign) for n in names}
        return Price(parts, self.multiply_adds + sign * other.multiply_adds)

    def shared(self, count: int) -> Price:
        """Of so many generations that share their rounds."""
        parts = {n: replace(c.times(count), rounds=c.rounds) for n, c in self.parts.items()}
        return Price(parts, self.multiply_adds * count)

    def times(self, count: int) -> Price:
        return Price({n: c.times(count) for n, c in self.parts.items()}, self.multiply_adds * count)


@dataclass(frozen=True)
class Prices:
    """prefill: with the first token, without eviction. eviction: once, after the prefill. decode: each step, or each
    pass with drafts."""

    prefill: Price
    eviction: Price
    decode: list[Price]

    @property
    def decoding(self) -> Price:
        return sum(self.decode, Price())

    @property
    def total(self) -> Price:
        return self.prefill + self.eviction + self.decoding


def price(model: ModelConfig, request: GenerationRequest) -> Prices:
    """Exact, without running anything: equal to the plan of the whole generation, and so to the byte to a run.

    Cost: seconds, whatever the number of layers. Raises ConfigError for another backend than `mpc`.
    """
    if request.backend != "mpc":
        raise ConfigError(f"only the backend 'mpc' has prices, not {request.backend!r}")
    request = settled(model, request)
    offset, period = request.policy.layer_pattern()
    return Prices(
        _scaled(model, request, *_reading_pattern(request), _prefill)[0],
        _planned(model, request, _eviction)[0],
        _scaled(model, request, offset, period, _decode) if request.max_new_tokens > 1 else [],
    )


def settled(model: ModelConfig, request: GenerationRequest) -> GenerationRequest:
    """With what the policy decides for the whole model, see `Policy.settled`."""
    policy, n = request.policy, request.prompt_tokens
    return replace(request, policy=policy_class(policy.name).settled(policy, model, n, request.round_bytes))


def _reading_pattern(request: GenerationRequest) -> tuple[int, int]:
    """As `PolicySettings.layer_pattern`, of the prompt's blocks."""
    return (ALONE, SHARED) if request.policy.prefill_budget else (0, 1)


_Phase = Callable[[GenerationRequest, Decoder, "_Counter"], Iterator[Price]]
"""Runs a part of a generation on shapes, and yields its prices."""


def _scaled(model: ModelConfig, request: GenerationRequest, offset: int, period: int, phase: _Phase) -> list[Price]:
    """The phase's prices at the model's layers, from models of one and of two repetitions of the pattern."""
    rest = (model.layers - offset) % period
    few, more = offset + rest + period, offset + rest + 2 * period
    if model.layers <= more:
        return _planned(model, request, phase)
    repetitions = (model.layers - few) // period
    small, large = (_planned(replace(model, layers=layers), request, phase) for layers in (few, more))
    return [one + (other - one).times(repetitions) for one, other in zip(small, large, strict=True)]


_PASSAGES = Passages(1 << 14)
"""Costs of what was planned for one number of layers, and is repeated for another, and for another policy."""


def _planned(model: ModelConfig, request: GenerationRequest, phase: _Phase) -> list[Price]:
    session = PlanSession(passages=_PASSAGES, listed=False)
    session.round_bytes = request.round_bytes
    decoder = Decoder(model, MpcBackend(session))
    with ShapeArithmetic():
        return list(phase(request, decoder, _Counter(session, model)))


class _Counter:
    """Prices from one call of `since` to the next."""

    def __init__(self, session: PlanSession, model: ModelConfig) -> None:
        self._session, self._model = session, model
        self._before: Parts = {}

    def since(self, forwards: int = 0, embeddings: int = 0, heads: int = 0) -> Price:
        """forwards, embeddings: tokens that went through the layers, the embedding; heads: logits computed."""
        self._session.next_part()
        now = {name: part.cost.copy() for name, part in self._session.parts.items()}
        parts = {name: cost - self._before.get(name, Cost()) for name, cost in now.items()}
        self._before = now
        m = self._model
        work = forwards * layer_weights(m) * m.layers + (embeddings + heads) * m.vocabulary * m.hidden
        return Price({name: cost for name, cost in parts.items() if cost != Cost()}, work)


def layer_weights(model: ModelConfig) -> int:
    """Weights of a layer: multiply-adds of one token."""
    attention = model.heads * model.head_size
    qkv = attention + 2 * model.key_value_heads * model.head_size
    wide = 3 if model.family == "llama" else 2
    return model.hidden * (qkv + attention + wide * model.intermediate)


def _prefill(request: GenerationRequest, decoder: Decoder, counter: _Counter) -> Iterator[Price]:
    cache = new_cache(request.policy, decoder, request.prompt_tokens)
    cache.evict = lambda: None  # type: ignore[method-assign]  # priced apart
    total, before, x = Price(), 0, None
    for done, x in prefill(decoder, request, None, cache):
        total = total + counter.since(forwards=done - before, embeddings=done - before)
        before = done
    assert x is not None, "a prompt has a token"
    next(decode(decoder, request, x, cache))
    yield total + counter.since(heads=1)


def _eviction(request: GenerationRequest, decoder: Decoder, counter: _Counter) -> Iterator[Price]:
    _filled(request, decoder, counter)
    yield counter.since()


def _decode(request: GenerationRequest, decoder: Decoder, counter: _Counter) -> Iterator[Price]:
    cache, m = _filled(request, decoder, counter), request.draft + 1
    tokens = decoding(decoder, request, None, decoder.backend.zeros((1, decoder.config.hidden)), cache)
    next(tokens)  # priced with the prefill
    counter.since()
    for _ in tokens:
        yield counter.since(forwards=m, embeddings=m, heads=m)


def _filled(request: GenerationRequest, decoder: Decoder, counter: _Counter) -> Policy:
    """The cache after a prompt; the counter begins before eviction."""
    cache = prefilled_cache(decoder, request.policy, request.prompt_tokens, decoder.backend.zeros)
    counter.since()
    cache.advance(request.prompt_tokens)
    return cache


# ------------------------------------------------------------ time


@dataclass(frozen=True)
class Speed:
    """What a machine takes besides the network, in seconds: a round, and a byte or multiply-add of each kind."""

    round: float
    online_byte: float
    correlation_byte: float
    multiply_add: float


MEASURED = Speed(round=5.3e-4, online_byte=0.0, correlation_byte=4.0e-9, multiply_add=2.6e-10)
"""Fitted with `mpcache bench calibrate docs/report` to the decode steps, prefills and networks of a full run: three
processes on two cores of an AMD EPYC that did nothing else. Nine in ten medians are within 20% of the estimate, all
within 25%; from run to run a step of 30 ms varies as much. Correlations are there: a dealer that works beside the
parties on the same cores makes steps half as long again. A round's share is gRPC, TLS, and the operations on small
tensors between two messages; of bytes, corrections tell the work best, so that none is left for online ones."""


def seconds(price: Price, network: Network, speed: Speed = MEASURED) -> float:
    """Estimated wall time: round trips, bytes on the line, and computing."""
    cost = price.cost
    return network.seconds(cost.rounds, cost.online_bytes) + computing_seconds(price, speed)


def computing_seconds(price: Price, speed: Speed = MEASURED) -> float:
    cost = price.cost
    return (
        cost.rounds * speed.round
        + cost.online_bytes * speed.online_byte
        + cost.correction_bytes * speed.correlation_byte
        + price.multiply_adds * speed.multiply_add
    )


DEALING = Speed(round=8.2e-4, online_byte=0.0, correlation_byte=7.2e-9, multiply_add=5.2e-10)
"""Fitted to the CPU seconds of six preparations (the demo model and GPT-2's sizes, 64 to 384 prompt tokens, 4 to 64 new
ones) on two cores that others used as well: five estimates are within 12%, one is 14% too low. A round stands for the
planning and drawing of the few correlations that it takes."""


def dealing_seconds(price: Price) -> float:
    """Estimated seconds of one core of the dealer, who plans, makes every correction, and encrypts what it keeps."""
    return computing_seconds(price, DEALING)
