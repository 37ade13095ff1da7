"""A model's public shape, read from a Hugging Face config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpcache.wire import STRICT
from protocols.errors import ModelError

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


FAMILIES = ("llama", "gpt2")
LIMITS = {
    "vocabulary": 1 << 21,
    "hidden": 1 << 16,
    "intermediate": 1 << 18,
    "layers": 1 << 10,
    "heads": 1 << 10,
    "key_value_heads": 1 << 10,
    "head_size": 1 << 12,
    "max_positions": 1 << 24,
}
"""What no model exceeds: checked before anything of a description is allocated or looped over."""


@dataclass(frozen=True)
class ModelConfig:
    """Everything about a model that both parties and the dealer know. Raises ModelError for what cannot be a model."""

    family: str
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    max_positions: int
    norm_epsilon: float
    activation: str
    rope_theta: float = 10000.0

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            if not 1 <= getattr(self, name) <= limit:
                raise ModelError(f"a model's {name} lies between 1 and {limit:,}, not {getattr(self, name)}")
        if self.family not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise ModelError(f"the model family {self.family[:40]!r} is not supported (supported: {known})")
        if self.activation not in ACTIVATIONS.values():
            raise ModelError(f"the activation {self.activation[:40]!r} is not supported")
        if self.heads % self.key_value_heads:
            raise ModelError(f"{self.heads} heads cannot share {self.key_value_heads} key/value heads")
        if self.family == "llama" and self.head_size % 2:
            raise ModelError(f"rotary positions need an even head size, not {self.head_size}")
        if not 0 < self.norm_epsilon <= 1:
            raise ModelError(f"a norm's epsilon lies above 0 and is at most 1, not {self.norm_epsilon:g}")
        if not 1 <= self.rope_theta <= 1e12:
            raise ModelError(f"rotary positions' theta lies between 1 and 1e12, not {self.rope_theta:g}")

    @property
    def queries_per_head(self) -> int:
        return self.heads // self.key_value_heads


def read_model_config(folder: Path) -> ModelConfig:
    """The configuration in a model folder. Raises ModelError, with what is wrong, for anything unsupported."""
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelError(f"{folder} is not a model folder: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    family = raw.get("model_type")
    readers = {"llama": _read_llama, "gpt2": _read_gpt2}
    if family not in readers:
        raise ModelError(f"{path}: model_type {family!r} is not supported (supported: {', '.join(readers)})")
    try:
        config = readers[family](raw)
    except KeyError as error:
        raise ModelError(f"{path}: {error} is missing") from None
    except (TypeError, ValueError, ModelError) as error:
        raise ModelError(f"{path}: {error}") from None
    return config


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not supported (supported: {', '.join(ACTIVATIONS)})")
    return ACTIVATIONS[name]


def _read_llama(raw: dict[str, Any]) -> ModelConfig:
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ValueError("scaled rotary positions (rope_scaling) are not supported")
    heads = int(raw["num_attention_heads"])
    return ModelConfig(
        family="llama",
        vocabulary=int(raw["vocab_size"]),
        hidden=int(raw["hidden_size"]),
        intermediate=int(raw["intermediate_size"]),
        layers=int(raw["num_hidden_layers"]),
        heads=heads,
        key_value_heads=int(raw.get("num_key_value_heads") or heads),
        head_size=int(raw.get("head_dim") or raw["hidden_size"] // heads),
        max_positions=int(raw["max_position_embeddings"]),
        norm_epsilon=float(raw["rms_norm_eps"]),
        activation=_activation(raw.get("hidden_act", "silu")),
        rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10000.0))),
    )


def _read_gpt2(raw: dict[str, Any]) -> ModelConfig:
    hidden, heads = int(raw["n_embd"]), int(raw["n_head"])
    if raw.get("scale_attn_by_inverse_layer_idx") or not raw.get("scale_attn_weights", True):
        raise ValueError("only the default scaling of attention is supported")
    return ModelConfig(
        family="gpt2",
        vocabulary=int(raw["vocab_size"]),
        hidden=hidden,
        intermediate=int(raw.get("n_inner") or 4 * hidden),
        layers=int(raw["n_layer"]),
        heads=heads,
        key_value_heads=heads,
        head_size=hidden // heads,
        max_positions=int(raw["n_positions"]),
        norm_epsilon=float(raw["layer_norm_epsilon"]),
        activation=_activation(raw.get("activation_function", "gelu_new")),
    )
