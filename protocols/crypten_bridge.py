"""CrypTen 0.4.1 on today's PyTorch, with our transport, our dealer and AES randomness.

`import crypten` fails as it is: it pulls in an ONNX importer, YAML and more that it does not need here. Five of its
modules are put in place before the import (nn, optim, config, communicator, common.rng) and two of its tables are
written after it (generators, providers); no function of CrypTen is replaced. What belongs to a session (transport,
randomness, configuration) is found through a context variable, so that sessions in one process do not meet.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from protocols.correlation import Corrected, Correlation, Dealer, Random, Shape
from protocols.errors import MpcacheError
from protocols.plan import PlanSession
from protocols.randomness import KEY_BYTES, Stream, derive_key, new_key
from protocols.session import Opening, Session, together

PROVED_VERSION = "0.4.1"

_SETTINGS: dict[str, Any] = {
    "communicator": {"verbose": False},
    "debug": {"debug_mode": False, "validation_mode": False},
    "encoder": {"precision_bits": 16},
    "functions": {
        "max_method": "log_reduction",
        "exp_iterations": 8,
        "reciprocal_method": "NR",
        "reciprocal_nr_iters": 10,
        "reciprocal_log_iters": 1,
        "reciprocal_all_pos": False,
        "reciprocal_initial": None,
        "sqrt_nr_iters": 3,
        "sqrt_nr_initial": None,
        "sigmoid_tanh_method": "reciprocal",
        "sigmoid_tanh_terms": 32,
        "log_iterations": 2,
        "log_exp_iterations": 8,
        "log_order": 8,
        "trig_iterations": 10,
        "erf_iterations": 8,
    },
    "mpc": {"active_security": False, "provider": "DEALER", "protocol": "beaver"},
    "nn": {"dpsmpc": {"protocol": "layer_estimation", "skip_loss_forward": True, "cache_pred_size": True}},
}


# ---------------------------------------------------------------- correlations, dealt like any other


@dataclass(frozen=True)
class Triple(Correlation):
    """a, b and a op b, for CrypTen's Beaver protocol; op is 'mul' or 'matmul'."""

    operation: str
    left: Shape
    right: Shape

    def fields(self) -> Sequence[Random | Corrected]:
        left, right = torch.empty(self.left, device="meta"), torch.empty(self.right, device="meta")
        return [
            Random(self.left),
            Random(self.right),
            Corrected(tuple(getattr(torch, self.operation)(left, right).shape)),
        ]

    def deal(self, randoms: Sequence[torch.Tensor], kept: object, dealer: Dealer) -> list[torch.Tensor]:
        return [getattr(torch, self.operation)(*randoms)]


@dataclass(frozen=True)
class Square(Correlation):
    """r and its square."""

    shape: Shape

    def fields(self) -> Sequence[Random | Corrected]:
        return [Random(self.shape), Corrected(self.shape)]

    def deal(self, randoms: Sequence[torch.Tensor], kept: object, dealer: Dealer) -> list[torch.Tensor]:
        return [randoms[0] * randoms[0]]


@dataclass(frozen=True)
class BinaryTriple(Correlation):
    """a, b and a & b, xor-shared."""

    left: Shape
    right: Shape

    def fields(self) -> Sequence[Random | Corrected]:
        shape = tuple(torch.broadcast_shapes(self.left, self.right))
        return [Random(self.left, xor=True), Random(self.right, xor=True), Corrected(shape, xor=True)]

    def deal(self, randoms: Sequence[torch.Tensor], kept: object, dealer: Dealer) -> list[torch.Tensor]:
        return [randoms[0] & randoms[1]]


@dataclass(frozen=True)
class SharedBit(Correlation):
    """A random bit, xor-shared and additively shared."""

    shape: Shape

    def fields(self) -> Sequence[Random | Corrected]:
        return [Random(self.shape, 1, xor=True), Corrected(self.shape)]

    def deal(self, randoms: Sequence[torch.Tensor], kept: object, dealer: Dealer) -> list[torch.Tensor]:
        return [randoms[0]]


# ---------------------------------------------------------------- the current session


@dataclass
class _Current:
    """What CrypTen asks for, of one session."""

    session: Session
    streams: Mapping[str, Stream]
    settings: types.SimpleNamespace = field(default_factory=lambda: _namespace(_SETTINGS))


_current: ContextVar[_Current] = ContextVar("crypten_session")


def _here() -> _Current:
    current = _current.get(None)
    if current is None:
        raise MpcacheError("CrypTen was called outside `crypten_bridge.active(session)`")
    return current


