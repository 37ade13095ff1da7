"""Well-known model shapes by name, so that costs can be had without a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mpcache.model.config import ModelConfig
from mpcache.model.config_file import read_model_config
from mpcache.protocols.errors import ConfigError


def _gpt2(layers: int, heads: int) -> ModelConfig:
    hidden = 64 * heads
    return ModelConfig("gpt2", 50257, hidden, 4 * hidden, layers, heads, heads, 64, 1024, 1e-5, "gelu_tanh")


SHAPES = {
    "gpt2": _gpt2(12, 12),
    "gpt2-medium": _gpt2(24, 16),
    "llama-7b": ModelConfig("llama", 32000, 4096, 11008, 32, 32, 32, 128, 4096, 1e-5, "silu"),
    "tiny": ModelConfig("llama", 96, 32, 48, 2, 4, 2, 8, 128, 1e-5, "silu"),
}
"""The shapes of GPT-2 small and medium, of LLaMA 7B, and one for tests."""


def model_shape(name: str | Path, layers: int | None = None, positions: int = 0) -> ModelConfig:
    """A shape by its name, or that of a model folder; with `layers` layers, and room for `positions` tokens.

    Raises ConfigError for an unknown name, ModelError for a folder that cannot be used.
    """
    if str(name) in SHAPES:
        config = SHAPES[str(name)]
    elif Path(name).is_dir():
        config = read_model_config(Path(name))
    else:
        raise ConfigError(f"{str(name)!r} is neither a known shape ({', '.join(SHAPES)}) nor a model folder")
    return replace(config, layers=layers or config.layers, max_positions=max(config.max_positions, positions))
