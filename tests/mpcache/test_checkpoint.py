"""A folder is loaded exactly as transformers would, or refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mpcache.generation.loop import steps
from mpcache.model.checkpoint import load_checkpoint
from mpcache.model.decoder import Decoder
from mpcache.protocols.backends.plain import PlainBackend
from mpcache.protocols.errors import ModelError
from tests.asking import asked
from tests.mpcache.folders import (
    add_tensor,
    change_config,
    change_index,
    change_weights,
    drop_config,
    drop_tensors,
    read_index,
    rename_tensor,
    shard,
)
from tests.mpcache.models import save_random_model
from tests.mpcache.test_config_file import ANY_JSON

HEAD, LLAMA_EMBEDDING, GPT2_EMBEDDING = "lm_head.weight", "model.embed_tokens.weight", "transformer.wte.weight"
PROMPT = [5, 17, 90, 3, 3, 41, 77, 8]
NEW_TOKENS = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_random_model(tmp_path, "llama")
    return tmp_path


def without_prefix(folder: Path, prefix: str) -> None:
    change_weights(folder, lambda tensors: {name.removeprefix(prefix): t for name, t in tensors.items()})


def as_gpt2_was_published(folder: Path) -> None:
    without_prefix(folder, "transformer.")
    for i in range(2):
        add_tensor(folder, f"h.{i}.attn.bias", torch.ones(1, 1, 128, 128).tril())
        add_tensor(folder, f"h.{i}.attn.masked_bias", torch.tensor(-1e4))


def with_rotary_buffers(folder: Path) -> None:
    for i in range(2):
        add_tensor(folder, f"model.layers.{i}.self_attn.rotary_emb.inv_freq", torch.ones(4))


def with_the_same_head(folder: Path) -> None:
    add_tensor(folder, HEAD, load_file(folder / "model.safetensors")[LLAMA_EMBEDDING].clone())


def in_older_spelling(folder: Path) -> None:
    drop_config(folder, "rope_parameters", "dtype", "head_dim", "attention_bias", "mlp_bias", "tie_word_embeddings")
    change_config(folder, rope_theta=500, rope_scaling=None, torch_dtype="float32", pretraining_tp=2)


def in_16_bits(dtype: torch.dtype) -> Callable[[Path], None]:
    return lambda folder: change_weights(folder, lambda tensors: {n: t.to(dtype) for n, t in tensors.items()})


def under_gpt2s_other_names(folder: Path) -> None:
    drop_config(folder, "n_embd", "n_layer", "n_head", "n_positions")
    change_config(
        folder, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128, n_layer=2
    )


LOADED: dict[str, tuple[str, dict[str, object], Callable[[Path], object]]] = {
    "tied": ("llama", {"tie_word_embeddings": True}, lambda f: None),
    "tied, the head stored as well": ("llama", {"tie_word_embeddings": True}, with_the_same_head),
    "tied, only the head stored": (
        "llama",
        {"tie_word_embeddings": True},
        lambda f: rename_tensor(f, LLAMA_EMBEDDING, HEAD),
    ),
    "gpt2, tied, only the head stored": ("gpt2", {}, lambda f: rename_tensor(f, GPT2_EMBEDDING, HEAD)),
    "gpt2, tied by default": ("gpt2", {}, lambda f: drop_config(f, "tie_word_embeddings")),
    "gpt2, not tied": ("gpt2", {"tie_word_embeddings": False}, lambda f: None),
    "gpt2 as published": ("gpt2", {}, as_gpt2_was_published),
    "gpt2, fields under other names": ("gpt2", {}, under_gpt2s_other_names),
    "llama's decoder alone, tied": ("llama", {"tie_word_embeddings": True}, lambda f: without_prefix(f, "model.")),
    "rotary buffers": ("llama", {}, with_rotary_buffers),
    "older spelling": ("llama", {}, in_older_spelling),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}, lambda f: None),
    "biases in attention alone": ("llama", {"attention_bias": True}, lambda f: None),
    "three shards": ("llama", {}, lambda f: shard(f, 3)),
    "gpt2 in shards": ("gpt2", {}, shard),
    "bfloat16": ("llama", {}, in_16_bits(torch.bfloat16)),
    "float16": ("gpt2", {}, in_16_bits(torch.float16)),
    "float64": ("llama", {}, in_16_bits(torch.float64)),
}


@pytest.mark.parametrize("case", LOADED)
def test_what_loads_generates_what_transformers_generates(tmp_path: Path, case: str) -> None:
    import transformers

    family, changes, rewrite = LOADED[case]
    save_random_model(tmp_path, family, **changes)
    rewrite(tmp_path)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = reference.generate(
            torch.tensor([PROMPT]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(PROMPT) :].tolist()
        logits = reference(torch.tensor([PROMPT + expected[:-1]])).logits[0, -1]

    checkpoint, backend = load_checkpoint(tmp_path), PlainBackend()
    decoder = Decoder(checkpoint.config, backend, checkpoint.tensors)
    assert list(steps(decoder, asked(len(PROMPT), NEW_TOKENS), PROMPT)) == expected
    assert (backend.last_logits - logits).abs().max() < 1e-4


def with_bias(folder: Path, name: str, size: int) -> None:
    add_tensor(folder, f"model.layers.0.{name}.bias", torch.ones(size))


def quantised_to_bytes(folder: Path) -> None:
    def quantise(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.layers.0.mlp.up_proj.weight"
        tensors[name] = tensors[name].round().to(torch.int8)

    change_weights(folder, quantise)


def quantised_to_float8(folder: Path) -> None:
    def quantise(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.layers.0.mlp.up_proj.weight"
        tensors[f"{name}_scale"] = tensors[name].abs().max() / 448
        tensors[name] = (tensors[name] / tensors[f"{name}_scale"]).to(torch.float8_e4m3fn)

    change_weights(folder, quantise)


def packed(folder: Path) -> None:
    def pack(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.layers.0.mlp.up_proj"
        del tensors[f"{name}.weight"]
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            tensors[f"{name}.{part}"] = torch.zeros(4, 4, dtype=torch.int32)

    change_weights(folder, pack)


def one_number(value: float, name: str = "model.layers.1.input_layernorm.weight") -> Callable[[Path], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[3] = value

    return lambda folder: change_weights(folder, change)


def beyond_float32(folder: Path) -> None:
    in_16_bits(torch.float64)(folder)
    one_number(1e39)(folder)


def infinite_when_folded(folder: Path) -> None:
    one_number(1e25)(folder)
    one_number(1e25, "model.layers.1.self_attn.q_proj.weight")(folder)


REFUSED: dict[str, tuple[dict[str, object], Callable[[Path], object], str]] = {
    "float8 with scales": ({}, quantised_to_float8, r"quantised.*'model\.layers\.0\.mlp\.up_proj\.weight_scale'"),
    "bytes": ({}, quantised_to_bytes, r"'model\.layers\.0\.mlp\.up_proj\.weight' is stored as I8"),
    "GPTQ": ({}, packed, r"quantised.*up_proj\.g_idx'.*qweight"),
    "no head, not tied": ({}, lambda f: drop_tensors(f, HEAD), r"lack 'lm_head\.weight' \(tie_word_embeddings is"),
    "no head, tied only in other families": (
        {},
        lambda f: (drop_tensors(f, HEAD), drop_config(f, "tie_word_embeddings")),
        r"lack 'lm_head\.weight'",
    ),
    "no embedding, not tied": ({}, lambda f: drop_tensors(f, LLAMA_EMBEDDING), r"lack 'model\.embed_tokens\.weight'"),
    "tied, neither stored": (
        {"tie_word_embeddings": True},
        lambda f: drop_tensors(f, LLAMA_EMBEDDING),
        r"lack 'lm_head\.weight', 'model\.embed_tokens\.weight'$",
    ),
    "tied, and a head that differs": ({}, lambda f: change_config(f, tie_word_embeddings=True), "two that differ"),
    "a layer more": (
        {},
        lambda f: change_config(f, num_hidden_layers=1),
        r"has not: 'model\.layers\.1\..* and 4 more$",
    ),
    "a layer less": ({}, lambda f: change_config(f, num_hidden_layers=3), r"lack 'model\.layers\.2\..* and 4 more$"),
    "a tensor left over": (
        {},
        lambda f: add_tensor(f, "model.layers.0.self_attn.q_norm.weight", torch.ones(8)),
        r"has not: 'model\.layers\.0\.self_attn\.q_norm\.weight'$",
    ),
    "a head's bias": ({}, lambda f: add_tensor(f, "lm_head.bias", torch.ones(96)), r"has not: 'lm_head\.bias'"),
    "one name with and without prefix": ({}, lambda f: add_tensor(f, "norm.weight", torch.ones(32)), "hold both"),
    "biases that config.json denies": (
        {"attention_bias": True},
        lambda f: change_config(f, attention_bias=False),
        r"has not: .*bias",
    ),
    "one bias that config.json denies": (
        {},
        lambda f: with_bias(f, "self_attn.q_proj", 32),
        r"has not: 'model\.layers\.0\.self_attn\.q_proj\.bias'",
    ),
    "biases that are missing": ({}, lambda f: change_config(f, mlp_bias=True), r"lack 'model\.layers\.0\.mlp\..*bias'"),
    "one bias that is missing": (
        {"attention_bias": True},
        lambda f: drop_tensors(f, "model.layers.1.self_attn.k_proj.bias"),
        r"lack 'model\.layers\.1\.self_attn\.k_proj\.bias'$",
    ),
    "a gain of one number": (
        {},
        lambda f: add_tensor(f, "model.norm.weight", torch.ones(1)),
        r"'model\.norm\.weight' has shape \(1,\), config.json says \(32,\)",
    ),
    "NaN": ({}, one_number(float("nan")), r"'model\.layers\.1\.input_layernorm\.weight' holds numbers that are NaN"),
    "infinity": ({}, one_number(float("-inf")), r"input_layernorm\.weight' holds numbers that are NaN, infinite"),
    "beyond float32": ({}, beyond_float32, r"input_layernorm\.weight' holds .* too large for float32"),
    "infinite once folded": ({}, infinite_when_folded, r"layers\.1\.queries_keys_values is not finite once"),
    "no file": ({}, lambda f: (f / "model.safetensors").unlink(), r"no \.safetensors file .*may hold code"),
    "no safetensors file": ({}, lambda f: (f / "model.safetensors").write_bytes(b"12345678"), "cannot be read"),
    "cut short": (
        {},
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-4]),
        "cannot be read",
    ),
    "an adapter": ({}, lambda f: (f / "adapter_config.json").write_text("{}"), "LoRA adapter .*merge it"),
    "an adapter's weights": (
        {},
        lambda f: (f / "adapter_model.safetensors").write_bytes(b""),
        r"LoRA adapter \(adapter_model\.safetensors\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_weights_that_do_not_belong_to_the_configuration_are_refused(tmp_path: Path, case: str) -> None:
    changes, spoil, message = REFUSED[case]
    save_random_model(tmp_path, "llama", **changes)
    spoil(tmp_path)
    with pytest.raises(ModelError, match=message):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: drop_tensors(f, "transformer.h.1.attn.c_attn.bias"),
            "lack 'transformer.h.1.attn.c_attn.bias'",
        ),
        (lambda f: change_config(f, tie_word_embeddings=False), r"lack 'lm_head\.weight' \(tie_word_embeddings is"),
        (
            lambda f: change_config(f, n_positions=64),
            r"wpe\.weight' has shape \(128, 32\), .* \(64, 32\)",
        ),
        (lambda f: add_tensor(f, "transformer.h.0.crossattention.c_attn.bias", torch.ones(3)), "has not"),
        (lambda f: add_tensor(f, "transformer.h.0.ln_1.bias", torch.ones(1)), r"ln_1\.bias' has shape \(1,\)"),
    ],
)
def test_gpt2s_weights_are_held_against_its_configuration(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    save_random_model(tmp_path, "gpt2")
    spoil(tmp_path)
    with pytest.raises(ModelError, match=message):
        load_checkpoint(tmp_path)


def move_in_the_index(folder: Path) -> None:
    files, places = shard(folder), read_index(folder)
    name = next(name for name, file in places.items() if file == files[0])
    change_index(folder, {**places, name: files[1]})


def copy_between_shards(folder: Path) -> None:
    first, second = shard(folder)
    change_weights(folder, lambda t: {**t, **load_file(folder / first)}, second)


def with_a_whole_file(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    shard(folder)
    (folder / "model.safetensors").write_bytes(whole)


def without_the_shard_of(folder: Path, tensor: str) -> None:
    shard(folder)
    (folder / read_index(folder)[tensor]).unlink()


def name_in_the_index(name: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        shard(folder)
        change_index(folder, {**read_index(folder), HEAD: name})

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: without_the_shard_of(f, HEAD), r"model-0000.-of-00002\.safetensors holds .* is missing: download"),
        (lambda f: (shard(f), (f / "model.safetensors.index.json").unlink()), r"several .*model-00001.*, 'model-00002"),
        (with_a_whole_file, "holds model.safetensors, and model.safetensors.index.json which does not name it"),
        (move_in_the_index, "which model.safetensors.index.json places in model-00002-of-00002.safetensors"),
        (copy_between_shards, "places in model-00001-of-00002.safetensors"),
        (lambda f: (shard(f), change_index(f, {**read_index(f), "x": read_index(f)[HEAD]})), "do not hold: 'x'"),
        (lambda f: (shard(f), change_index(f, {})), "weight_map is empty"),
        (lambda f: (shard(f), change_index(f, ["a"])), r"weight_map is \['a'\], not an object"),
        (lambda f: (shard(f), (f / "model.safetensors.index.json").write_text("[]")), "where an object"),
        (name_in_the_index("../model.safetensors"), "'../model.safetensors', which is not the name of a"),
        (name_in_the_index("/var/model.safetensors"), "not the name of a"),
        (name_in_the_index("..\\model.safetensors"), "not the name of a"),
        (name_in_the_index("a\0.safetensors"), "not the name of a"),
        (name_in_the_index("a" * 300 + ".safetensors"), "not the name of a"),
        (name_in_the_index("pytorch_model.bin"), "not the name of a"),
        (name_in_the_index(7), "is 7, not a text"),
    ],
)
def test_shards_are_those_of_the_index_and_all_of_them(
    folder: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(folder)
    with pytest.raises(ModelError, match=message):
        load_checkpoint(folder)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    save_random_model(folder, "llama")
    shard(folder)
    return folder


@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries({"weight_map": ANY_JSON | st.dictionaries(st.text(), st.text(), min_size=1)}) | ANY_JSON)
def test_any_index_but_the_right_one_is_an_error_in_words(sharded: Path, index: object) -> None:
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError):
        load_checkpoint(sharded)


@pytest.mark.parametrize("spread", [lambda f: None, shard])
def test_a_file_beside_the_weights_does_not_override_them(
    folder: Path, spread: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    weights = load_file(folder / "model.safetensors")
    spread(folder)
    expected = load_checkpoint(folder)
    save_file({name: torch.zeros_like(t) for name, t in weights.items()}, folder / "other.safetensors")
    caplog.clear()
    loaded = load_checkpoint(folder)
    assert all(torch.equal(loaded.tensors[name], t) for name, t in expected.tensors.items())
    assert "not read: 'other.safetensors'" in caplog.text


def test_a_single_file_of_another_name_is_taken(folder: Path) -> None:
    expected = load_checkpoint(folder)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert load_checkpoint(folder).digest == expected.digest


def test_a_pickled_checkpoint_is_never_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="may hold code"):
        load_checkpoint(folder)


def test_what_was_loaded_does_not_change_with_the_file(folder: Path) -> None:
    loaded = load_checkpoint(folder)
    before = {name: t.clone() for name, t in loaded.tensors.items()}
    with (folder / "model.safetensors").open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(size // 2)
        file.write(bytes(size - size // 2))
    assert all(torch.equal(loaded.tensors[name], t) for name, t in before.items())


def test_the_digest_depends_on_weights_and_configuration(folder: Path) -> None:
    first = load_checkpoint(folder).digest
    assert load_checkpoint(folder).digest == first
    change_config(folder, rms_norm_eps=1e-3)
    assert load_checkpoint(folder).digest != first
    change_config(folder, rms_norm_eps=1e-6)
    assert load_checkpoint(folder).digest == first
    one_number(0.5)(folder)
    assert load_checkpoint(folder).digest != first


def test_the_digest_covers_every_shard_and_not_how_they_are_cut(folder: Path) -> None:
    whole = load_checkpoint(folder).digest
    for file in shard(folder):
        assert load_checkpoint(folder).digest == whole
        before = (folder / file).read_bytes()
        (folder / file).write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        assert load_checkpoint(folder).digest != whole
        (folder / file).write_bytes(before)
