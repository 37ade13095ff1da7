"""CrypTen on today's PyTorch: its protocols, our transport, our dealer, our randomness. No file of CrypTen is changed.

`import crypten` fails on current PyTorch and asks for packages that private inference does not need. CrypTen's own
modules meet the outside in five places, so those are put into sys.modules before it is imported:

  crypten.nn, crypten.optim   absent: the ONNX importer and the trainer
  crypten.config              options without YAML files, overridden per context instead of per process
  crypten.communicator        two parties, on the current session
  crypten.common.rng          AES-128 in counter mode instead of a Mersenne Twister

After the import there are three writes: its table of generators, its table of providers, and its autograd switch (a
process-wide flag that its functions toggle, so it must be at rest before two threads use it).

Everything that belongs to one computation hangs on a `CryptenSession`, and the current one is a context variable: two
sessions in one process, in threads or interleaved in one thread, do not meet. One more thing would let them meet:
CrypTen mutates a tensor's encoder in place while it opens a value, so no encoder object may be shared by two
sessions. The helpers here make a new one each time.

CrypTen multiplies with Beaver's triples, compares by a binary adder, and truncates locally. The triples come from our
dealer as correlations, so they are planned and counted like all others. A triple is never cached: used twice, it
would open the difference of what it masks.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch.distributed import ReduceOp

from mpcache.protocols.correlation import Corrected, Correlation, Dealer, Random, Shape
from mpcache.protocols.errors import ConfigError, PlanError, ProtocolError
from mpcache.protocols.plan import PlanSession
from mpcache.protocols.public import Factor
from mpcache.protocols.randomness import Stream, derive_key
from mpcache.protocols.ring import FRACTION_BITS, RING_BITS, pack
from mpcache.protocols.session import Opening, Session, together

PROVED_ON = "0.4.1"
"""The CrypTen version that this module was written against and tested with."""

_PROVIDER = "mpcache"
_KEY_WORDS = 2
"""Ring elements in a seed: 128 bits."""

T = TypeVar("T")


# ---------------------------------------------------------------- what the dealer makes


@dataclass(frozen=True)
class SessionKeys(Correlation):
    """Seeds of a CrypTen session: one that the parties open to each other, and one for each party alone."""

    def fields(self) -> Sequence[Random]:
        seed = (_KEY_WORDS,)
        return [Random(seed), Random(seed, holder=0), Random(seed, holder=1)]


_PRODUCTS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mul": torch.mul,
    "matmul": torch.matmul,
}


@dataclass(frozen=True)
class Triple(Correlation):
    """Beaver's triple: a, b and their product, elementwise or of matrices, in the whole ring."""

    operation: str
    left: Shape
    right: Shape
    product: Shape

    def fields(self) -> Sequence[Random | Corrected]:
        return [Random(self.left), Random(self.right), Corrected(self.product)]

    def deal(self, randoms: Sequence[torch.Tensor], kept: object, dealer: Dealer) -> list[torch.Tensor]:
        return [_PRODUCTS[self.operation](*randoms)]


@dataclass(frozen=True)
class SquarePair(Correlation):
    """r and its square."""

    shape: Shape

    def fields(self) -> Sequence[Random | Corrected]:
        return [Random(self.shape), Corrected(self.shape)]

    def deal(self, randoms: Sequence[torch.Tensor], kept: object, dealer: Dealer) -> list[torch.Tensor]:
        return [randoms[0] * randoms[0]]


@dataclass(frozen=True)
class BinaryTriple(Correlation):
    """64 triples of bits an element: a, b and a & b, shared by xor."""

    left: Shape
    right: Shape
    product: Shape

    def fields(self) -> Sequence[Random | Corrected]:
        return [Random(self.left, xor=True), Random(self.right, xor=True), Corrected(self.product, xor=True)]

    def deal(self, randoms: Sequence[torch.Tensor], kept: object, dealer: Dealer) -> list[torch.Tensor]:
        return [randoms[0] & randoms[1]]


@dataclass(frozen=True)
class BitPair(Correlation):
    """A random bit, shared by xor and in the ring: turns a bit shared one way into the other."""

    shape: Shape

    def fields(self) -> Sequence[Random | Corrected]:
        return [Random(self.shape, bits=1, xor=True), Corrected(self.shape)]

    def deal(self, randoms: Sequence[torch.Tensor], kept: object, dealer: Dealer) -> list[torch.Tensor]:
        return [randoms[0]]


# ---------------------------------------------------------------- one session


