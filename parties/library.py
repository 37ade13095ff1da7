"""Where a private generation runs, for programs: in this process, in processes of this machine, with parties elsewhere.

All three are asked in the same way, see `Parties.stream`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, Self, TypedDict, Unpack
from weakref import WeakSet

from mpcache.generation.answer import Answer
from mpcache.generation.in_process import InProcessGeneration
from mpcache.generation.in_process_batch import InProcessBatch
from mpcache.generation.loop import Meter
from mpcache.generation.price import Prices, price
from mpcache.generation.request import AUTOMATIC, ClientRequest, GenerationRequest
from mpcache.generation.text import Decodes, TextStream
from mpcache.inspection.implied import check_ranges
from mpcache.model.config import ModelConfig
from mpcache.model.load import Model, model_folder
from mpcache.model.shapes import model_shape
from mpcache.model.tokenizer import Prompt, load_tokenizer
from mpcache.parties.data_owner import DataOwner, data_owner, data_owner_of
from mpcache.parties.launcher import local_parties
from mpcache.parties.settings import ClientSettings, load_settings
from mpcache.policies import PolicySettings, policy_settings
from mpcache.protocols.errors import ConfigError
from mpcache.suggest import suggestion

OnBlock = Callable[[int, int], None]


class Public(TypedDict, total=False):
    """What all parties know of a generation, beside its prompt's length."""

    max_new_tokens: int
    policy: str | PolicySettings
    temperature: float
    network: str
    prefill_block: int
    draft: int
    max_passes: int


class BatchOptions(Public, total=False):
    """What the generations of a batch are asked for beside their prompts."""

    fixed_length: bool


class Options(BatchOptions, total=False):
    """What a generation is asked for beside its prompt. What is left out is as `Parties.stream` says."""

    on_block: OnBlock


class Stoppable(Protocol):
    """What is under way."""

    def stop(self) -> None: ...


class Tokens(Stoppable, Protocol):
    """A generation under way."""

    meter: Meter | None

    def __iter__(self) -> Iterator[int]: ...


class Batched(Stoppable, Protocol):
    """Several, of which each token comes with its request's place."""

    meters: list[Meter | None]

    def __iter__(self) -> Iterator[tuple[int, int]]: ...


class Stream:
    """Iterate once, for pieces of text: one for each token, empty inside a character, and at last what is left.

    `answer` is there when all are taken. Leaving early ends the session, as the end of the parties' `with` block does.
    """

    def __init__(self, tokens: Tokens, request: GenerationRequest, tokenizer: Decodes) -> None:
        self._tokens, self._request = tokens, request
        self._text = TextStream(tokenizer)
        self._answer: Answer | None = None
        self._taken = False

    def __iter__(self) -> Iterator[str]:
        """Raises MpcacheError."""
        if self._taken:
            raise ConfigError("a stream is read once: ask for another, or take the `answer` of this one")
        self._taken = True
        return self._pieces()

    def _pieces(self) -> Iterator[str]:
        for token in self._tokens:
            yield self._text.add(token)
        if piece := self._text.rest():
            yield piece
        assert self._tokens.meter is not None
        self._answer = Answer.of(self._text.text, self._text.tokens, self._request, self._tokens.meter)

    @property
    def answer(self) -> Answer:
        """Raises ConfigError before the end."""
        if self._answer is None:
            raise ConfigError("the answer is not whole yet: take all pieces of the stream first")
        return self._answer


