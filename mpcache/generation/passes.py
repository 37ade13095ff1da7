"""Several tokens a pass: the client drafts what may come next, and one pass of the model tries all of it.

A pass takes the last token and `draft` more that the client guesses, in the rounds of one token. The model's next token
after each of them goes to the client alone. As far as the guesses are what the model says, they are the answer, and one
more token comes with them. So the answer is that of steps of one token each, whatever was guessed: greedily token by
token, and with a temperature in distribution, as each place draws noise of its own.

How many guesses were right shows nowhere. Every pass adds as many tokens to the cache, by a public schedule. Those that
were wrong stay there, and the client takes HIDDEN from its share of their scores. Where the next pass stands in the
text is the client's secret as well, see `Decoder.forward`. See docs/threat-model.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from mpcache.generation.lookup import PromptLookup
from mpcache.generation.request import GenerationRequest, Stop
from mpcache.model.decoder import Decoder, Within
from mpcache.policies import Policy
from mpcache.policies.base import HIDDEN
from mpcache.protocols.backends.interface import Value


@dataclass(frozen=True)
class Pass:
    """A pass is done. tokens: what it gave, one at least before the answer's end; None to a process that must not
    know."""

    tokens: tuple[int, ...] | None


@dataclass(frozen=True)
class Drafted:
    """What the client alone knows of the next pass: its tokens, where the first of them stands in the text, and what
    is added to the scores of each token since the prompt."""

    tokens: list[int] | None = None
    position: int | None = None
    hidden: torch.Tensor | None = None


UNKNOWN = Drafted()


class Drafting:
    """The client's side: the text so far, what is guessed of it, and which guesses were wrong."""

    def __init__(self, request: GenerationRequest, prompt: Sequence[int], first: int, stop: Stop | None) -> None:
        self._request, self._stop = request, stop
        self._lookup = PromptLookup(prompt, request.tokens)
        self._block: list[int] = []
        self._wrong: list[bool] = []
        self._last, self._found, self._ended = first, 0, False
        self._accept(first)

    @property
    def goes_on(self) -> bool:
        """Whether another pass is wanted: if their number is fixed, all are."""
        return self._stop is None or not self._ended

    def block(self) -> Drafted:
        self._block = [self._last, *self._lookup.draft(self._request.draft)]
        hidden = torch.tensor([HIDDEN if wrong else 0.0 for wrong in self._wrong])
        return Drafted(self._block, self._request.prompt_tokens + self._found - 1, hidden)

    def take(self, said: Sequence[int]) -> tuple[int, ...]:
        """The answer's next tokens, given what the model says after each of the block."""
        given: list[int] = []
        for i, token in enumerate(said):
            if self._ended or (i and self._block[i] != said[i - 1]):
                break
            given.append(token)
            self._accept(token)
        self._wrong += [i >= len(given) for i in range(len(said))]
        return tuple(given)

    def _accept(self, token: int) -> None:
        self._lookup.add([token])
        self._last, self._found = token, self._found + 1
        stopped = self._stop is not None and self._stop(token)
        self._ended = stopped or self._found == self._request.max_new_tokens


def decode_drafted(
    decoder: Decoder,
    request: GenerationRequest,
    prompt: Sequence[int] | None,
    x: Value,
    cache: Policy,
    stop: Stop | None = None,
) -> Iterator[int | Pass | None]:
    """Yield the first token after the prefill's last hidden states `x`, as `loop.decode` does, and then each pass.

    prompt: its token ids, where the answer's tokens may be known. stop: None: all passes are made, whatever they give.
    """
    backend, count = decoder.backend, request.draft + 1
    token, client = decoder.next_token(x, request.temperature), None
    if token is not None:
        assert prompt is not None, "who knows the tokens knows the prompt"
        client = Drafting(request, prompt, token, stop)
    goes_on = request.passes > 0 and backend.announce(None if client is None else client.goes_on)
    yield token
    for number in range(request.passes):
        if not goes_on:
            return
        block = UNKNOWN if client is None else client.block()
        if number:
            cache.hide(backend.known_to_client(block.hidden, (number * count,)))
        within = Within(request.prompt_tokens, request.tokens + request.draft, block.position)
        said = decoder.next_tokens(decoder.forward(block.tokens, count, cache, within), request.temperature)
        given = None if client is None or said is None else client.take(said)
        last = number + 1 == request.passes
        goes_on = not last and backend.announce(None if client is None else client.goes_on)
        yield Pass(given)