class CryptenSession:
    """One party's end of a CrypTen computation, on one of our sessions. Make one per session and keep it.

    Rounds: 1, online 16 bytes a direction: the parties agree on the seed of zero sharings. Opened: that seed, which
    is meant for both. (The dealer could derive it too; it sees no message that the seed hides anything in.)
    """

    def __init__(self, session: Session) -> None:
        import_crypten()
        self.session = session
        self.communicator = TwoPartyCommunicator(session)
        common, *own = session.take(SessionKeys())
        seed = pack(session.run(session.reveal(common, RING_BITS)), RING_BITS)
        # a party's "next" stream is the other one's "prev": their difference is a sharing of zero
        around = [Stream(derive_key(seed, "crypten", "zero sharing", f"from party {p}")) for p in (0, 1)]
        self.next, self.prev = around[session.party], around[1 - session.party]
        self.local = Stream(derive_key(pack(own[session.party], RING_BITS), "crypten", "local"))


_current: ContextVar[CryptenSession] = ContextVar("crypten_session")


def current_session() -> CryptenSession:
    """The session that CrypTen's calls in this context belong to. Raises ProtocolError if there is none."""
    session = _current.get(None)
    if session is None:
        raise ProtocolError("CrypTen was used outside of a session: wrap the calls in `with active(session):`")
    return session


@contextmanager
def active(session: CryptenSession) -> Iterator[CryptenSession]:
    """Make `session` the current one in this thread or task. Nests; other threads and tasks are not concerned.

    >>> with active(CryptenSession(session)):
    ...     product = x * y
    """
    token = _current.set(session)
    try:
        yield session
    finally:
        _current.reset(token)


# ---------------------------------------------------------------- crypten.communicator


def _unsupported(what: str) -> ProtocolError:
    # not a NotImplementedError: that is a RuntimeError, which CrypTen's arithmetic-to-binary conversion swallows
    return ProtocolError(f"CrypTen asked for {what}, which two-party inference on MPCache's sessions does not have")


class TwoPartyCommunicator:
    """What CrypTen's two-party protocols send. Each call is one round of the session.

    CrypTen opens what it has masked with a triple, a bit pair, or (for a result) what its caller says is public.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def get_rank(self) -> int:
        return self._session.party

    def get_world_size(self) -> int:
        return 2

    def get_name(self) -> str:
        return f"party {self._session.party}"

    def all_reduce(self, share: Any, op: Any = None, batched: bool = False) -> Any:
        """Both parties get the sum (or xor) of both shares; a list of shares if `batched`, in one message."""
        xor = _is_xor(op)
        if not batched:
            return self._session.run(self._session.open(share, RING_BITS, xor))
        return list(self._session.run(together(*[self._session.open(s, RING_BITS, xor) for s in share])))

    def reduce(self, share: Any, dst: int, op: Any = None, batched: bool = False) -> Any:
        """Party `dst` gets the sum (or xor); the other sends its share, learns nothing and gets None."""
        xor, shares = _is_xor(op), list(share) if batched else [share]
        values = self._session.run(together(*[self._session.reveal(s, RING_BITS, dst, xor) for s in shares]))
        if self._session.party != dst:
            return None
        return list(values) if batched else values[0]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _unsupported(f"communicator.{name}")


def _is_xor(op: Any) -> bool:
    if op is None or op == ReduceOp.SUM:
        return False
    if op == ReduceOp.BXOR:
        return True
    raise _unsupported(f"a reduction by {op}")


class _NoCommunicator:
    """Stands for CrypTen's own communicators, which its modules import by name."""

    def __init__(self, *args: object, **options: object) -> None:
        raise _unsupported("a communicator of its own")

    @classmethod
    def is_initialized(cls) -> bool:
        return False


def _communicator_module() -> ModuleType:
    module: Any = ModuleType("crypten.communicator")

    def refuse(*args: object, **options: object) -> None:
        raise _unsupported("crypten.init or uninit (a session is current inside `with active(session):`)")

    module.get = lambda: current_session().communicator
    module.is_initialized = lambda: _current.get(None) is not None
    module._init = module.uninit = refuse
    module.Communicator = TwoPartyCommunicator
    module.DistributedCommunicator = module.InProcessCommunicator = _NoCommunicator
    return module


# ---------------------------------------------------------------- crypten.common.rng, crypten.generators