class Parties(ABC):
    """Owner, client and dealer, wherever they are. This process is the client's. Threads may share one.

    It is a context manager: what was started ends with the `with` block.
    """

    def __init__(self) -> None:
        self._running: WeakSet[Stoppable] = WeakSet()

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Answer:
        """The whole answer; for the options see `stream`."""
        stream = self.stream(prompt, **options)
        for _ in stream:
            pass
        return stream.answer

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Stream:
        """An answer that comes piece by piece.

        prompt: text, or token ids. max_new_tokens: 16, or what the settings say. policy: settings, or a spelling such
        as "mpcache:budget=0.25"; "mpcache". temperature: 0, the likeliest token. network: what protocols are chosen
        for; "loopback". prefill_block: how many of the prompt's tokens go through the model at once; 0, a number that
        follows from the network. fixed_length: False; True hides where the answer ended. draft: 0; how many tokens each
        pass tries ahead, in the rounds of one, where the policy takes drafts; the tokens are the same without.
        max_passes: of drafts, after the first token; 0, as many as max_new_tokens may need. on_block: hears how many of
        the prompt's tokens are done, and how many there are. Raises ConfigError for what cannot be asked for; and
        MpcacheError while it is iterated.
        """
        facts = _checked(options, Options)
        on_block = facts.pop("on_block", lambda done, total: None)
        request = self._request(prompt, **facts)
        tokens = self._start(request, on_block)
        self._running.add(tokens)
        return Stream(tokens, request.public, self._tokenizer())

    def generate_batch(self, prompts: Sequence[Prompt], **options: Unpack[BatchOptions]) -> list[Answer]:
        """The answers to several prompts, which share their rounds: on a slow network all come about as fast as one.

        The prompts' lengths may differ. Options are those of `stream`, for all. Each answer's cost is its own; rounds
        are counted by each that took part in them, so that those of the batch are the most of any answer. Owner and
        dealer bound how many prompts there may be. Raises ConfigError, MpcacheError.
        """
        if isinstance(prompts, str):
            raise ConfigError("a batch is a list of prompts: for one prompt there is generate")
        facts = _checked(options, BatchOptions)
        requests = [self._request(prompt, **facts) for prompt in prompts]
        batch = self._start_batch(requests)
        self._running.add(batch)
        texts = [TextStream(self._tokenizer()) for _ in requests]
        for lane, token in batch:
            texts[lane].add(token)
        answers = []
        for request, text, meter in zip(requests, texts, batch.meters, strict=True):
            assert meter is not None
            answers.append(Answer.of(text.text, text.tokens, request.public, meter))
        return answers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for tokens in list(self._running):
            tokens.stop()

    @abstractmethod
    def _request(self, prompt: Prompt, **options: Any) -> ClientRequest: ...

    @abstractmethod
    def _start(self, request: ClientRequest, on_block: OnBlock) -> Tokens: ...

    @abstractmethod
    def _start_batch(self, requests: Sequence[ClientRequest]) -> Batched: ...

    @abstractmethod
    def _tokenizer(self) -> Decodes: ...


