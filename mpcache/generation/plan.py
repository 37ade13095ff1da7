"""What a generation takes, from public parameters alone: for the dealer, the handshake and `mpcache plan`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace

from mpcache.generation.backends import plan_session, private_backend
from mpcache.generation.loop import Program, blocks_and_tokens
from mpcache.generation.request import PROTOCOL_VERSION, GenerationRequest
from mpcache.model.config import ModelConfig
from mpcache.model.decoder import Decoder
from mpcache.model.rotary import CHUNK, rotary_units
from mpcache.protocols import polynomial, softmax
from mpcache.protocols.correlation import Correlation
from mpcache.protocols.plan import Plan, ShapeArithmetic
from mpcache.protocols.public import Constants
from mpcache.protocols.session import Cost

_END = object()


def plan_parts(
    model: ModelConfig,
    request: GenerationRequest,
    program: Program | None = None,
    check: Callable[[], None] = lambda: None,
    constants: Constants | None = None,
) -> Iterator[Plan]:
    """The plan, a part for each block of the prompt and for each new token or pass, made as it is asked for.

    program: another one than a generation; a part for each value that it yields. check: called again and again while
    it plans; raises if the plan is not wanted any more. constants: notes what public values the program multiplies
    shares by.
    """
    session = plan_session(request.backend, check)
    session.constants = constants
    session.round_bytes = request.round_bytes
    with private_backend(request.backend, session) as backend:
        parts = (program or blocks_and_tokens)(Decoder(model, backend), request, None)
        while True:
            with ShapeArithmetic():  # not while the plan's reader works
                if next(parts, _END) is _END:
                    return
            yield session.next_part()


def correlations(
    model: ModelConfig,
    request: GenerationRequest,
    program: Program | None = None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Correlation]:
    """Every correlation of a generation, in order. check: see `plan_parts`."""
    for part in plan_parts(model, request, program, check):
        yield from part.correlations


def plan_digest(
    model: ModelConfig,
    request: GenerationRequest,
    program: Program | None = None,
    check: Callable[[], None] = lambda: None,
) -> str:
    """Fingerprint of the program: model and request, the public tables (`constants_digest`), and every correlation,
    message and public factor of a block and two tokens, or with drafts a token and two passes.

    The rest of the plan is the same code at other lengths, so two programs that differ, differ here. check: see
    `plan_parts`.
    """
    block = request.block_for(model)
    start = replace(
        request,
        prompt_tokens=min(request.prompt_tokens, block),
        max_new_tokens=min(request.max_new_tokens, 3 if request.draft else 2),
        prefill_block=block,
    )
    head = (str(PROTOCOL_VERSION), model.to_json(), request.to_json(), constants_digest(model, request))
    digest, constants = hashlib.sha256("".join(f"{line}\n" for line in head).encode()), Constants()
    for part in plan_parts(model, start, program, check, constants):
        digest.update(repr((part.correlations, part.messages)).encode())
    digest.update(constants.hexdigest().encode())
    return digest.hexdigest()


def constants_digest(model: ModelConfig, request: GenerationRequest) -> str:
    """Fingerprint of the public tables that shares are multiplied by: rotary positions of the whole generation, the
    softmax's exponentials, and polynomials' powers at sample places. The same on every machine, see public.py.

    Cost: 10 us a position with heads of 128, mostly for rotary tables that the generation needs anyway, and 10 ms.
    """
    constants = Constants()
    if model.family == "llama":
        for start in range(0, request.tokens, CHUNK):
            end = min(start + CHUNK, request.tokens)
            constants.add(rotary_units(model.rope_theta, model.head_size, start, end), 0)
    constants.add(softmax.exponential_powers(), 0)
    for powers in polynomial.sample_powers():
        constants.add(powers, 0)
    return constants.hexdigest()


def phase_costs(model: ModelConfig, request: GenerationRequest) -> tuple[Cost, Cost]:
    """(prefill with the first token, all tokens after it), as party 0 counts them."""
    blocks = len(request.blocks(model))
    prefill_cost, decode_cost = Cost(), Cost()
    for i, part in enumerate(plan_parts(model, request)):
        if i <= blocks:
            prefill_cost += part.cost()
        else:
            decode_cost += part.cost()
    return prefill_cost, decode_cost
