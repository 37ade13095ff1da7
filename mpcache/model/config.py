"""A model's public shape."""

from __future__ import annotations

from dataclasses import dataclass

from mpcache.protocols.errors import ModelError
from mpcache.wire import STRICT, from_wire, to_wire

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
    "hidden": 1 << 15,
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
                raise ModelError(f"a model's {name} lies between 1 and {limit:,}, not {str(getattr(self, name))[:40]}")
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

    def to_json(self) -> str:
        """Canonical: equal shapes give equal text."""
        return to_wire(self)

    @staticmethod
    def from_json(text: str) -> ModelConfig:
        """What a peer sent. Raises HandshakeError, or ModelError for what cannot be a model."""
        return from_wire(ModelConfig, text, "the model's shape")
