"""Load a local Hugging Face folder: config.json and safetensors. No code runs, nothing is unpickled.

The folder is loaded exactly as transformers would compute it, or refused (config_file.py, stored_tensors.py).

Weights are brought into the decoder's form once, by their owner: norm gains (and biases) are folded into the linear
layer that follows, the attention's 1/sqrt(d) into the queries, and layers that read the same input are stacked, so that
they share one message. LayerNorm's subtraction of the mean is folded into what writes to the residual stream: if
embeddings and output projections are centred, the stream's mean is zero, and LayerNorm is RMSNorm, two rounds shorter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mpcache.model.config import ModelConfig
from mpcache.model.config_file import ConfigFile, read_config_file
from mpcache.model.stored_tensors import EMBEDDING, HEAD, stored_names
from mpcache.model.weights_files import is_finite, open_weights
from mpcache.protocols.errors import ModelError
from mpcache.wire import to_wire

Read = Callable[[str], torch.Tensor]
"""A stored tensor by its full name: float32, read anew and the caller's to change."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model as its owner has it: weights (out, in) and biases by the decoder's names, which no log shows."""

    config: ModelConfig
    tensors: dict[str, torch.Tensor] = field(repr=False)
    digest: str


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """The decoder's weights and their public shapes (out, in)."""
    attention, cached = config.heads * config.head_size, config.key_value_heads * config.head_size
    shapes = {"embedding": (config.hidden, config.vocabulary)}
    if config.family == "gpt2":  # for positions that party 1 alone knows; others are added by the owner
        shapes["position_embedding"] = (config.hidden, config.max_positions)
    wide = 2 * config.intermediate if config.family == "llama" else config.intermediate
    for i in range(config.layers):
        shapes[f"layers.{i}.queries_keys_values"] = (attention + 2 * cached, config.hidden)
        shapes[f"layers.{i}.attention_out"] = (config.hidden, attention)
        shapes[f"layers.{i}.feed_forward_in"] = (wide, config.hidden)
        shapes[f"layers.{i}.feed_forward_out"] = (config.hidden, config.intermediate)
    shapes["head"] = (config.vocabulary, config.hidden)
    return shapes


def load_checkpoint(folder: Path) -> Checkpoint:
    """A model folder's configuration and folded float32 weights. Raises ModelError with what is wrong.

    The digest covers what was loaded: the public shape that config.json gives, and every tensor's name, type, shape and
    stored bytes; not the tokenizer, nor how tensors are spread over files.
    Memory: the folded weights and a few tensors more.
    """
    file = read_config_file(folder)
    with open_weights(folder) as weights:
        names = stored_names(file, weights)

        def read(name: str) -> torch.Tensor:
            return weights.read(names[name])

        _check_tied(file, read, names)
        tensors = _fold_llama(file, read) if file.model.family == "llama" else _fold_gpt2(file, read)
        stored = weights.digest()
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise ModelError(f"{folder}: {name} is not finite once norms are folded into it")
    return Checkpoint(file.model, tensors, hashlib.sha256(to_wire(file.model).encode() + stored).hexdigest())


def _check_tied(file: ConfigFile, read: Read, names: Mapping[str, str]) -> None:
    """Refuse a tied model that stores two tensors that differ: transformers 4 takes the embedding for both,
    transformers 5 takes each.
    """
    embedding = EMBEDDING[file.model.family]
    if file.tied and names[HEAD] != names[embedding] and not torch.equal(read(HEAD), read(embedding)):
        raise ModelError(
            f"tie_word_embeddings says that {HEAD} and {embedding} are one, but the weights hold two that differ: "
            "set it to false in config.json if the model was trained so, or remove the wrong one"
        )


def _fold_llama(file: ConfigFile, read: Read) -> dict[str, torch.Tensor]:
    config = file.model
    out = {"embedding": read(EMBEDDING["llama"]).t(), "head": read(HEAD).mul_(read("model.norm.weight"))}
    for i in range(config.layers):
        layer, into = f"model.layers.{i}.", f"layers.{i}."
        qkv = [f"{layer}self_attn.{p}_proj" for p in "qkv"]
        gate_up = [f"{layer}mlp.gate_proj", f"{layer}mlp.up_proj"]
        groups = {
            "queries_keys_values": (qkv, f"{layer}input_layernorm", file.attention_bias),
            "attention_out": ([f"{layer}self_attn.o_proj"], None, file.attention_bias),
            "feed_forward_in": (gate_up, f"{layer}post_attention_layernorm", file.mlp_bias),
            "feed_forward_out": ([f"{layer}mlp.down_proj"], None, file.mlp_bias),
        }
        for name, (sources, norm, biased) in groups.items():
            weight = torch.cat([read(f"{s}.weight") for s in sources])
            out[into + name] = weight if norm is None else weight.mul_(read(f"{norm}.weight"))
            if biased:
                out[f"{into}{name}.bias"] = torch.cat([read(f"{s}.bias") for s in sources])
        _scale_queries(out, into, config.heads * config.head_size, config.head_size)
    return out


def _scale_queries(out: dict[str, torch.Tensor], into: str, attention: int, head_size: int) -> None:
    for name in (f"{into}queries_keys_values", f"{into}queries_keys_values.bias"):
        if name in out:
            out[name][:attention] *= head_size**-0.5


def _fold_gpt2(file: ConfigFile, read: Read) -> dict[str, torch.Tensor]:
    config = file.model
    head, embedding, positions = (read(name) for name in (HEAD, EMBEDDING["gpt2"], "transformer.wpe.weight"))
    out = {"head.bias": head @ read("transformer.ln_f.bias"), "head": head.mul_(read("transformer.ln_f.weight"))}
    out["embedding"], out["position_embedding"] = _centred(embedding.t()), _centred(positions.t())
    out["positions"] = out["position_embedding"].t()
    for i in range(config.layers):
        layer, into = f"transformer.h.{i}.", f"layers.{i}."
        sources = {
            "queries_keys_values": ("attn.c_attn", "ln_1"),
            "attention_out": ("attn.c_proj", None),
            "feed_forward_in": ("mlp.c_fc", "ln_2"),
            "feed_forward_out": ("mlp.c_proj", None),
        }
        for name, (source, norm) in sources.items():
            weight, bias = read(f"{layer}{source}.weight").t(), read(f"{layer}{source}.bias")  # stored (in, out)
            if norm is not None:
                bias = bias + weight @ read(f"{layer}{norm}.bias")
                weight = weight.mul_(read(f"{layer}{norm}.weight"))
            else:
                weight, bias = _centred(weight), _centred(bias)
            out[into + name], out[f"{into}{name}.bias"] = weight, bias
        _scale_queries(out, into, config.hidden, config.head_size)
    return out


def _centred(x: torch.Tensor) -> torch.Tensor:
    """x, changed in place to mean zero over the first dimension, what is written to."""
    return x.sub_(x.mean(0, keepdim=True))
