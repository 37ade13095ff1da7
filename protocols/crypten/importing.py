"""CrypTen on today's PyTorch: its protocols, our transport, our dealer, our randomness. No file of CrypTen is changed.

`import crypten` fails on current PyTorch and asks for packages that private inference does not need. CrypTen's own
modules meet the outside in five places, so those are put into sys.modules before it is imported:

  crypten.nn, crypten.optim   absent: the ONNX importer and the trainer
  crypten.config              config.py
  crypten.communicator        two parties, on the current session: session.py
  crypten.common.rng          AES-128 in counter mode instead of a Mersenne Twister

After the import there are three writes: its table of generators, its table of providers (provider.py), and its autograd
switch (a process-wide flag that its functions toggle, so it must be at rest before two threads use it).
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from mpcache.protocols.crypten.config import ContextConfig
from mpcache.protocols.crypten.provider import PROVIDER, DealerProvider
from mpcache.protocols.crypten.session import (
    TwoPartyCommunicator,
    current_session,
    is_active,
    require_cpu,
    unsupported,
)
from mpcache.protocols.errors import ConfigError, PlanError
from mpcache.protocols.randomness import Stream
from mpcache.protocols.ring import RING_BITS

PROVED_ON = "0.4.1"
"""The CrypTen version that this package was written against and tested with."""


class _NoCommunicator:
    """Stands for CrypTen's own communicators, which its modules import by name."""

    def __init__(self, *args: object, **options: object) -> None:
        raise unsupported("a communicator of its own")

    @classmethod
    def is_initialized(cls) -> bool:
        return False


def _module(name: str, **members: object) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(members)
    return module


def _communicator_module() -> ModuleType:
    def refuse(*args: object, **options: object) -> None:
        raise unsupported("crypten.init or uninit (a session is current inside `with active(session):`)")

    return _module(
        "crypten.communicator",
        get=lambda: current_session().communicator,
        is_initialized=is_active,
        _init=refuse,
        uninit=refuse,
        Communicator=TwoPartyCommunicator,
        DistributedCommunicator=_NoCommunicator,
        InProcessCommunicator=_NoCommunicator,
    )


def _config_module() -> ModuleType:
    return _module("crypten.config", CrypTenConfig=ContextConfig, cfg=ContextConfig())


# ---------------------------------------------------------------- crypten.common.rng, crypten.generators


def _generate_random_ring_element(
    size: Sequence[int], ring_size: int = 1 << RING_BITS, generator: Stream | None = None, device: Any = None
) -> torch.Tensor:
    """Uniform ring elements, from the given stream or this party's own."""
    if ring_size != 1 << RING_BITS:
        raise unsupported(f"random elements modulo {ring_size}")
    return _stream(generator, device).elements(tuple(size))


def _generate_kbit_random_tensor(
    size: Sequence[int], bitlength: int | None = None, generator: Stream | None = None, device: Any = None
) -> torch.Tensor:
    """Uniform elements of [0, 2^bitlength), or of the whole ring."""
    stream = _stream(generator, device)
    if bitlength in (None, RING_BITS):
        return stream.elements(tuple(size))
    return stream.elements(tuple(size), bitlength) & ((1 << bitlength) - 1)


def _stream(generator: Stream | None, device: Any) -> Stream:
    require_cpu(device)
    return current_session().local if generator is None else generator


def _rng_module() -> ModuleType:
    return _module(
        "crypten.common.rng",
        generate_random_ring_element=_generate_random_ring_element,
        generate_kbit_random_tensor=_generate_kbit_random_tensor,
    )


class _SessionStreams:
    """crypten.generators[name]: the current session's stream of that name, whatever the key."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getitem__(self, device: Any) -> Stream:
        require_cpu(device)
        if self._name == "global":
            raise unsupported("public randomness (dropout)")
        stream: Stream = getattr(current_session(), self._name)
        return stream


# ---------------------------------------------------------------- the import


class _Absent(ModuleType):
    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"{self.__name__}.{name} is not available: MPCache imports CrypTen without {self.__name__}"
        )


_import_lock = threading.Lock()
_imported: Any = None


def import_crypten() -> Any:
    """The `crypten` module, on our sessions. The first call imports it, the others return it.

    Raises ConfigError if CrypTen is missing, of another version than `PROVED_ON`, or was imported by other code.
    """
    global _imported
    with _import_lock:
        if _imported is None:
            _imported = _import()
        return _imported


def _import() -> Any:
    if sys.modules.get("crypten"):
        raise ConfigError("crypten was imported before MPCache could give it its sessions: let it import crypten")
    modules = {
        "crypten.nn": _Absent("crypten.nn"),
        "crypten.optim": _Absent("crypten.optim"),
        "crypten.config": _config_module(),
        "crypten.communicator": _communicator_module(),
        "crypten.common.rng": _rng_module(),
    }
    sys.modules.update(modules)
    try:
        crypten: Any = importlib.import_module("crypten")
        if crypten.__version__ != PROVED_ON:
            raise ConfigError(f"MPCache works with crypten {PROVED_ON}, not {crypten.__version__}: install that one")
    except BaseException as error:
        for name in [name for name in sys.modules if name.split(".")[0] == "crypten"]:
            del sys.modules[name]  # nothing half-made stays behind
        if isinstance(error, ImportError):
            raise ConfigError(
                f"the crypten backend needs crypten {PROVED_ON}, which cannot be imported ({error}): "
                f"pip install --no-deps crypten=={PROVED_ON}"
            ) from error
        raise
    for name, module in modules.items():
        setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], module)
    _connect(crypten)
    return crypten


def _connect(crypten: Any) -> None:
    """The three writes. Raises PlanError if CrypTen does not look as it did in `PROVED_ON`."""
    providers = vars(crypten.mpc)["__SUPPORTED_PROVIDERS"]
    providers.clear()  # its own providers let one party know all masks, or need another process: out of reach
    providers[PROVIDER] = DealerProvider()
    if set(crypten.generators) != {"prev", "next", "local", "global"}:
        raise PlanError("crypten has other random generators than expected")
    crypten.generators.update({name: _SessionStreams(name) for name in crypten.generators})
    crypten.set_grad_enabled(False)
