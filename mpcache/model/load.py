"""A model folder as a library user has it: weights, tokenizer and end tokens in one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from mpcache.model.checkpoint import Checkpoint, load_checkpoint
from mpcache.model.config import ModelConfig
from mpcache.model.tokenizer import Prompt, encode_prompt, end_tokens, load_tokenizer
from mpcache.protocols.errors import ModelError


@dataclass(frozen=True, eq=False)
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
        return encode_prompt(prompt, self.tokenizer, self.config.vocabulary)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; empty where the model has no tokenizer."""
        return "" if self.tokenizer is None else self.tokenizer.decode(list(tokens))


def model_folder(folder: str | Path) -> Path:
    """Raises ModelError if there is none."""
    if not Path(folder).is_dir():
        raise ModelError(f"there is no folder {folder}")
    return Path(folder)


def load_model(folder: str | Path) -> Model:
    """Load a Hugging Face folder (config.json, safetensors, tokenizer.json) as transformers would compute it.

    No code of the folder runs, nothing is unpickled. Raises ModelError with what is wrong.
    Memory: 4 bytes a weight.
    """
    folder = model_folder(folder)
    checkpoint = load_checkpoint(folder)
    if not (folder / "tokenizer.json").exists():
        return Model(folder, checkpoint, None, ())
    tokenizer = load_tokenizer(folder)
    return Model(folder, checkpoint, tokenizer, end_tokens(folder, tokenizer))
