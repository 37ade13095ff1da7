"""The weight files of a model folder: which they are, what is in them, and their tensors one at a time.

`model.safetensors.index.json` says which files belong together, and all of them must be there; without it the weights
are `model.safetensors`, or the only .safetensors file. Where a folder can be read in two ways it is refused. The index
is somebody else's file: what it names is a file of this folder or an error.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mpcache.model.json_files import JsonObject, find_json_object, shown, some
from mpcache.protocols.errors import ModelError

log = logging.getLogger("mpcache.model.checkpoint")

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
FILE_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,200}\.safetensors")
REAL_TYPES = ("F64", "F32", "F16", "BF16")


@contextmanager
def open_weights(folder: Path) -> Iterator[WeightsFiles]:
    """The weights of a model folder, while the block runs. Raises ModelError with what is wrong."""
    for name in ADAPTERS:
        if os.path.lexists(folder / name):
            raise ModelError(f"{folder} holds a LoRA adapter ({name}): merge it into the weights first, then remove it")
    with ExitStack() as stack:
        yield WeightsFiles(folder, stack)


class WeightsFiles:
    """Open weight files. `shapes` are those of all tensors, by their stored names; nothing is read before `read`."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        index = find_json_object(folder / INDEX)
        located = {} if index is None else _located(index)
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._types: dict[str, str] = {}
        self._files: dict[str, tuple[Path, Any]] = {}
        self._digests: dict[str, bytes] = {}
        for path in _weight_files(folder, sorted(set(located.values())) if index is not None else None):
            self._list(path, stack.enter_context(_opened(path)), located)
        if absent := sorted(located.keys() - self.shapes.keys()):
            raise ModelError(f"{folder}: {INDEX} names tensors that its files do not hold: {some(absent)}")

    def read(self, name: str) -> torch.Tensor:
        """A tensor by its stored name, as float32 in memory of its own. Raises ModelError if it is not finite."""
        path, file = self._files[name]
        if self._types[name] not in REAL_TYPES:
            raise ModelError(
                f"{path}: {shown(name)} is stored as {self._types[name]}, not as one of {', '.join(REAL_TYPES)}; "
                "quantised checkpoints are not supported: save it dequantised"
            )
        try:
            stored = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read: {error}") from None
        self._digests[name] = _digest(name, stored)
        tensor: torch.Tensor = stored.to(torch.float32, copy=True)  # no view of a file that may change
        if not is_finite(tensor):
            raise ModelError(f"{path}: {shown(name)} holds numbers that are NaN, infinite or too large for float32")
        return tensor

    def digest(self) -> bytes:
        """Of all that was read: names, types, shapes and stored bytes, however they are spread over files."""
        return hashlib.sha256(b"".join(self._digests[name] for name in sorted(self._digests))).digest()

    def _list(self, path: Path, file: Any, located: dict[str, str]) -> None:
        for name in file.keys():  # noqa: SIM118
            if located.get(name, path.name) != path.name:
                raise ModelError(f"{path} holds {shown(name)}, which {INDEX} places in {located[name]}")
            if name in self._files:
                raise ModelError(f"{path} holds {shown(name)}, and so does {self._files[name][0].name}")
            entry = file.get_slice(name)
            self._files[name] = path, file
            self._types[name], self.shapes[name] = entry.get_dtype(), tuple(entry.get_shape())


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor, not empty, holds neither NaN nor infinity; without a second tensor of its size."""
    return all(bool(end.isfinite()) for end in (tensor.amin(), tensor.amax()))  # NaN anywhere makes both NaN


def _digest(name: str, tensor: torch.Tensor) -> bytes:
    digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _opened(path: Path) -> Any:
    if not os.path.isfile(path):
        raise ModelError(f"{path} holds weights of the model, and is missing: download it")
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None


def _weight_files(folder: Path, shards: list[str] | None) -> list[Path]:
    """The files that hold the weights: the index's, else `model.safetensors`, else the only one."""
    present = sorted(path.name for path in folder.glob("*.safetensors"))
    if shards is not None:
        if WHOLE in present and WHOLE not in shards:
            raise ModelError(
                f"{folder} holds {WHOLE}, and {INDEX} which does not name it: remove whichever is not the model"
            )
        chosen = shards
    elif WHOLE in present:
        chosen = [WHOLE]
    elif len(present) == 1:
        chosen = present
    elif not present:
        raise ModelError(f"{folder} has no .safetensors file (other formats may hold code and are not read)")
    else:
        raise ModelError(
            f"{folder} has several .safetensors files ({some(present)}) and no {INDEX} that says which belong together"
        )
    if unread := [name for name in present if name not in chosen]:
        log.warning("%s: files that are no part of the model are not read: %s", folder, some(unread))
    return [folder / name for name in chosen]


def _located(index: JsonObject) -> dict[str, str]:
    """The index's map from tensors to files of this folder."""
    places = index.nested("weight_map")
    located = {name: places.text(name) for name in places.names()}
    if not located:
        raise index.error("weight_map is empty")
    for file in set(located.values()):
        if not FILE_NAME.fullmatch(file):
            raise index.error(f"weight_map names {shown(file)}, which is not the name of a .safetensors file")
    return located
