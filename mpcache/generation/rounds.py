"""The rounds of one decode step's block, each with what it opens: docs/rounds.md, from the plan.

A round's openings are named by the protocols that ask for them, from the backend's down to the one that opens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from mpcache.generation.prefilled import prefilled_cache
from mpcache.generation.request import GenerationRequest
from mpcache.model.config import ModelConfig
from mpcache.model.decoder import Decoder
from mpcache.protocols.backends.mpc import MpcBackend
from mpcache.protocols.plan import PlanSession, ShapeArithmetic
from mpcache.protocols.public import Constants
from mpcache.protocols.session import Cost, Opening


@dataclass(frozen=True)
class Round:
    """One message, or one in each direction: what is opened in it, and its bytes, both directions."""

    openings: tuple[str, ...]
    online_bytes: int


def _named(method: Callable[..., Opening]) -> Callable[..., Opening]:
    """The method, noting who calls it."""

    def named(self: NamedRounds, *arguments: Any, **options: Any) -> Opening:
        opening = method(self, *arguments, **options)
        self.names[id(opening)] = " > ".join(_protocols(sys._getframe(1)))
        return opening

    return named


class NamedRounds(PlanSession):
    """A plan that notes which protocols open something in each round."""

    def __init__(self) -> None:
        super().__init__()
        self.constants = Constants()  # as somebody asks for them, nothing is repeated without being run
        self.rounds: list[Round] = []
        self.names: dict[int, str] = {}

    open = _named(PlanSession.open)
    transfer = _named(PlanSession.transfer)
    reveal = _named(PlanSession.reveal)

    def _round(self, requests: list[Opening]) -> None:
        before = self.cost.online_bytes
        super()._round(requests)
        names = tuple(dict.fromkeys(self.names.pop(id(r)) for r in requests))
        self.rounds.append(Round(names, self.cost.online_bytes - before))


_PLUMBING = {"session.py", "plan.py", "planned.py", "rounds.py"}


def _protocols(frame: FrameType | None) -> list[str]:
    """The functions of protocols/ from the outermost to the one that opens."""
    names: list[str] = []
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if "protocols" in file.parts and file.name not in _PLUMBING and not frame.f_code.co_name.startswith("<"):
            names.append(frame.f_code.co_name.strip("_"))
        frame = frame.f_back
    return list(dict.fromkeys(reversed(names)))


def block_rounds(model: ModelConfig, request: GenerationRequest) -> tuple[list[Round], Cost]:
    """The rounds of one layer for one new token after the request's prompt, in order, and their cost.

    They are those that a second layer adds to a first, whose input is an embedding.
    """
    (first, cost), (both, total) = (_forward(replace(model, layers=layers), request) for layers in (1, 2))
    return both[len(first) :], total - cost


def _forward(model: ModelConfig, request: GenerationRequest) -> tuple[list[Round], Cost]:
    session = NamedRounds()
    session.round_bytes = request.round_bytes
    decoder = Decoder(model, MpcBackend(session))
    with ShapeArithmetic():
        cache = prefilled_cache(decoder, request.policy, request.prompt_tokens, decoder.backend.zeros)
        cache.advance(request.prompt_tokens)
        before = session.cost.copy()
        session.rounds.clear()
        decoder.forward(None, 1, cache)
    return session.rounds, session.cost - before
