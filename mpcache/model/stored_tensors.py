"""Which tensors a checkpoint must hold, by Hugging Face's names and shapes, and which it may hold besides.

Exactly these: one that is missing, of another shape, or left over means that config.json and weights do not belong
together, or that the model computes something that the decoder does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mpcache.model.config_file import ConfigFile
from mpcache.model.json_files import shown, some
from mpcache.model.weights_files import WeightsFiles
from mpcache.protocols.errors import ModelError

HEAD = "lm_head.weight"
EMBEDDING = {"llama": "model.embed_tokens.weight", "gpt2": "transformer.wte.weight"}
PREFIX = {"llama": "model.", "gpt2": "transformer."}
"""What comes before every name but the head's; a checkpoint saved without its head leaves it out."""

WITHOUT_EFFECT = {
    "llama": r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
    "gpt2": r"transformer\.h\.\d+\.attn\.(masked_)?bias",
}
"""Buffers that older versions stored: rotary frequencies and causal masks, which follow from config.json."""

QUANTISED = re.compile(
    r"(.*[._])?(scales?|scale_inv|qweight|qzeros|zero_point|g_idx|SCB|absmax|quant_map|weight_packed|biases)"
    r"|.*[._](quant_state|nested_absmax|nested_quant_map)[._].*"
)


def stored_names(file: ConfigFile, weights: WeightsFiles) -> dict[str, str]:
    """The stored name of each tensor by its full name. Raises ModelError if they are not exactly what is due.

    Of a tied model's embedding and head one may be missing: it is then the other.
    """
    family, folder = file.model.family, weights.folder
    due = _llama_shapes(file) if family == "llama" else _gpt2_shapes(file)
    names: dict[str, str] = {}
    for name in weights.shapes:
        full = name if name == HEAD or name.startswith(PREFIX[family]) else PREFIX[family] + name
        if full in names:
            raise ModelError(f"{folder}: the weights hold both {shown(names[full])} and {shown(name)}")
        names[full] = name
    left = [name for full, name in names.items() if full not in due and not re.fullmatch(WITHOUT_EFFECT[family], full)]
    _refuse_quantised(weights, left)
    _refuse_missing(file, weights, due.keys() - names.keys())
    if left:
        raise ModelError(f"{folder}: the weights hold what a {family} model of this config.json has not: {some(left)}")
    for full, shape in due.items():
        if full in names and weights.shapes[names[full]] != shape:
            found = weights.shapes[names[full]]
            raise ModelError(f"{folder}: {shown(names[full])} has shape {found}, config.json says {shape}")
    either = names.get(EMBEDDING[family]) or names[HEAD]
    return {full: names.get(full, either) for full in due}


def _refuse_quantised(weights: WeightsFiles, left: Iterable[str]) -> None:
    if found := [name for name in left if QUANTISED.fullmatch(name)]:
        raise ModelError(
            f"{weights.folder}: quantised checkpoints are not supported, and the weights hold {some(found)}: "
            "save it dequantised"
        )


def _refuse_missing(file: ConfigFile, weights: WeightsFiles, missing: Iterable[str]) -> None:
    lacking = sorted(missing)
    if file.tied and (HEAD in lacking) != (EMBEDDING[file.model.family] in lacking):
        lacking = [name for name in lacking if name not in (HEAD, EMBEDDING[file.model.family])]
    if lacking:
        hint = " (tie_word_embeddings is false)" if HEAD in lacking and not file.tied else ""
        raise ModelError(f"{weights.folder}: the weights lack {some(lacking)}{hint}")


def _llama_shapes(file: ConfigFile) -> dict[str, tuple[int, ...]]:
    c = file.model
    hidden, inner = c.hidden, c.intermediate
    queries, cached = c.heads * c.head_size, c.key_value_heads * c.head_size
    linear = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (cached, hidden),
        "self_attn.v_proj": (cached, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING["llama"]: (c.vocabulary, hidden), HEAD: (c.vocabulary, hidden)}
    for i in range(c.layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{i}.{norm}.weight"] = (hidden,)
        for name, shape in linear.items():
            shapes[f"model.layers.{i}.{name}.weight"] = shape
            if file.attention_bias if name.startswith("self_attn") else file.mlp_bias:
                shapes[f"model.layers.{i}.{name}.bias"] = shape[:1]
    shapes["model.norm.weight"] = (hidden,)
    return shapes


def _gpt2_shapes(file: ConfigFile) -> dict[str, tuple[int, ...]]:
    c = file.model
    linear = {  # (in, out)
        "attn.c_attn": (c.hidden, 3 * c.hidden),
        "attn.c_proj": (c.hidden, c.hidden),
        "mlp.c_fc": (c.hidden, c.intermediate),
        "mlp.c_proj": (c.intermediate, c.hidden),
    }
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING["gpt2"]: (c.vocabulary, c.hidden), HEAD: (c.vocabulary, c.hidden)}
    shapes["transformer.wpe.weight"] = (c.max_positions, c.hidden)
    norms = [f"h.{i}.{norm}" for i in range(c.layers) for norm in ("ln_1", "ln_2")]
    for norm in [*norms, "ln_f"]:
        shapes[f"transformer.{norm}.weight"] = shapes[f"transformer.{norm}.bias"] = (c.hidden,)
    for i in range(c.layers):
        for name, shape in linear.items():
            shapes[f"transformer.h.{i}.{name}.weight"] = shape
            shapes[f"transformer.h.{i}.{name}.bias"] = shape[1:]
    return shapes
