import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mpcache.checkpoint import load_checkpoint, load_tokenizer
from mpcache.model_config import ModelConfig, read_model_config
from protocols.errors import ModelError
from tests.mpcache.models import save_random_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_random_model(tmp_path, "llama")
    return tmp_path


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop_a_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
        (lambda f: change_config(f, model_type="bert"), "'bert' is not supported"),
        (lambda f: change_config(f, hidden_act="relu6"), "'relu6' is not supported"),
        (lambda f: change_config(f, rope_parameters={"rope_type": "llama3"}), "scaled rotary"),
        (lambda f: change_config(f, num_attention_heads=3, head_dim=8), "cannot share"),
        (lambda f: (f / "model.safetensors").unlink(), r"no \.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"12345678"), "cannot be read"),
        (drop_a_weight, "lack 'model.layers.1.mlp.up_proj.weight'"),
        (lambda f: change_config(f, intermediate_size=40), "config.json says"),
    ],
)
def test_a_bad_model_folder_is_an_error_that_says_why(
    folder: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(folder)
    with pytest.raises(ModelError, match=message):
        load_checkpoint(folder)


def test_a_missing_tokenizer_is_an_error(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        load_tokenizer(folder)


def test_a_pickled_checkpoint_is_never_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="may hold code"):
        load_checkpoint(folder)


def test_the_digest_depends_on_weights_and_configuration(folder: Path) -> None:
    first = load_checkpoint(folder).digest
    assert load_checkpoint(folder).digest == first
    change_config(folder, rms_norm_eps=1e-3)
    assert load_checkpoint(folder).digest != first


def test_the_public_description_survives_its_journey(folder: Path) -> None:
    config = read_model_config(folder)
    assert ModelConfig.from_json(config.to_json()) == config
    with pytest.raises(ModelError, match="cannot be read"):
        ModelConfig.from_json('{"family": "llama"}')
