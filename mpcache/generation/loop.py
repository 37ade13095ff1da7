"""Prefill and decoding, one loop for every backend and party, with what each phase cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from mpcache.generation.passes import Pass, decode_drafted
from mpcache.generation.request import GenerationRequest, Stop
from mpcache.model.decoder import Decoder
from mpcache.policies import Policy, new_cache
from mpcache.protocols.backends.interface import Value
from mpcache.protocols.session import Cost


@dataclass
class Phase:
    """Seconds and cost of prefill (with the first token) or of decoding (the tokens after it)."""

    seconds: float = 0.0
    cost: Cost = field(default_factory=Cost)


def prefill(
    decoder: Decoder, request: GenerationRequest, prompt: Sequence[int] | None, cache: Policy
) -> Iterator[tuple[int, Value]]:
    """Run the prompt block by block; yields (tokens done, the block's hidden states).

    prompt: its token ids, or None where they are secret.
    """
    for start, end in request.blocks(decoder.config):
        yield end, decoder.forward(None if prompt is None else prompt[start:end], end - start, cache)


def decode(
    decoder: Decoder, request: GenerationRequest, x: Value, cache: Policy, stop: Stop | None = None
) -> Iterator[int | None]:
    """Yield each new token (None to a process that must not know it) after the prefill's last hidden states `x`.

    `stop` decides, where the tokens are known, after which token to end; it is announced to the other party. None: at
    max_new_tokens.
    """
    for i in range(request.max_new_tokens):
        token = decoder.next_token(x, request.temperature)
        last = i + 1 == request.max_new_tokens
        wanted = None if token is None else stop is None or not stop(token)
        goes_on = not last and decoder.backend.announce(wanted)
        yield token
        if not goes_on:
            return
        x = decoder.forward(None if token is None else [token], 1, cache)


@dataclass(frozen=True)
class Block:
    """A block of the prompt is read; done: prompt tokens so far."""

    done: int


def blocks_and_tokens(
    decoder: Decoder, request: GenerationRequest, prompt: Sequence[int] | None, stop: Stop | None = None
) -> Iterator[Block | Pass | int | None]:
    """A whole generation: yields after each block of the prompt, then what `decoding` does."""
    cache, x = new_cache(request.policy, decoder, request.prompt_tokens), None
    for done, x in prefill(decoder, request, prompt, cache):
        yield Block(done)
    assert x is not None, "a prompt has a token"
    yield from decoding(decoder, request, prompt, x, cache, stop)


def decoding(
    decoder: Decoder,
    request: GenerationRequest,
    prompt: Sequence[int] | None,
    x: Value,
    cache: Policy,
    stop: Stop | None = None,
) -> Iterator[Pass | int | None]:
    """`decode`; with drafts the first token, and each pass after it."""
    if request.draft:
        return decode_drafted(decoder, request, prompt, x, cache, stop)
    return decode(decoder, request, x, cache, stop)


Program = Callable[..., Iterator[int | None]]
"""What the processes run together, with the parameters of `steps` below, which is a generation. A benchmark may run
another, if all of its processes do: the plan's digest tells them apart."""


def steps(
    decoder: Decoder,
    request: GenerationRequest,
    prompt: Sequence[int] | None,
    on_block: Callable[[int, int], None] = lambda done, total: None,
    stop: Stop | None = None,
    on_pass: Callable[[], None] = lambda: None,
) -> Iterator[int | None]:
    """Prefill, then decode: yields the new tokens, and where they are not known None for each pass.

    on_block: hears (prompt tokens done, prompt tokens in all). on_pass: hears of each pass with drafts, before its
    tokens come.
    """
    for part in blocks_and_tokens(decoder, request, prompt, stop):
        if isinstance(part, Block):
            on_block(part.done, request.prompt_tokens)
        elif isinstance(part, Pass):
            on_pass()
            yield from [None] if part.tokens is None else part.tokens
        else:
            yield part


class Meter:
    """Splits a run's seconds and cost into prefill (with the first token) and decoding.

    steps: of each token after the first, in order, or of each pass with drafts; their sum is `decode`.
    """

    def __init__(self, cost: Callable[[], Cost]) -> None:
        self._cost = cost
        self._started, self._before = time.perf_counter(), cost().copy()
        self.prefill, self.decode, self.tokens = Phase(), Phase(), 0
        self.steps: list[Phase] = []
        self._drafted = False

    def token(self) -> None:
        """A token has come."""
        if self.tokens == 0:
            self.prefill = self._so_far()
        elif not self._drafted:
            self._step()
        self.tokens += 1

    def drafted(self) -> None:
        """A pass with drafts is done; its tokens come now."""
        self._drafted = True
        self._step()

    def _so_far(self) -> Phase:
        return Phase(time.perf_counter() - self._started, self._cost() - self._before)

    def _step(self) -> None:
        now, before = self._so_far(), self.decode
        self.decode = Phase(now.seconds - self.prefill.seconds, now.cost - self.prefill.cost)
        self.steps.append(Phase(self.decode.seconds - before.seconds, self.decode.cost - before.cost))

    def until_end(self, tokens: Iterable[int | None], ends: Collection[int]) -> Iterator[int]:
        """The client's tokens up to one of `ends`. All are taken and metered: under a fixed length more may follow."""
        ended = False
        for token in tokens:
            assert token is not None, "the client learns its tokens"
            self.token()
            if not ended:
                yield token
            ended = ended or token in ends

    @property
    def seconds_per_token(self) -> float | None:
        """Of decoding; None if there was no token after the first."""
        return self.decode.seconds / (self.tokens - 1) if self.tokens > 1 else None
