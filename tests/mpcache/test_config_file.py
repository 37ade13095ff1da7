"""config.json: what changes the computation is read or refused, whatever stands in the file."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.model.config_file import read_config_file, read_model_config
from mpcache.protocols.errors import ModelError

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "eos_token_id": 2,
}
GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": 96,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "layer_norm_epsilon": 1e-5,
}


def write(folder: Path, config: object) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_each_family_has_transformers_defaults(tmp_path: Path) -> None:
    import transformers

    llama = read_config_file(write(tmp_path, LLAMA))
    reference = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (llama.tied, llama.attention_bias, llama.mlp_bias) == (
        reference.tie_word_embeddings,
        reference.attention_bias,
        reference.mlp_bias,
    )
    assert (llama.model.key_value_heads, llama.model.head_size, llama.model.activation, llama.model.rope_theta) == (
        reference.num_key_value_heads,
        reference.head_dim,
        reference.hidden_act,
        reference.rope_parameters["rope_theta"],
    )
    gpt2 = read_config_file(write(tmp_path, GPT2))
    reference = transformers.AutoConfig.from_pretrained(tmp_path)
    assert gpt2.tied == reference.tie_word_embeddings
    assert (gpt2.model.intermediate, gpt2.model.activation) == (128, "gelu_tanh")
    assert reference.activation_function == "gelu_new"


@pytest.mark.parametrize(
    ("fields", "theta"),
    [
        ({"rope_theta": 500}, 500.0),
        ({"rope_theta": 500, "rope_scaling": None}, 500.0),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, 500.0),
        ({"rope_parameters": {"rope_theta": 500.0}, "rope_theta": 500}, 500.0),
        ({"rope_scaling": {"type": "default"}, "rope_theta": 500.0}, 500.0),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}}, 10000.0),
        ({}, 10000.0),
    ],
)
def test_plain_rotary_positions_have_the_base_of_transformers(
    tmp_path: Path, fields: dict[str, object], theta: float
) -> None:
    import transformers

    write(tmp_path, {**LLAMA, **fields})
    assert transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters["rope_theta"] == theta
    assert read_model_config(tmp_path).rope_theta == theta


SCALED = {"rope_type": "linear", "factor": 2.0}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_parameters": SCALED}, "rope_parameters: rope_type is 'linear': scaled"),
        ({"rope_scaling": SCALED}, "rope_scaling: rope_type is 'linear': scaled"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling: type is 'dynamic': scaled"),
        ({"rope_parameters": PLAIN, "rope_scaling": SCALED}, "rope_scaling: rope_type is 'linear'"),
        ({"rope_parameters": SCALED, "rope_scaling": PLAIN}, "rope_parameters: rope_type is 'linear'"),
        ({"rope_scaling": {"rope_type": "default", "type": "yarn"}}, "rope_scaling: type is 'yarn'"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling: 'factor' is there"),
        ({"rope_parameters": {"full_attention": PLAIN}}, "rope_parameters: 'full_attention' is there"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "rope_parameters: partial_rotary_factor is 0.25"),
        ({"rope_parameters": PLAIN, "rope_theta": 500.0}, r"rope_theta is there more than once.*500\.0, 10000\.0"),
        ({"rope_parameters": {"rope_theta": 500.0}, "rope_scaling": {"type": "default"}}, "more than once"),
        ({"rope_parameters": ["linear"]}, r"rope_parameters is \['linear'\], not an object"),
        ({"rope_parameters": {"rope_type": 3}}, "rope_parameters: rope_type is 3, not a text"),
        ({"rope_theta": True}, "rope_theta is True, not a number"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0, not a number above 0"),
    ],
)
def test_anything_but_plain_rotary_positions_is_refused(
    tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        read_model_config(write(tmp_path, {**LLAMA, **fields}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, r"\('bitsandbytes'\): quantised"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, r"\('fp8'\): quantised"),
        ({"quantization_config": {}}, "quantised"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "quantization .*'bits': 4.*: quantised"),
        ({"compression_config": "int8"}, "compression_config .*: quantised"),
        ({"sliding_window": 4096}, "sliding_window is 4096, which changes"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is .*'sliding_attention'"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ({"logit_scale": 0.0625}, "logit_scale is 0.0625"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier is 12.0"),
        ({"residual_multiplier": 0.22}, "residual_multiplier is 0.22"),
        ({"attention_multiplier": 0.0078125}, "attention_multiplier is"),
        ({"is_causal": False}, "is_causal is False"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads is"),
        ({"per_layer_config": {"0": {"intermediate_size": 8}}}, "per_layer_config is"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}}, "auto_map is"),
        ({"transformers_weights": "other.safetensors"}, "transformers_weights is 'other.safetensors'"),
        ({"hidden_act": "relu6"}, "hidden_act 'relu6' is not supported"),
        ({"model_type": "bert"}, "model_type 'bert' is not supported"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings is None, not true or false"),
        ({"attention_bias": 1}, "attention_bias is 1, not true or false"),
    ],
)
def test_a_field_that_changes_what_the_model_computes_is_refused(
    tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        read_model_config(write(tmp_path, {**LLAMA, **fields}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "only the default scaling"),
        ({"scale_attn_weights": False}, "only the default scaling"),
        ({"scale_attn_weights": None}, "not true or false"),
        ({"hidden_size": 64}, "n_embd is 32, but hidden_size is 64"),
        ({"n_head": 5}, "n_embd 32 is no multiple of n_head 5"),
        ({"n_inner": 0}, "n_inner is 0"),
    ],
)
def test_gpt2s_fields_are_refused_likewise(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_model_config(write(tmp_path, {**GPT2, **fields}))


@pytest.mark.parametrize("config", [LLAMA, GPT2])
def test_values_without_effect_pass_in_silence(
    tmp_path: Path, config: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    plain = read_config_file(write(tmp_path, config))
    extras = {
        "sliding_window": None,
        "logit_scale": 1.0,
        "auto_map": None,
        "quantization_config": None,
        "layer_types": ["full_attention"] * 2,
        "pretraining_tp": 2,
        "reorder_and_upcast_attn": True,
        "attention_dropout": 0.1,
        "temperature": 0.7,
        "torch_dtype": "bfloat16",
        "some_new_field": None,
    }
    assert read_config_file(write(tmp_path, {**config, **extras})) == plain
    assert not caplog.text


def test_an_unknown_field_is_named_in_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_model_config(write(tmp_path, {**LLAMA, "warp_factor": 9, "a\nb": 1}))
    assert r"not known here are ignored: 'warp_factor', 'a\nb'" in caplog.text


def test_a_class_of_another_name_is_named_in_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_model_config(write(tmp_path, {**LLAMA, "architectures": ["LlamaLoopedForCausalLM"]}))
    assert "architectures is ['LlamaLoopedForCausalLM']: taken for LlamaForCausalLM" in caplog.text


COUNTS = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]


@pytest.mark.parametrize("value", [0, -1, 10**9, 10**400, True, 2.0, "2", [2], {"a": 2}])
@pytest.mark.parametrize("field", [*COUNTS, "num_key_value_heads", "head_dim", "max_position_embeddings"])
def test_a_count_is_a_whole_number_in_its_range(tmp_path: Path, field: str, value: object) -> None:
    with pytest.raises(ModelError, match=rf"config\.json: {field} is .* not a whole number from 1 to [\d,]+$"):
        read_model_config(write(tmp_path, {**LLAMA, field: value}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"num_attention_heads": 3}, "hidden_size 32 is no multiple of num_attention_heads 3"),
        ({"num_attention_heads": 3, "head_dim": 8, "num_key_value_heads": 2}, "cannot share"),
        ({"num_key_value_heads": 8}, "cannot share"),
        ({"head_dim": 7}, r"\(head_dim\) is 7: .*even"),
        ({"hidden_size": 36}, r"\(head_dim\) is 9: .*even"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0, not a number above 0"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6', not a number"),
        ({"hidden_act": ["silu"]}, r"hidden_act is \['silu'\], not a text"),
        ({"model_type": ["llama"]}, r"model_type is \['llama'\], not a text"),
    ],
)
def test_shapes_that_cannot_be_are_refused_by_their_field(
    tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        read_model_config(write(tmp_path, {**LLAMA, **fields}))


def test_heads_may_have_a_size_of_their_own(tmp_path: Path) -> None:
    config = read_model_config(write(tmp_path, {**LLAMA, "num_attention_heads": 3, "head_dim": 16}))
    assert (config.heads, config.head_size) == (3, 16)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from([*LLAMA, *GPT2, "rope_parameters", "rope_scaling", "head_dim", "layer_types", "auto_map"])


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


@settings(max_examples=200, deadline=None)
@given(ANY_JSON)
def test_any_json_is_an_error_in_words(scratch: Path, value: object) -> None:
    with pytest.raises(ModelError):
        read_model_config(write(scratch, value))


@settings(max_examples=200, deadline=None)
@given(st.binary())
def test_any_bytes_are_an_error_in_words(scratch: Path, text: bytes) -> None:
    (scratch / "config.json").write_bytes(text)
    with pytest.raises(ModelError):
        read_model_config(scratch)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([LLAMA, GPT2]), st.dictionaries(FIELDS | st.text(), ANY_JSON, max_size=3))
def test_any_field_is_read_or_an_error_in_words(scratch: Path, config: dict, changes: dict) -> None:
    with suppress(ModelError):
        read_model_config(write(scratch, {**config, **changes}))
