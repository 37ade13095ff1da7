"""A model folder's config.json: the model's public shape, and how its weights are stored.

What transformers would compute is the measure. Whatever it would do differently from the decoder is refused by name;
nothing of that kind is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mpcache.model.config import ACTIVATIONS, LIMITS, ModelConfig
from mpcache.model.config_fields import check_fields
from mpcache.model.json_files import JsonObject, find_json_object, shown
from mpcache.protocols.errors import ModelError

PLAIN_ROPE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


@dataclass(frozen=True)
class ConfigFile:
    """What config.json says. Biases: whether the linear layers have them; tied: whether head and embedding are one."""

    model: ModelConfig
    attention_bias: bool
    mlp_bias: bool
    tied: bool


def read_model_config(folder: Path) -> ModelConfig:
    """The public shape of the model in a folder. Raises ModelError, with what is wrong, for anything unsupported."""
    return read_config_file(folder).model


def read_config_file(folder: Path) -> ConfigFile:
    """A model folder's config.json. Raises ModelError, with what is wrong, for anything unsupported."""
    path = folder / "config.json"
    raw = find_json_object(path)
    if raw is None:
        raise ModelError(f"{folder} is not a model folder: it has no config.json")
    family = raw.text("model_type")
    readers = {"llama": _read_llama, "gpt2": _read_gpt2}
    if family not in readers:
        raise raw.error(f"model_type {shown(family)} is not supported (supported: {', '.join(readers)})")
    config = readers[family](raw)
    check_fields(raw, family)
    return config


def _read_llama(raw: JsonObject) -> ConfigFile:
    hidden, heads = raw.integer("hidden_size", LIMITS["hidden"]), raw.integer("num_attention_heads", LIMITS["heads"])
    if "head_dim" not in raw.names() and hidden % heads:
        raise raw.error(f"hidden_size {hidden} is no multiple of num_attention_heads {heads}, and there is no head_dim")
    head_size = raw.integer("head_dim", LIMITS["head_size"], default=hidden // heads)
    if head_size % 2:
        raise raw.error(f"the size of a head (head_dim) is {head_size}: rotary positions need an even one")
    key_value_heads = raw.integer("num_key_value_heads", LIMITS["key_value_heads"], default=heads)
    if heads % key_value_heads:
        raise raw.error(
            f"num_attention_heads {heads} is no multiple of num_key_value_heads {key_value_heads}: "
            "they cannot share them"
        )
    model = ModelConfig(
        family="llama",
        vocabulary=raw.integer("vocab_size", LIMITS["vocabulary"]),
        hidden=hidden,
        intermediate=raw.integer("intermediate_size", LIMITS["intermediate"]),
        layers=raw.integer("num_hidden_layers", LIMITS["layers"]),
        heads=heads,
        key_value_heads=key_value_heads,
        head_size=head_size,
        max_positions=raw.integer("max_position_embeddings", LIMITS["max_positions"]),
        norm_epsilon=raw.number("rms_norm_eps", 1),
        activation=_activation(raw, "hidden_act", "silu"),
        rope_theta=_rope_theta(raw),
    )
    return ConfigFile(
        model,
        attention_bias=raw.flag("attention_bias", False),
        mlp_bias=raw.flag("mlp_bias", False),
        tied=raw.flag("tie_word_embeddings", False),
    )


def _read_gpt2(raw: JsonObject) -> ConfigFile:
    hidden = _aliased(raw, "n_embd", "hidden_size", LIMITS["hidden"])
    heads = _aliased(raw, "n_head", "num_attention_heads", LIMITS["heads"])
    if hidden % heads:
        raise raw.error(f"n_embd {hidden} is no multiple of n_head {heads}")
    if raw.flag("scale_attn_by_inverse_layer_idx", False) or not raw.flag("scale_attn_weights", True):
        raise raw.error(
            "only the default scaling of attention is supported "
            "(scale_attn_weights true, scale_attn_by_inverse_layer_idx false)"
        )
    model = ModelConfig(
        family="gpt2",
        vocabulary=raw.integer("vocab_size", LIMITS["vocabulary"]),
        hidden=hidden,
        intermediate=raw.integer("n_inner", LIMITS["intermediate"], default=4 * hidden),
        layers=_aliased(raw, "n_layer", "num_hidden_layers", LIMITS["layers"]),
        heads=heads,
        key_value_heads=heads,
        head_size=hidden // heads,
        max_positions=_aliased(raw, "n_positions", "max_position_embeddings", LIMITS["max_positions"]),
        norm_epsilon=raw.number("layer_norm_epsilon", 1),
        activation=_activation(raw, "activation_function", "gelu_new"),
    )
    return ConfigFile(model, attention_bias=True, mlp_bias=True, tied=raw.flag("tie_word_embeddings", True))


def _aliased(raw: JsonObject, name: str, alias: str, most: int) -> int:
    """A field that has two names in GPT-2's files; both may be there if they agree."""
    if alias not in raw.names():
        return raw.integer(name, most)
    value = raw.integer(alias, most)
    if raw.integer(name, most, default=value) != value:
        raise raw.error(f"{name} is {shown(raw.value(name))}, but {alias} is {value}, which should be the same")
    return value


def _activation(raw: JsonObject, field: str, default: str) -> str:
    name = raw.text(field, default)
    if name not in ACTIVATIONS:
        raise raw.error(f"{field} {shown(name)} is not supported (supported: {', '.join(ACTIVATIONS)})")
    return ACTIVATIONS[name]


def _rope_theta(raw: JsonObject) -> float:
    """The base of plain rotary positions, wherever it stands; anything but plain ones is refused.

    `rope_parameters` is transformers 5's spelling, `rope_scaling` and an outer `rope_theta` the older one. Versions
    differ in which wins, so that what is there twice must be the same.
    """
    theta = raw.number("rope_theta", 1e12, default=10000.0)
    _check_whole_rotation(raw)
    stated = {theta} if "rope_theta" in raw.names() else set()
    for name in ("rope_parameters", "rope_scaling"):
        rope = raw.nested(name)
        for kind in ("rope_type", "type"):
            if rope.text(kind, "default") != "default":
                raise rope.error(f"{kind} is {shown(rope.value(kind))}: scaled rotary positions are not supported")
        _check_whole_rotation(rope)
        if extra := [field for field in rope.names() if field not in PLAIN_ROPE]:
            raise rope.error(f"{shown(extra[0])} is there: only plain rotary positions are supported")
        if rope.names():
            stated.add(rope.number("rope_theta", 1e12, default=theta))
    if len(stated) > 1:
        raise raw.error(f"rope_theta is there more than once, and differs: {', '.join(map(str, sorted(stated)))}")
    return stated.pop() if stated else theta


def _check_whole_rotation(rope: JsonObject) -> None:
    if rope.number("partial_rotary_factor", 1, default=1.0) != 1:
        factor = rope.value("partial_rotary_factor")
        raise rope.error(f"partial_rotary_factor is {shown(factor)}: only whole heads are rotated here")
