"""What a finished private generation answered and took: for the command line, the gateway and JSON alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from mpcache.generation.loop import Meter, Phase
from mpcache.generation.request import GenerationRequest
from mpcache.generation.text import TextStream
from mpcache.inspection.bounds import Sizes


class Metered(Protocol):
    """A generation under way (see parties/client.py)."""

    meter: Meter | None
    setup_bytes: int
    prepared: bool

    @property
    def waited_for_dealer(self) -> float: ...

    def __iter__(self) -> Iterator[int]: ...


@dataclass(frozen=True, kw_only=True)
class FullCache:
    """What the same generation takes with the whole cache. kind: 'planned' (no seconds) or 'measured'."""

    kind: str
    prefill: Phase
    decode: Phase
    tokens: int
    plain_answer: str | None = None
    ranges: Sizes | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "new_tokens": self.tokens,
            "phases": _phases(self.prefill, self.decode),
            "plain_answer": self.plain_answer,
            "ranges": _ranges(self.ranges),
        }


@dataclass(frozen=True, kw_only=True)
class Result:
    """new_tokens: those that were given. prepared: whether corrections came from the dealer's disk. plain_answer,
    ranges: of the same policy in plaintext, and how large its values were; full_cache: beside it."""

    answer: str
    new_tokens: int
    request: GenerationRequest
    meter: Meter
    setup_bytes: int = 0
    waited_for_dealer: float = 0.0
    prepared: bool = False
    plain_answer: str | None = None
    ranges: Sizes | None = None
    full_cache: FullCache | None = None

    @staticmethod
    def of(generation: Metered, request: GenerationRequest, answer: TextStream) -> Result:
        """Of a generation that has ended."""
        assert generation.meter is not None
        return Result(
            answer=answer.text,
            new_tokens=len(answer.tokens),
            request=request,
            meter=generation.meter,
            setup_bytes=generation.setup_bytes,
            waited_for_dealer=generation.waited_for_dealer,
            prepared=generation.prepared,
        )

    def to_dict(self) -> dict[str, Any]:
        prefill, decode = self.meter.prefill, self.meter.decode
        total = prefill.cost + decode.cost
        return {
            "answer": self.answer,
            "plain_answer": self.plain_answer,
            "prompt_tokens": self.request.prompt_tokens,
            "new_tokens": self.new_tokens,
            "prefill_seconds": prefill.seconds,
            "seconds_per_token": self.meter.seconds_per_token,
            "online_bytes": total.online_bytes,
            "correlation_bytes": total.correction_bytes,
            "rounds": total.rounds,
            "draft": self.request.draft,
            "passes": len(self.meter.steps),
            "backend": self.request.backend,
            "policy": self.request.policy.name,
            "policy_settings": asdict(self.request.policy),
            "phases": _phases(prefill, decode),
            "setup_bytes": self.setup_bytes,
            "waited_for_dealer_seconds": self.waited_for_dealer,
            "prepared": self.prepared,
            "ranges": _ranges(self.ranges),
            "full_cache": None if self.full_cache is None else self.full_cache.to_dict(),
        }


def _phases(prefill: Phase, decode: Phase) -> dict[str, dict[str, float | None]]:
    """A phase that was planned, not run, has no seconds."""
    return {
        name: {
            "seconds": phase.seconds or None,
            "online_bytes": phase.cost.online_bytes,
            "correlation_bytes": phase.cost.correction_bytes,
            "rounds": phase.cost.rounds,
        }
        for name, phase in (("prefill", prefill), ("decode", decode))
    }


def _ranges(sizes: Sizes | None) -> dict[str, Any] | None:
    return None if sizes is None else sizes.to_dict()
