"""What a generation takes, from public parameters alone: for the dealer, the handshake and `mpcache plan`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from mpcache.backends import PRIVATE_BACKENDS, plan_session, private_backend
from mpcache.decoder import Decoder
from mpcache.generate import FULL, PREFILL_BLOCK, GenerationPlan, Program, decode, prefill
from mpcache.model_config import ModelConfig
from mpcache.network import LOOPBACK, parse_network
from mpcache.policies import PolicySettings, check_policy, policy_settings
from protocols.correlation import Correlation
from protocols.errors import ConfigError, HandshakeError
from protocols.plan import Plan, ShapeArithmetic
from protocols.ring import FRACTION_BITS, PRODUCT_BITS
from protocols.session import Cost

PROTOCOL_VERSION = 2
PRECISION = f"fixed-point {FRACTION_BITS} bits, products {PRODUCT_BITS} bits"


@dataclass(frozen=True)
class PublicParameters:
    """All that the dealer learns, and all that the program depends on."""

    model: ModelConfig
    model_digest: str
    prompt_tokens: int
    max_new_tokens: int
    temperature: float = 0.0
    backend: str = "mpc"
    policy: PolicySettings = FULL
    precision: str = PRECISION
    block: int = PREFILL_BLOCK
    network: str = LOOPBACK.name

    @property
    def round_bytes(self) -> int:
        """What a session's protocols choose by, see `Network.round_bytes`."""
        return parse_network(self.network).round_bytes

    def generation(self) -> GenerationPlan:
        return GenerationPlan(self.prompt_tokens, self.max_new_tokens, self.temperature, self.block, policy=self.policy)

    def to_json(self) -> str:
        """Canonical: equal parameters give equal text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> PublicParameters:
        try:
            raw = json.loads(text)
            model = ModelConfig.from_json(json.dumps(raw.pop("model")))
            return PublicParameters(model=model, policy=policy_settings(raw.pop("policy")), **raw)
        except (ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
            raise HandshakeError(f"public parameters that cannot be read: {error}") from None

    def check(self) -> None:
        """Raises HandshakeError if the lengths do not fit the model."""
        if self.backend not in PRIVATE_BACKENDS:
            raise HandshakeError(f"unknown backend {self.backend[:40]!r} (known: {', '.join(PRIVATE_BACKENDS)})")
        try:
            check_policy(self.policy)
            parse_network(self.network)
        except ConfigError as error:
            raise HandshakeError(str(error)) from None
        total = self.prompt_tokens + self.max_new_tokens
        if self.prompt_tokens < 1 or self.max_new_tokens < 1:
            raise HandshakeError("a generation needs a prompt and at least one new token")
        if total > self.model.max_positions:
            raise HandshakeError(
                f"{self.prompt_tokens} prompt and {self.max_new_tokens} new tokens do not fit the model's "
                f"{self.model.max_positions} positions: shorten the prompt or lower max_new_tokens"
            )


def plan_parts(parameters: PublicParameters, program: Program | None = None) -> Iterator[Plan]:
    """The plan, a part for each block of the prompt and for each new token, made as it is asked for.

    program: another one than a generation; a part for each value that it yields.
    """
    session = plan_session(parameters.backend)
    session.round_bytes = parameters.round_bytes
    with private_backend(parameters.backend, session) as backend:
        parts = _parts(parameters, Decoder(parameters.model, backend), program)
        while True:
            with ShapeArithmetic():  # not while the plan's reader works
                if next(parts, _END) is _END:
                    return
            yield session.next_part()


_END = object()


def _parts(parameters: PublicParameters, decoder: Decoder, program: Program | None) -> Iterator[object]:
    """Yields where a part ends."""
    generation = parameters.generation()
    if program is not None:
        yield from program(decoder, generation, None)
        return
    cache, x = decoder.new_cache(parameters.policy, parameters.prompt_tokens), None
    for _, x in prefill(decoder, generation, None, cache):
        yield None
    yield from decode(decoder, generation, x, cache)


def correlations(parameters: PublicParameters, program: Program | None = None) -> Iterator[Correlation]:
    """Every correlation of a generation, in order."""
    for part in plan_parts(parameters, program):
        yield from part.correlations


def plan_digest(parameters: PublicParameters, program: Program | None = None) -> str:
    """Fingerprint of the program: all parameters, and every correlation and message of a block and two tokens.

    The rest of the plan is the same code at other lengths, so two programs that differ, differ here.
    """
    start = replace(
        parameters,
        prompt_tokens=min(parameters.prompt_tokens, parameters.block),
        max_new_tokens=min(parameters.max_new_tokens, 2),
    )
    digest = hashlib.sha256(f"{PROTOCOL_VERSION}\n{parameters.to_json()}\n".encode())
    for part in plan_parts(start, program):
        digest.update(repr((part.correlations, part.messages)).encode())
    return digest.hexdigest()


def phase_costs(parameters: PublicParameters) -> tuple[Cost, Cost]:
    """(prefill with the first token, all tokens after it), as party 0 counts them."""
    blocks = len(parameters.generation().blocks())
    prefill_cost, decode_cost = Cost(), Cost()
    for i, part in enumerate(plan_parts(parameters)):
        if i <= blocks:
            prefill_cost += part.cost()
        else:
            decode_cost += part.cost()
    return prefill_cost, decode_cost
