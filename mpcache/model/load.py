"""A model folder as a library user has it: weights, tokenizer and end tokens in one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from mpcache.model.checkpoint import Checkpoint, load_checkpoint
from mpcache.model.config import ModelConfig
from mpcache.model.tokenizer import end_tokens, load_tokenizer
from mpcache.protocols.errors import ConfigError, ModelError

Prompt = str | Sequence[int]
"""Text, or token ids of the model's vocabulary."""


@dataclass(frozen=True)
class Model:
    """A loaded model folder. Whoever holds it has the weights in the clear: it is the owner's.

    tokenizer: None if the folder has none; prompts are then token ids, and answers have no text.
    """

    folder: Path
    checkpoint: Checkpoint
    tokenizer: Tokenizer | None
    end_tokens: tuple[int, ...]

    @property
    def config(self) -> ModelConfig:
        """The public shape."""
        return self.checkpoint.config

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids. Raises ConfigError for an empty prompt, for tokens beyond the vocabulary, and for text where the
        model has no tokenizer."""
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ConfigError(f"{self.folder} has no tokenizer.json: give the prompt as token ids")
            tokens = list(self.tokenizer.encode(prompt).ids)
        else:
            tokens = list(prompt)
        if not tokens:
            raise ConfigError("the prompt is empty")
        if not 0 <= min(tokens) <= max(tokens) < self.config.vocabulary:
            raise ConfigError(f"the prompt has tokens beyond the model's vocabulary of {self.config.vocabulary}")
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; empty where the model has no tokenizer."""
        return "" if self.tokenizer is None else self.tokenizer.decode(list(tokens))


def load_model(folder: str | Path) -> Model:
    """Load a Hugging Face folder (config.json, safetensors, tokenizer.json) as transformers would compute it.

    No code of the folder runs, nothing is unpickled. Raises ModelError with what is wrong.
    Memory: 4 bytes a weight.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"there is no folder {folder}")
    checkpoint = load_checkpoint(folder)
    if not (folder / "tokenizer.json").exists():
        return Model(folder, checkpoint, None, ())
    tokenizer = load_tokenizer(folder)
    return Model(folder, checkpoint, tokenizer, end_tokens(folder, tokenizer))
