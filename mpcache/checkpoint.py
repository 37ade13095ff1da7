"""Load a local Hugging Face folder: config.json, safetensors, tokenizer.json. No code runs, nothing is unpickled.

Weights are brought into the decoder's form once, by their owner: norm gains (and biases) are folded into the linear
layer that follows, the attention's 1/sqrt(d) into the queries, and layers that read the same input are stacked, so that
they share one message. LayerNorm's subtraction of the mean is folded into what writes to the residual stream: if
embeddings and output projections are centred, the stream's mean is zero, and LayerNorm is RMSNorm, two rounds shorter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from mpcache.model_config import ModelConfig, read_model_config
from mpcache.wire import to_wire
from protocols.errors import ModelError

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A model as its owner has it: weights (out, in) and biases by the decoder's names."""

    config: ModelConfig
    tensors: dict[str, torch.Tensor]
    digest: str


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """The decoder's weights and their public shapes (out, in)."""
    attention, cached = config.heads * config.head_size, config.key_value_heads * config.head_size
    shapes = {"embedding": (config.hidden, config.vocabulary)}
    wide = 2 * config.intermediate if config.family == "llama" else config.intermediate
    for i in range(config.layers):
        shapes[f"layers.{i}.queries_keys_values"] = (attention + 2 * cached, config.hidden)
        shapes[f"layers.{i}.attention_out"] = (config.hidden, attention)
        shapes[f"layers.{i}.feed_forward_in"] = (wide, config.hidden)
        shapes[f"layers.{i}.feed_forward_out"] = (config.hidden, config.intermediate)
    shapes["head"] = (config.vocabulary, config.hidden)
    return shapes


def load_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer.json. Raises ModelError."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no tokenizer.json")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{path} cannot be read: {error}") from None


def load_checkpoint(folder: Path) -> Checkpoint:
    """A model folder's configuration and folded float32 weights. Raises ModelError with what is wrong."""
    config = read_model_config(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder} has no .safetensors file (other formats may hold code and are not read)")
    raw: dict[str, torch.Tensor] = {}
    digest = hashlib.sha256(to_wire(config).encode())
    for path in files:
        try:
            with safe_open(str(path), framework="pt") as tensors:
                raw.update({name: tensors.get_tensor(name).float() for name in tensors.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read: {error}") from None
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    try:
        tensors = _fold_llama(config, raw) if config.family == "llama" else _fold_gpt2(config, raw)
    except KeyError as error:
        raise ModelError(f"{folder}: the weights lack {error}") from None
    for name, shape in weight_shapes(config).items():
        if tuple(tensors[name].shape) != shape:
            raise ModelError(f"{folder}: {name} has shape {tuple(tensors[name].shape)}, config.json says {shape}")
    return Checkpoint(config, tensors, digest.hexdigest())


def _stack(raw: Tensors, names: list[str]) -> torch.Tensor:
    return torch.cat([raw[name] for name in names])


def _fold_llama(config: ModelConfig, raw: Tensors) -> dict[str, torch.Tensor]:
    attention = config.heads * config.head_size
    out = {"embedding": raw["model.embed_tokens.weight"].t()}
    for i in range(config.layers):
        layer, into = f"model.layers.{i}.", f"layers.{i}."
        qkv = [f"{layer}self_attn.{p}_proj" for p in "qkv"]
        gate_up = [f"{layer}mlp.gate_proj", f"{layer}mlp.up_proj"]
        groups = {
            "queries_keys_values": (qkv, raw[f"{layer}input_layernorm.weight"]),
            "attention_out": ([f"{layer}self_attn.o_proj"], None),
            "feed_forward_in": (gate_up, raw[f"{layer}post_attention_layernorm.weight"]),
            "feed_forward_out": ([f"{layer}mlp.down_proj"], None),
        }
        for name, (sources, gain) in groups.items():
            weight = _stack(raw, [f"{s}.weight" for s in sources])
            out[into + name] = weight if gain is None else weight * gain
            if f"{sources[0]}.bias" in raw:
                out[f"{into}{name}.bias"] = _stack(raw, [f"{s}.bias" for s in sources])
        _scale_queries(out, into, attention, config.head_size)
    out["head"] = raw.get("lm_head.weight", raw["model.embed_tokens.weight"]) * raw["model.norm.weight"]
    return out


def _scale_queries(out: dict[str, torch.Tensor], into: str, attention: int, head_size: int) -> None:
    for name in (f"{into}queries_keys_values", f"{into}queries_keys_values.bias"):
        if name in out:
            out[name] = torch.cat([out[name][:attention] * head_size**-0.5, out[name][attention:]])


def _fold_gpt2(config: ModelConfig, raw: Tensors) -> dict[str, torch.Tensor]:
    raw = {name.removeprefix("transformer."): tensor for name, tensor in raw.items()}
    out = {"embedding": _centred(raw["wte.weight"].t()), "positions": _centred(raw["wpe.weight"].t()).t()}
    for i in range(config.layers):
        layer, into = f"h.{i}.", f"layers.{i}."
        sources = {
            "queries_keys_values": ("attn.c_attn", "ln_1"),
            "attention_out": ("attn.c_proj", None),
            "feed_forward_in": ("mlp.c_fc", "ln_2"),
            "feed_forward_out": ("mlp.c_proj", None),
        }
        for name, (source, norm) in sources.items():
            weight, bias = raw[f"{layer}{source}.weight"].t(), raw[f"{layer}{source}.bias"]  # stored (in, out)
            if norm is not None:
                bias = bias + weight @ raw[f"{layer}{norm}.bias"]
                weight = weight * raw[f"{layer}{norm}.weight"]
            else:
                weight, bias = _centred(weight), _centred(bias)
            out[into + name], out[f"{into}{name}.bias"] = weight, bias
        _scale_queries(out, into, config.hidden, config.head_size)
    head = raw.get("lm_head.weight", raw["wte.weight"])
    out["head"], out["head.bias"] = head * raw["ln_f.weight"], head @ raw["ln_f.bias"]
    return out


def _centred(x: torch.Tensor) -> torch.Tensor:
    """With mean zero over the first dimension, what is written to."""
    return x - x.mean(0, keepdim=True)