@contextlib.contextmanager
def active(session: Session) -> Iterator[Any]:
    """CrypTen works on this session in this context (thread or task); gives the module `crypten`.

    The two parties agree on a key for each of CrypTen's zero sharings first: one round.
    """
    crypten = import_crypten()
    mine = new_key()
    theirs = session.run(_exchange_keys(session, mine))
    first, second = (mine, theirs) if session.party == 0 else (theirs, mine)
    previous, following = (first, second) if session.party == 0 else (second, first)
    streams = {
        "prev": Stream(derive_key(previous, "crypten zero sharing")),
        "next": Stream(derive_key(following, "crypten zero sharing")),
        "local": Stream(new_key()),
    }
    token = _current.set(_Current(session, streams))
    try:
        yield crypten
    finally:
        _current.reset(token)


async def _exchange_keys(session: Session, mine: bytes) -> bytes:
    share = torch.tensor(list(mine), dtype=torch.int64)
    sent = [session.transfer(share, (KEY_BYTES,), 8, receiver=party) for party in (0, 1)]
    received = (await together(*sent))[session.party]
    return mine if received is None or received.device.type == "meta" else bytes(received.tolist())


# ---------------------------------------------------------------- modules put in place


def _namespace(settings: Mapping[str, Any]) -> types.SimpleNamespace:
    return types.SimpleNamespace(**{k: _namespace(v) if isinstance(v, dict) else v for k, v in settings.items()})


class _Config:
    """CrypTen's `cfg`, with the current session's settings behind it."""

    def __getattr__(self, name: str) -> Any:
        current = _current.get(None)
        return getattr(current.settings if current else _namespace(_SETTINGS), name)

    @contextlib.contextmanager
    def temp_override(self, overrides: Mapping[str, Any]) -> Iterator[None]:
        current = _here()
        saved = current.settings
        current.settings = copy.deepcopy(saved)
        for name, value in overrides.items():
            *path, leaf = name.split(".")
            node = current.settings
            for key in path:
                node = getattr(node, key)
            setattr(node, leaf, value)
        try:
            yield
        finally:
            current.settings = saved


class _Communicator:
    """The part of CrypTen's communicator that two-party computing uses; every call is a round of the session."""

    def get_rank(self) -> int:
        return _here().session.party

    def get_world_size(self) -> int:
        return 2

    def all_reduce(self, tensor: Any, op: Any = None, batched: bool = False) -> Any:
        session, xor = _here().session, _is_xor(op)
        tensors = list(tensor) if batched else [tensor]
        opened = list(session.run(together(*(session.open(t.contiguous(), 64, xor) for t in tensors))))
        return opened if batched else opened[0]

    def reduce(self, tensor: Any, dst: int, op: Any = None, batched: bool = False) -> Any:
        session, xor = _here().session, _is_xor(op)
        tensors = list(tensor) if batched else [tensor]
        sent: list[Opening] = [session.transfer(t.contiguous(), t.shape, 64, receiver=dst) for t in tensors]
        received = session.run(together(*sent))
        if session.party != dst:
            return tensors if batched else tensor
        result = [t ^ r if xor else t + r for t, r in zip(tensors, received, strict=True)]
        return result if batched else result[0]


def _is_xor(op: Any) -> bool:
    if op is None or op == torch.distributed.ReduceOp.SUM:
        return False
    if op == torch.distributed.ReduceOp.BXOR:
        return True
    raise MpcacheError(f"this communicator sums and xors; it has no {op}")


class _PerSession(dict[Any, Any]):
    """`crypten.generators[name][device]`: the current session's stream."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def __getitem__(self, device: Any) -> Stream:
        return _here().streams[self._name]


def _ring_element(size: Any, ring_size: int = 2**64, generator: Stream | None = None, **kwargs: Any) -> torch.Tensor:
    if ring_size != 2**64:
        raise MpcacheError("only the ring of 2^64 elements is supported")
    shape = (size,) if isinstance(size, int) else tuple(size)
    return (generator or _here().streams["local"]).elements(shape)


def _bits(size: Any, bitlength: int | None = None, generator: Stream | None = None, **kwargs: Any) -> torch.Tensor:
    element = _ring_element(size, generator=generator)
    return element if bitlength in (None, 64) else element & ((1 << int(bitlength or 64)) - 1)


class _Absent(types.ModuleType):
    """Stands for a part of CrypTen that is not loaded."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(f"{self.__name__}.{name} is not available: MPCache loads CrypTen without it")


