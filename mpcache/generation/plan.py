"""What a generation takes, from public parameters alone: for the dealer, the handshake and `mpcache plan`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from mpcache.generation.backends import PRIVATE_BACKENDS, plan_session, private_backend
from mpcache.generation.loop import FULL, PREFILL_BLOCK, GenerationPlan, Program, decode, prefill
from mpcache.generation.network import LOOPBACK, parse_network
from mpcache.model.config import ModelConfig
from mpcache.model.decoder import Decoder
from mpcache.model.rotary import CHUNK, rotary_units
from mpcache.policies import PolicySettings, check_policy, new_cache
from mpcache.protocols import polynomial, softmax
from mpcache.protocols.correlation import Correlation
from mpcache.protocols.errors import ConfigError, HandshakeError
from mpcache.protocols.plan import Plan, ShapeArithmetic
from mpcache.protocols.public import Constants
from mpcache.protocols.ring import FRACTION_BITS, PRODUCT_BITS
from mpcache.protocols.session import Cost
from mpcache.wire import STRICT, from_wire, to_wire

PROTOCOL_VERSION = 3
HOTTEST = 100
PRECISION = f"fixed-point {FRACTION_BITS} bits, products {PRODUCT_BITS} bits"


@dataclass(frozen=True)
class PublicParameters:
    """All that the dealer learns, and all that the program depends on."""

    model: ModelConfig
    prompt_tokens: int
    max_new_tokens: int
    temperature: float = 0.0
    backend: str = "mpc"
    policy: PolicySettings = FULL
    precision: str = PRECISION
    block: int = PREFILL_BLOCK
    network: str = LOOPBACK.name

    __pydantic_config__ = STRICT

    @property
    def round_bytes(self) -> int:
        """What a session's protocols choose by, see `Network.round_bytes`."""
        return parse_network(self.network).round_bytes

    def generation(self) -> GenerationPlan:
        return GenerationPlan(self.prompt_tokens, self.max_new_tokens, self.temperature, self.block, policy=self.policy)

    def to_json(self) -> str:
        """Canonical: equal parameters give equal text."""
        return to_wire(self)

    @staticmethod
    def from_json(text: str) -> PublicParameters:
        """What a peer sent. Raises HandshakeError, or what its parts raise for their bounds."""
        return from_wire(PublicParameters, text, "the public parameters")

    def check(self, role: str, most_prompt_tokens: int, most_new_tokens: int) -> None:
        """Raises HandshakeError if this cannot be run, or if `role` does not allow it: whoever made it, it is checked
        before anything is planned."""
        if self.precision != PRECISION:
            raise HandshakeError(f"this MPCache computes with {PRECISION}, not {self.precision[:60]}")
        if self.block != PREFILL_BLOCK:
            raise HandshakeError(f"this MPCache reads prompts in blocks of {PREFILL_BLOCK} tokens, not {self.block}")
        if not 0 <= self.temperature <= HOTTEST:
            raise HandshakeError(f"the temperature must be between 0 and {HOTTEST}")
        if self.backend not in PRIVATE_BACKENDS:
            raise HandshakeError(f"unknown backend {self.backend[:40]!r} (known: {', '.join(PRIVATE_BACKENDS)})")
        try:
            check_policy(self.policy)
            parse_network(self.network)
        except ConfigError as error:
            raise HandshakeError(str(error)) from None
        if self.prompt_tokens > most_prompt_tokens:
            raise HandshakeError(f"the {role} allows {most_prompt_tokens} prompt tokens, not {self.prompt_tokens}")
        if self.max_new_tokens > most_new_tokens:
            raise HandshakeError(
                f"the {role} allows {most_new_tokens} new tokens, not {self.max_new_tokens}: lower max_new_tokens"
            )
        total = self.prompt_tokens + self.max_new_tokens
        if self.prompt_tokens < 1 or self.max_new_tokens < 1:
            raise HandshakeError("a generation needs a prompt and at least one new token")
        if total > self.model.max_positions:
            raise HandshakeError(
                f"{self.prompt_tokens} prompt and {self.max_new_tokens} new tokens do not fit the model's "
                f"{self.model.max_positions} positions: shorten the prompt or lower max_new_tokens"
            )


def plan_parts(
    parameters: PublicParameters,
    program: Program | None = None,
    check: Callable[[], None] = lambda: None,
    constants: Constants | None = None,
) -> Iterator[Plan]:
    """The plan, a part for each block of the prompt and for each new token, made as it is asked for.

    program: another one than a generation; a part for each value that it yields. check: called again and again while
    it plans; raises if the plan is not wanted any more. constants: notes what public values the program multiplies
    shares by.
    """
    session = plan_session(parameters.backend, check)
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
    cache, x = new_cache(parameters.policy, decoder, parameters.prompt_tokens), None
    for _, x in prefill(decoder, generation, None, cache):
        yield None
    yield from decode(decoder, generation, x, cache)


def correlations(
    parameters: PublicParameters, program: Program | None = None, check: Callable[[], None] = lambda: None
) -> Iterator[Correlation]:
    """Every correlation of a generation, in order. check: see `plan_parts`."""
    for part in plan_parts(parameters, program, check):
        yield from part.correlations


def plan_digest(
    parameters: PublicParameters, program: Program | None = None, check: Callable[[], None] = lambda: None
) -> str:
    """Fingerprint of the program: all parameters, the public tables (`constants_digest`), and every correlation,
    message and public factor of a block and two tokens.

    The rest of the plan is the same code at other lengths, so two programs that differ, differ here. check: see
    `plan_parts`.
    """
    start = replace(
        parameters,
        prompt_tokens=min(parameters.prompt_tokens, parameters.block),
        max_new_tokens=min(parameters.max_new_tokens, 2),
    )
    head = f"{PROTOCOL_VERSION}\n{parameters.to_json()}\n{constants_digest(parameters)}\n"
    digest, constants = hashlib.sha256(head.encode()), Constants()
    for part in plan_parts(start, program, check, constants):
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
