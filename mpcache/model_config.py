"""A model's public shape."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from protocols.errors import ModelError

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True)
class ModelConfig:
    """Everything about a model that both parties and the dealer know."""

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
    end_tokens: tuple[int, ...] = ()

    @property
    def queries_per_head(self) -> int:
        return self.heads // self.key_value_heads

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> ModelConfig:
        try:
            raw = json.loads(text)
            return ModelConfig(**{**raw, "end_tokens": tuple(raw["end_tokens"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(f"the model owner sent a model description that cannot be read: {error}") from None
