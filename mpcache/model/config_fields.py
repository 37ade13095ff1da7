"""What the fields of a config.json mean for the computation, beyond those that config_file.py reads.

Three kinds. `NEUTRAL`: fields that change what some model computes, with the values that change nothing here; any
other value is refused. `HARMLESS`: bookkeeping, training, sampling. All others are named in a warning and not refused:
transformers ignores fields that a family does not have, too, real folders are full of notes that some tool left, and
a field that needs weights of its own is caught by these (stored_tensors.py).
"""

from __future__ import annotations

import logging
from typing import Any

from mpcache.model.json_files import JsonObject, shown, some

log = logging.getLogger("mpcache.model.checkpoint")

QUANTISATION = ("quantization_config", "quantization", "compression_config")
"""Where tools note that the stored numbers are not the weights: transformers and most others, MLX, llm-compressor."""

ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel"),
    "gpt2": ("GPT2LMHeadModel", "GPT2Model"),
}
"""The classes that a family's decoder is trained as."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    # who sees whom
    "sliding_window": (),
    "use_sliding_window": (False,),
    "sliding_window_pattern": (),
    "interleaved_sliding_window": (),
    "attention_window_size": (),
    "attention_chunk_size": (),
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "use_bidirectional_attention": (False,),
    # scores and logits
    "attention_multiplier": (),
    "query_pre_attn_scalar": (),
    "attn_scale": (),
    "attn_temperature_tuning": (False,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "clip_qkv": (),
    "qk_norm": (False,),
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "lm_head_multiplier": (1,),
    # the residual stream
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "scale_embedding": (False,),
    "scale_emb": (1,),
    "scale_depth": (),
    "dim_model_base": (),
    "parallel_attn": (False,),
    "use_parallel_residual": (False,),
    # positions
    "alibi": (False,),
    "rope_interleaved": (False,),
    "rotary_pct": (1,),
    "rotary_dim": (),
    "no_rope_layers": ([],),
    "no_rope_layer_interval": (),
    # layers of another kind, other weights, other code
    "num_experts": (0,),
    "num_local_experts": (0,),
    "n_routed_experts": (0,),
    "pruned_heads": ({},),
    "per_layer_config": ({},),
    "vision_config": (),
    "text_config": (),
    "auto_map": ({},),
    "transformers_weights": (),
}
"""Values without effect; null is one for every field."""

HARMLESS = frozenset(
    # what the folder is, and how it was made
    """_commit_hash _name_or_path dtype finetuning_task is_llama_config name_or_path problem_type tokenizer_class
    torch_dtype torchscript transformers.js_config transformers_version unsloth_fixed unsloth_version use_bfloat16
    """.split()
    # how to run it: the same numbers, up to rounding
    + """_attn_implementation _attn_implementation_autoset _flash_attn_2_enabled attn_implementation
    chunk_size_feed_forward gradient_checkpointing pretraining_tp reorder_and_upcast_attn return_dict tf_legacy_loss
    use_cache""".split()
    # training
    + "attention_dropout attn_pdrop embd_pdrop hidden_dropout initializer_range resid_pdrop".split()
    # heads of other tasks: their weights would be left over, and are refused
    + """id2label label2id num_labels summary_activation summary_first_dropout summary_proj_to_labels summary_type
    summary_use_proj task_specific_params""".split()
    # another name for what is read, or without meaning in a decoder with plain positions
    + """cross_attention_hidden_size is_decoder max_sequence_length n_ctx original_max_position_embeddings
    tie_encoder_decoder""".split()
    # tokens by name, and sampling: a request says how to sample, and which tokens end an answer is the client's affair
    + """bad_words_ids begin_suppress_tokens bos_token_id decoder_start_token_id diversity_penalty do_sample
    early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id length_penalty max_length max_new_tokens min_length no_repeat_ngram_size num_beam_groups
    num_beams num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix
    remove_invalid_values repetition_penalty return_dict_in_generate sep_token_id suppress_tokens temperature top_k
    top_p typical_p""".split()
)
"""Fields that say nothing about what the model computes."""


def check_fields(config: JsonObject, family: str) -> None:
    """Refuse fields that were not read and change the computation; warn of those that nobody here knows.

    Raises ModelError.
    """
    for name in QUANTISATION:
        method = config.value(name)
        if method is not None:
            kind = method.get("quant_method", method) if isinstance(method, dict) else method
            raise config.error(f"{name} ({shown(kind)}): quantised checkpoints are not supported; save it dequantised")
    _check_layer_types(config)
    for name in config.unread():
        value = config.value(name) if name in NEUTRAL else None
        if value is not None and not any(value == neutral for neutral in NEUTRAL[name]):
            raise config.error(f"{name} is {shown(value)}, which changes what a model computes: it is not supported")
    classes = config.value("architectures")
    if classes is not None and (not isinstance(classes, list) or any(c not in ARCHITECTURES[family] for c in classes)):
        log.warning("%s", config.error(f"architectures is {shown(classes)}: taken for {ARCHITECTURES[family][0]}"))
    unknown = [name for name in config.unread() if name not in HARMLESS]
    if unknown:
        log.warning("%s", config.error(f"fields that are not known here are ignored: {some(unknown)}"))


def _check_layer_types(config: JsonObject) -> None:
    kinds = config.value("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)):
        raise config.error(f"layer_types is {shown(kinds)}: only layers of full attention are supported")
