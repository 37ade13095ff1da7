"""What a data owner brings to a private generation: where the others are, its tokenizer, and what it asks for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mpcache.generation.request import ClientRequest, GenerationRequest
from mpcache.model.tokenizer import Prompt, encode_prompt, end_tokens, load_tokenizer, vocabulary_size
from mpcache.parties.batch import Batch
from mpcache.parties.certificates import load_identity
from mpcache.parties.client import Connection, Generation
from mpcache.parties.handshake import Wanted
from mpcache.parties.preparing import prepare_session
from mpcache.parties.settings import ClientSettings

log = logging.getLogger("mpcache.client")


@dataclass(frozen=True)
class DataOwner:
    """defaults: a request without a prompt, which `request` completes."""

    connection: Connection
    tokenizer: Tokenizer
    defaults: ClientRequest

    def request(self, prompt: Prompt, *, fixed_length: bool | None = None, **public: Any) -> ClientRequest:
        """For a prompt, text or token ids. public: facts that differ from the defaults, see `GenerationRequest`.

        Raises ConfigError if the prompt is empty, or has tokens that the tokenizer does not: such a one could end a
        session that has begun, which would tell of the prompt.
        """
        tokens = encode_prompt(prompt, self.tokenizer, vocabulary_size(self.tokenizer))
        request = self.defaults.with_prompt(tokens, **public)
        return request if fixed_length is None else replace(request, fixed_length=fixed_length)

    def prepare(
        self, public: GenerationRequest, hear: Callable[[int], None] = lambda nbytes: None
    ) -> tuple[bytes, int]:
        """(id, bytes on the dealer's disk) of a session that waits for a prompt, see `prepare_session`."""
        wanted = Wanted(
            request=public, model_digest=self.defaults.model_digest, least_vocabulary=self.defaults.vocabulary
        )
        return prepare_session(self.connection, wanted, hear)

    def start(
        self, request: ClientRequest, on_block: Callable[[int, int], None] = lambda done, total: None
    ) -> Generation:
        return Generation(self.connection, request, on_block)

    def start_batch(self, requests: Sequence[ClientRequest]) -> Batch:
        """Raises ConfigError if these cannot share their rounds."""
        return Batch(self.connection, requests)


def data_owner(connection: Connection, tokenizer_folder: Path, public: GenerationRequest | None = None) -> DataOwner:
    """With the tokenizer and end tokens of a folder. Raises ModelError."""
    tokenizer = load_tokenizer(tokenizer_folder)
    ends = end_tokens(tokenizer_folder, tokenizer)
    if not ends:
        log.warning(
            "%s does not say which tokens end an answer (generation_config.json, config.json, tokenizer_config.json): "
            "every answer takes max_new_tokens",
            tokenizer_folder,
        )
    defaults = ClientRequest(
        prompt=(),
        public=public or GenerationRequest(prompt_tokens=0, max_new_tokens=16),
        end_tokens=ends,
        vocabulary=vocabulary_size(tokenizer),
    )
    return DataOwner(connection, tokenizer, defaults)


def data_owner_of(settings: ClientSettings, insecure: bool = False) -> DataOwner:
    """As client.toml says. insecure: plaintext, on loopback only. Raises ConfigError, IdentityError, ModelError."""
    identity = None if insecure or settings.insecure else load_identity(settings.certificates, "client")
    connection = Connection(
        settings.owner,
        settings.dealer,
        identity,
        settings.state,
        settings.timeout_seconds,
        settings.max_model_gib,
        settings.max_step_gib,
        settings.prepared_hours,
    )
    public = GenerationRequest(
        prompt_tokens=0,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        policy=settings.policy,
        network=settings.network,
        prefill_block=settings.prefill_block,
        draft=settings.draft,
        max_passes=settings.max_passes,
    )
    owner = data_owner(connection, settings.tokenizer, public)
    defaults = replace(owner.defaults, fixed_length=settings.fixed_length, model_digest=settings.model_digest)
    return replace(owner, defaults=defaults)