def _generate_random_ring_element(
    size: Sequence[int], ring_size: int = 1 << RING_BITS, generator: Stream | None = None, device: Any = None
) -> torch.Tensor:
    """Uniform ring elements, from the given stream or this party's own."""
    if ring_size != 1 << RING_BITS:
        raise _unsupported(f"random elements modulo {ring_size}")
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
    _require_cpu(device)
    return current_session().local if generator is None else generator


def _require_cpu(device: Any) -> None:
    if device is not None and torch.device(device).type != "cpu":
        raise _unsupported(f"device {device}")


def _rng_module() -> ModuleType:
    module: Any = ModuleType("crypten.common.rng")
    module.generate_random_ring_element = _generate_random_ring_element
    module.generate_kbit_random_tensor = _generate_kbit_random_tensor
    return module


class _SessionStreams:
    """crypten.generators[name]: the current session's stream of that name, whatever the key."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getitem__(self, device: Any) -> Stream:
        _require_cpu(device)
        if self._name == "global":
            raise _unsupported("public randomness (dropout)")
        return getattr(current_session(), self._name)


# ---------------------------------------------------------------- crypten.mpc.provider


class DealerProvider:
    """CrypTen's source of triples: the session's correlations."""

    NAME = _PROVIDER

    def generate_additive_triple(
        self, size0: Sequence[int], size1: Sequence[int], op: str, device: Any = None, *args: Any, **options: Any
    ) -> tuple[Any, Any, Any]:
        _require_cpu(device)
        if op not in _PRODUCTS or args or options:
            raise _unsupported(f"a triple for {op}")
        left, right = tuple(size0), tuple(size1)
        product = _PRODUCTS[op](torch.empty(left, device="meta"), torch.empty(right, device="meta"))
        a, b, c = self._take(Triple(op, left, right, tuple(product.shape)))
        return _arithmetic(a, 0), _arithmetic(b, 0), _arithmetic(c, 0)

    def square(self, size: Sequence[int], device: Any = None) -> tuple[Any, Any]:
        _require_cpu(device)
        r, squared = self._take(SquarePair(tuple(size)))
        return _arithmetic(r, 0), _arithmetic(squared, 0)

    def generate_binary_triple(
        self, size0: Sequence[int], size1: Sequence[int], device: Any = None
    ) -> tuple[Any, Any, Any]:
        _require_cpu(device)
        left, right = tuple(size0), tuple(size1)
        a, b, c = self._take(BinaryTriple(left, right, tuple(torch.broadcast_shapes(left, right))))
        return _binary(a), _binary(b), _binary(c)

    def B2A_rng(self, size: Sequence[int], device: Any = None) -> tuple[Any, Any]:
        _require_cpu(device)
        bit, in_ring = self._take(BitPair(tuple(size)))
        return _arithmetic(in_ring, 0), _binary(bit & 1)  # a stream's bits above the width mean nothing

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _unsupported(f"provider.{name}")

    @staticmethod
    def _take(correlation: Correlation) -> list[torch.Tensor]:
        return current_session().session.take(correlation)


# ---------------------------------------------------------------- crypten.config


class _Options:
    """Named values that cannot be assigned: CrypTen's options are shared by every session of the process."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update({k: _Options(v) if isinstance(v, dict) else v for k, v in values.items()})

    def __setattr__(self, name: str, value: object) -> None:
        raise ConfigError(f"CrypTen's option {name} is set for a block of code: `with cfg.temp_override({{...}}):`")

    def replaced(self, path: Sequence[str], value: Any) -> _Options:
        """A copy with one value changed."""
        name, *rest = path
        changed = _Options({})
        changed.__dict__.update(self.__dict__)
        changed.__dict__[name] = getattr(self, name).replaced(rest, value) if rest else value
        return changed


_DEFAULTS = _Options(
    # configs/default.yaml of CrypTen 0.4.1, which its wheel installs outside the package; only the provider differs
    {
        "communicator": {"verbose": False},
        "debug": {"debug_mode": False, "validation_mode": False},
        "encoder": {"precision_bits": FRACTION_BITS},
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
        "mpc": {"active_security": False, "provider": _PROVIDER, "protocol": "beaver"},
    }
)


