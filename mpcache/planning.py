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
from mpcache.rotary import CHUNK, rotary_units
from protocols import polynomial, softmax
from protocols.correlation import Correlation
from protocols.errors import ConfigError, HandshakeError
from protocols.plan import Plan, ShapeArithmetic
from protocols.public import Constants
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


def plan_parts(
    parameters: PublicParameters, program: Program | None = None, constants: Constants | None = None
) -> Iterator[Plan]:
    """The plan, a part for each block of the prompt and for each new token, made as it is asked for.

    program: another one than a generation; a part for each value that it yields. constants: notes what public values
    the program multiplies shares by.
    """
    session = plan_session(parameters.backend)
    session.constants = constants
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
    """Fingerprint of the program: all parameters, the public tables (`constants_digest`), and every correlation,
    message and public factor of a block and two tokens.

    The rest of the plan is the same code at other lengths, so two programs that differ, differ here.
    """
    start = replace(
        parameters,
        prompt_tokens=min(parameters.prompt_tokens, parameters.block),
        max_new_tokens=min(parameters.max_new_tokens, 2),
    )
    head = f"{PROTOCOL_VERSION}\n{parameters.to_json()}\n{constants_digest(parameters)}\n"
    digest, constants = hashlib.sha256(head.encode()), Constants()
    for part in plan_parts(start, program, constants):
        digest.update(repr((part.correlations, part.messages)).encode())
    digest.update(constants.hexdigest().encode())
    return digest.hexdigest()


def constants_digest(parameters: PublicParameters) -> str:
    """Fingerprint of the public tables that shares are multiplied by: rotary positions of the whole generation, the
    softmax's exponentials, and polynomials' powers at sample places. The same on every machine, see public.py.

    Cost: 10 us a position with heads of 128, mostly for rotary tables that the generation needs anyway, and 10 ms.
    """
    constants, model = Constants(), parameters.model
    if model.family == "llama":
        end = parameters.prompt_tokens + parameters.max_new_tokens
        for start in range(0, end, CHUNK):
            constants.add(rotary_units(model.rope_theta, model.head_size, start, min(start + CHUNK, end)), 0)
    constants.add(softmax.exponential_powers(), 0)
    for powers in polynomial.sample_powers():
        constants.add(powers, 0)
    return constants.hexdigest()


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