def _checked(options: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Those of `kind`, with the policy as settings. Raises ConfigError."""
    for name in options:
        if name not in kind.__annotations__:
            raise ConfigError(f"unknown option {name!r} ({suggestion(name, kind.__annotations__)})")
    return {name: policy_settings(value) if name == "policy" else value for name, value in options.items()}


def _asked() -> GenerationRequest:
    """What is asked for where nothing else is said; without a prompt."""
    return GenerationRequest(prompt_tokens=0, max_new_tokens=16, policy=policy_settings())


class InProcess(Parties):
    """All three parties in this process, for notebooks and tests. The same bytes are sent; nothing is protected."""

    def __init__(self, model: Model) -> None:
        """Raises ModelError if the model's weights cannot be computed with privately."""
        super().__init__()
        check_ranges(model.checkpoint)
        self._model = model

    def _request(self, prompt: Prompt, *, fixed_length: bool = False, **public: Any) -> ClientRequest:
        tokens = self._model.encode(prompt)
        facts = replace(_asked(), prompt_tokens=len(tokens), **public)
        facts.check_for(self._model.config)
        return ClientRequest(prompt=tokens, public=facts, end_tokens=self._model.end_tokens, fixed_length=fixed_length)

    def _start(self, request: ClientRequest, on_block: OnBlock) -> InProcessGeneration:
        return InProcessGeneration(self._model.checkpoint, request, on_block)

    def _start_batch(self, requests: Sequence[ClientRequest]) -> InProcessBatch:
        return InProcessBatch(self._model.checkpoint, requests)

    def _tokenizer(self) -> Decodes:
        return self._model


class Remote(Parties):
    """Parties elsewhere, as a client's settings file names them (docs/config/client.toml)."""

    def __init__(self, settings: str | Path | DataOwner) -> None:
        """Raises ConfigError, IdentityError, ModelError."""
        super().__init__()
        if not isinstance(settings, DataOwner):
            settings = data_owner_of(load_settings(Path(settings), ClientSettings))
        self._connected: DataOwner | None = settings

    @property
    def _data_owner(self) -> DataOwner:
        if self._connected is None:
            raise ConfigError("the processes run in a block alone: with mpcache.LocalProcesses(folder) as parties: ...")
        return self._connected

    def prepare(self, prompt_tokens: int, sessions: int = 1, **options: Unpack[Public]) -> None:
        """Have the dealer make the corrections of so many sessions now, and keep them on its disk.

        A later generation uses one of them if its prompt has exactly so many tokens, and all options are the same. Each
        is used once. Owner and dealer must allow it (`prepare` in their settings). Raises MpcacheError.
        """
        facts = _checked(options, Public)
        public = replace(self._data_owner.defaults.public, prompt_tokens=prompt_tokens, **facts)
        public.check_values()
        for _ in range(sessions):
            self._data_owner.prepare(public)

    def _request(self, prompt: Prompt, **options: Any) -> ClientRequest:
        request = self._data_owner.request(prompt, **options)
        request.public.check_values()
        return request

    def _start(self, request: ClientRequest, on_block: OnBlock) -> Tokens:
        return self._data_owner.start(request, on_block)

    def _start_batch(self, requests: Sequence[ClientRequest]) -> Batched:
        return self._data_owner.start_batch(requests)

    def _tokenizer(self) -> Decodes:
        return self._data_owner.tokenizer  # type: ignore[no-any-return]


class LocalProcesses(Remote):
    """Owner and dealer as processes of this machine, with certificates of their own; they start with the `with` block
    and end with it."""

    def __init__(self, folder: str | Path) -> None:
        """folder: of the owner's model, and of the client's tokenizer. Raises ModelError if it has none."""
        Parties.__init__(self)
        self._folder, self._started = model_folder(folder), ExitStack()
        self._connected = None
        load_tokenizer(self._folder)

    def __enter__(self) -> Self:
        """Raises PeerLost with what the owner says, if it does not start."""
        with ExitStack() as started:
            connection = started.enter_context(local_parties(self._folder))
            self._connected = data_owner(connection, self._folder, _asked())
            self._started = started.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._connected = None
        self._started.close()


def plan(
    model: Model | ModelConfig | str | Path,
    *,
    prompt_tokens: int,
    max_new_tokens: int = 16,
    policy: str | PolicySettings = "mpcache",
    temperature: float = 0.0,
    network: str = "loopback",
    prefill_block: int = AUTOMATIC,
    draft: int = 0,
    max_passes: int = 0,
) -> Prices:
    """Plan what a private generation will take, exactly and without running it: prefill, eviction, each decode step, or
    with drafts each pass.

    model: a loaded one, its shape, a folder, or the name of a shape such as "gpt2"; a shape by its name or folder has
    room for any prompt here. An answer that ends early takes less. Cost: seconds, whatever the size.
    Raises ConfigError, ModelError.
    """
    if isinstance(model, Model):
        config = model.config
    elif isinstance(model, ModelConfig):
        config = model
    else:
        config = model_shape(model, positions=prompt_tokens + max_new_tokens)
    request = GenerationRequest(
        prompt_tokens=prompt_tokens,
        max_new_tokens=max_new_tokens,
        policy=policy_settings(policy),
        temperature=temperature,
        network=network,
        prefill_block=prefill_block,
        draft=draft,
        max_passes=max_passes,
    )
    request.check_for(config)
    return price(config, request)