class ContextConfig:
    """CrypTen's `cfg`, with overrides that hold in the current thread or task alone."""

    def __init__(self) -> None:
        self.__dict__["_options"] = ContextVar("crypten_options", default=_DEFAULTS)

    def __getattr__(self, name: str) -> Any:
        value: Any = self.__dict__["_options"].get()
        for part in name.split("."):
            value = getattr(value, part)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        setattr(_DEFAULTS, name, value)  # refuses, and says what to do

    __getitem__ = __getattr__
    __setitem__ = __setattr__

    @contextmanager
    def temp_override(self, override: Mapping[str, Any]) -> Iterator[None]:
        """Options by their dotted names, changed inside the `with` block."""
        options = self.__dict__["_options"]
        changed: _Options = options.get()
        for name, value in override.items():
            changed = changed.replaced(name.split("."), value)
        token = options.set(changed)
        try:
            yield
        finally:
            options.reset(token)


def _config_module() -> ModuleType:
    module: Any = ModuleType("crypten.config")
    module.CrypTenConfig, module.cfg = ContextConfig, ContextConfig()
    return module


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
    if "crypten" in sys.modules:
        raise ConfigError("crypten was imported before MPCache could give it its sessions: import protocols first")
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
            raise ConfigError(f"crypten {PROVED_ON} cannot be imported: {error}") from error
        raise
    for name, module in modules.items():
        setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], module)
    _connect(crypten)
    return crypten


def _connect(crypten: Any) -> None:
    """The three writes. Raises PlanError if CrypTen does not look as it did in `PROVED_ON`."""
    providers = vars(crypten.mpc)["__SUPPORTED_PROVIDERS"]
    providers.clear()  # its own providers let one party know all masks, or need another process: out of reach
    providers[_PROVIDER] = DealerProvider()
    if set(crypten.generators) != {"prev", "next", "local", "global"}:
        raise PlanError("crypten has other random generators than expected")
    crypten.generators.update({name: _SessionStreams(name) for name in crypten.generators})
    crypten.set_grad_enabled(False)


# ---------------------------------------------------------------- shares in and out, without copying


def _arithmetic(share: torch.Tensor, fraction_bits: int) -> Any:
    return _imported.mpc.primitives.ArithmeticSharedTensor.from_shares(share, precision=fraction_bits)


def _binary(share: torch.Tensor) -> Any:
    return _imported.mpc.primitives.BinarySharedTensor.from_shares(share, precision=0)


def to_mpc_tensor(share: torch.Tensor, fraction_bits: int = FRACTION_BITS) -> Any:
    """An MPCTensor on this party's int64 share, in the current session. The memory is shared, the encoder is new."""
    return import_crypten().mpc.MPCTensor.from_shares(share, precision=fraction_bits)


def from_crypten(tensor: Any, fraction_bits: int = FRACTION_BITS) -> torch.Tensor:
    """This party's int64 share of an arithmetic tensor at scale 2^fraction_bits; no copy if it has that scale.

    CrypTen's comparisons give integers (scale 1), which are scaled up. Raises TypeError for binary shares and for a
    greater scale, which would have to be truncated.
    """
    crypten = import_crypten()
    if isinstance(tensor, crypten.mpc.MPCTensor):
        tensor = tensor._tensor
    if not isinstance(tensor, crypten.mpc.primitives.ArithmeticSharedTensor):
        raise TypeError(
            f"{type(tensor).__name__} is not an arithmetic sharing: convert it with .to(crypten.mpc.arithmetic)"
        )
    missing = fraction_bits - (int(tensor.encoder.scale).bit_length() - 1)
    if missing < 0:
        raise TypeError(f"the tensor has {-missing} more fractional bits than {fraction_bits}")
    return tensor.share << missing if missing else tensor.share


# ---------------------------------------------------------------- planning


class DryRunSession(PlanSession):
    """Plans a CrypTen program by running it on zeros: what CrypTen sends follows from shapes alone.

    CrypTen mixes its own CPU tensors into a computation, so the `meta` device of `PlanSession` is closed to it. A dry
    run therefore computes, but waits for nobody. The party is 0, which has zeros for whatever it should know.
    """

    device = torch.device("cpu")

    def run(self, protocol: Awaitable[T], part: str = "other") -> T:
        return Session.run(self, protocol, part)

    def take(self, correlation: Correlation) -> list[torch.Tensor | None]:
        return [None if f is None else torch.zeros(f.shape, dtype=torch.int64) for f in super().take(correlation)]

    def public(self, x: Factor, fraction_bits: int = FRACTION_BITS) -> torch.Tensor:
        super().public(x, fraction_bits)
        return Session.public(self, x, fraction_bits)

    def _round(self, requests: list[Opening]) -> None:
        super()._round(requests)
        for request in requests:
            if request.result is not None:
                request.result = torch.zeros(request.shape, dtype=torch.int64)
