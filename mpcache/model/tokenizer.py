"""The data owner's side of a model folder: its tokenizer, what a prompt is to it, and which tokens end an answer."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from pathlib import Path

from tokenizers import Tokenizer

from mpcache.model.json_files import find_json_object, shown
from mpcache.protocols.errors import ConfigError, ModelError

Prompt = str | Sequence[int]
"""Text, or token ids of the model's vocabulary."""
MOST_TOKEN = (1 << 32) - 1


def load_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer.json. Every token of a prompt is used, and no other: truncation and padding that training
    left in the file are switched off. Raises ModelError.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{path} cannot be read: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """What a model's vocabulary must have room for: ids may have gaps, so it is the largest that counts."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0) + 1


def encode_prompt(
    prompt: Prompt, tokenizer: Tokenizer | None, vocabulary: int, special_tokens: bool = True
) -> list[int]:
    """Token ids, all in the vocabulary; special_tokens: with those that the tokenizer puts around a text.

    Raises ConfigError for a prompt of no tokens or of others, and for text where there is no tokenizer.
    """
    if not isinstance(prompt, str):
        tokens = [index(token) for token in prompt]
    elif tokenizer is not None:
        tokens = list(tokenizer.encode(prompt, add_special_tokens=special_tokens).ids)
    else:
        raise ConfigError("the model's folder has no tokenizer.json: give token ids instead of text")
    if not tokens:
        raise ConfigError("the prompt is empty")
    if not 0 <= min(tokens) <= max(tokens) < vocabulary:
        raise ConfigError(f"the prompt does not fit the model: it has tokens beyond its vocabulary of {vocabulary}")
    return tokens


def end_tokens(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that end an answer, sorted: all that the first of these files names that names any.

    generation_config.json and config.json (`eos_token_id`, one or a list), of which the first wins in transformers,
    too; then tokenizer_config.json (`eos_token`). Empty if none does. Raises ModelError for a malformed file, and for a
    token that the tokenizer does not have.
    """
    for file in ("generation_config.json", "config.json"):
        config = find_json_object(folder / file)
        if config is not None and (tokens := config.integers("eos_token_id", MOST_TOKEN)):
            if unknown := [token for token in tokens if tokenizer.id_to_token(token) is None]:
                raise config.error(f"eos_token_id {unknown[0]} is no token of tokenizer.json")
            return tuple(sorted(set(tokens)))
    config = find_json_object(folder / "tokenizer_config.json")
    if config is None or "eos_token" not in config.names():
        return ()
    described = isinstance(config.value("eos_token"), dict)  # an added token with its settings
    text = config.nested("eos_token").text("content") if described else config.text("eos_token")
    token = _token(tokenizer, text)
    if token is None:
        raise config.error(f"eos_token {shown(text)} is no token of tokenizer.json")
    return (token,)


def _token(tokenizer: Tokenizer, text: str) -> int | None:
    """The token of that name, or else the one that stands for that text: byte-level vocabularies have other names."""
    token = tokenizer.token_to_id(text)
    if token is None:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        token = ids[0] if len(ids) == 1 and tokenizer.decode(ids, skip_special_tokens=False) == text else None
    return token
