"""Random weights of a shape: costs do not depend on values."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from mpcache.model.checkpoint import Checkpoint, load_checkpoint, weight_shapes
from mpcache.model.config import ModelConfig
from mpcache.wire import to_wire


def random_checkpoint(config: ModelConfig, seed: int = 0) -> Checkpoint:
    """Weights of variance 1 / in; hidden states and scores then have the size that a trained model's have."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator).mul_(shape[1] ** -0.5)
        for name, shape in weight_shapes(config).items()
    }
    for i in range(config.layers):  # the attention's 1/sqrt(d) is part of the queries' weights
        tensors[f"layers.{i}.queries_keys_values"][: config.heads * config.head_size] *= config.head_size**-0.5
    digest = hashlib.sha256(f"random {seed} {to_wire(config)}".encode()).hexdigest()
    return Checkpoint(config, tensors, digest)


def checkpoint(config: ModelConfig, folder: Path | None) -> Checkpoint:
    """A folder's model with the configuration's positions, or random weights."""
    if folder is None:
        return random_checkpoint(config)
    loaded = load_checkpoint(folder)
    return Checkpoint(config, loaded.tensors, loaded.digest)