def _module(name: str, **members: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(members)
    return module


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise MpcacheError("use `crypten_bridge.active(session)` in place of crypten.init()")


def import_crypten() -> types.ModuleType:
    """The module `crypten`, loaded as described above; the same one at every call."""
    if "crypten" in sys.modules:
        return sys.modules["crypten"]
    communicator = _module(
        "crypten.communicator",
        Communicator=_Communicator,
        DistributedCommunicator=_Communicator,
        InProcessCommunicator=_Communicator,
        get=_Communicator,
        is_initialized=lambda: _current.get(None) is not None,
        _init=_refuse,
        uninit=_refuse,
    )
    placed = {
        "crypten.nn": _Absent("crypten.nn"),
        "crypten.optim": _Absent("crypten.optim"),
        "crypten.config": _module("crypten.config", CrypTenConfig=_Config, cfg=_Config()),
        "crypten.communicator": communicator,
        "crypten.common.rng": _module(
            "crypten.common.rng", generate_random_ring_element=_ring_element, generate_kbit_random_tensor=_bits
        ),
    }
    sys.modules.update(placed)
    crypten = importlib.import_module("crypten")
    if crypten.__version__ != PROVED_VERSION:
        raise MpcacheError(f"this bridge was proved on CrypTen {PROVED_VERSION}, not {crypten.__version__}")
    for name in ("nn", "optim", "config", "communicator"):
        setattr(crypten, name, placed[f"crypten.{name}"])
    for name in ("prev", "next", "local", "global"):
        crypten.generators[name] = _PerSession(name)
    vars(crypten.mpc)["__SUPPORTED_PROVIDERS"]["DEALER"] = _provider()
    return crypten


def _provider() -> Any:
    from crypten.mpc.primitives import ArithmeticSharedTensor, BinarySharedTensor
    from crypten.mpc.provider.provider import TupleProvider

    def arithmetic(*shares: torch.Tensor) -> tuple[Any, ...]:
        return tuple(ArithmeticSharedTensor.from_shares(s, precision=0) for s in shares)

    def binary(*shares: torch.Tensor) -> tuple[Any, ...]:
        return tuple(BinarySharedTensor.from_shares(s, precision=0) for s in shares)

    class DealerProvider(TupleProvider):  # type: ignore[misc]
        """CrypTen's tuples from the session's dealer."""

        NAME = "DEALER"

        def generate_additive_triple(
            self, size0: Any, size1: Any, op: str, device: Any = None, *args: Any, **kwargs: Any
        ) -> Any:
            if op not in ("mul", "matmul") or args or kwargs:
                raise MpcacheError(f"no triples for {op} with these arguments")
            return arithmetic(*_here().session.take(Triple(op, tuple(size0), tuple(size1))))

        def square(self, size: Any, device: Any = None) -> Any:
            return arithmetic(*_here().session.take(Square(tuple(size))))

        def generate_binary_triple(self, size0: Any, size1: Any, device: Any = None) -> Any:
            return binary(*_here().session.take(BinaryTriple(tuple(size0), tuple(size1))))

        def B2A_rng(self, size: Any, device: Any = None) -> Any:
            xored, summed = _here().session.take(SharedBit(tuple(size)))
            return arithmetic(summed)[0], binary(xored & 1)[0]

    return DealerProvider()


# ---------------------------------------------------------------- conversions and planning


def to_crypten(share: torch.Tensor, fraction_bits: int = 16) -> Any:
    """An int64 share as CrypTen's MPCTensor, without copying."""
    crypten = import_crypten()
    return crypten.mpc.MPCTensor.from_shares(share, precision=fraction_bits)


def from_crypten(tensor: Any) -> torch.Tensor:
    """The int64 share of an MPCTensor or ArithmeticSharedTensor, without copying."""
    return getattr(tensor, "_tensor", tensor).share


class DryRunSession(PlanSession):
    """Plans a CrypTen program by running it on zeros: its control flow depends on shapes alone."""

    device = torch.device("cpu")

    def run(self, protocol: Any) -> Any:
        return Session.run(self, protocol)

    def take(self, correlation: Correlation) -> list[torch.Tensor | None]:
        super().take(correlation)
        return [
            torch.zeros(f.shape, dtype=torch.int64) for f in correlation.fields() if isinstance(f, Random | Corrected)
        ]

    def _round(self, requests: list[Opening]) -> None:
        super()._round(requests)
        for r in requests:
            if r.receiver != 1:
                r.result = torch.zeros(r.shape, dtype=torch.int64)
