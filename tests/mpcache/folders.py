"""Ways to change a saved model folder, for tests of what is made of it."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
Tensors = dict[str, torch.Tensor]


def change_json(path: Path, **changes: object) -> None:
    """Set fields of a JSON file, which may be new."""
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, **changes}))


def change_config(folder: Path, **changes: object) -> None:
    change_json(folder / "config.json", **changes)


def drop_config(folder: Path, *names: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in names}))


def change_weights(folder: Path, change: Callable[[Tensors], Tensors | None], file: str = WEIGHTS) -> None:
    """Rewrite the weights: `change` edits them, or gives new ones."""
    tensors = load_file(folder / file)
    tensors = change(tensors) or tensors
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / file, {"format": "pt"})


def add_tensor(folder: Path, name: str, tensor: torch.Tensor) -> None:
    change_weights(folder, lambda tensors: {**tensors, name: tensor})


def drop_tensors(folder: Path, *names: str) -> None:
    change_weights(folder, lambda tensors: {n: t for n, t in tensors.items() if n not in names})


def rename_tensor(folder: Path, old: str, new: str) -> None:
    change_weights(folder, lambda tensors: {new if n == old else n: t for n, t in tensors.items()})


def shard(folder: Path, shards: int = 2) -> list[str]:
    """Spread the weights over files with an index, as transformers saves large models; gives the files' names."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    places = {name: files[i % shards] for i, name in enumerate(sorted(tensors))}
    for file in files:
        save_file({n: t for n, t in tensors.items() if places[n] == file}, folder / file, {"format": "pt"})
    change_index(folder, places)
    return files


def change_index(folder: Path, places: object) -> None:
    change_json(folder / "model.safetensors.index.json", metadata={"total_size": 1}, weight_map=places)


def read_index(folder: Path) -> dict[str, str]:
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
