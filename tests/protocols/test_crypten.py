"""CrypTen's protocols on our sessions: right between two parties, apart between two sessions, random by AES alone."""

import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from mpcache.protocols.correlation import Correlation
from mpcache.protocols.crypten.dry_run import DryRunSession
from mpcache.protocols.crypten.importing import PROVED_ON, import_crypten
from mpcache.protocols.crypten.provider import BinaryTriple, BitPair, DealerProvider, SquarePair, Triple
from mpcache.protocols.crypten.session import CryptenSession, SessionKeys, active, current_session
from mpcache.protocols.crypten.shares import from_crypten, to_mpc_tensor
from mpcache.protocols.errors import ConfigError, PeerLost, ProtocolError
from mpcache.protocols.local import InlineCorrelations, run_parties
from mpcache.protocols.session import Cost, Opening, Session
from mpcache.protocols.transport import channel_pair

crypten = import_crypten()
cfg = sys.modules["crypten.config"].cfg
X = torch.tensor([[1.5, -2.0, 3.25], [0.0, -7.5, 100.0]])
Y = torch.tensor([[2.0, 0.25, -4.0], [8.0, -7.5, 0.5]])
SEEDS = (b"party zero's own", b"party one's own.")


def share(x: torch.Tensor, party: int, **options: Any) -> Any:
    """x shared by `party`; the other party has its shape alone."""
    mine = current_session().session.party == party
    return crypten.cryptensor(x if mine else torch.zeros_like(x), src=party, **options)


def run_crypten(program: Callable[[], Any]) -> tuple[Any, Any]:
    """`program` as both parties, in a CrypTen session."""

    def inside(session: Session) -> Any:
        with active(CryptenSession(session)):
            return program()

    return run_parties(inside)


def run_seeded(program: Callable[[Session], Any], seeds: tuple[bytes, bytes] = SEEDS) -> tuple[Any, Any]:
    """`program` as both parties whose randomness follows from given seeds."""
    channels = channel_pair(30.0)
    sessions = [Session(p, channels[p], InlineCorrelations(p, seeds)) for p in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(program, sessions)
    return first, second


# ---------------------------------------------------------------- results


OPERATIONS: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any, Any], torch.Tensor]]] = {
    "mul": (lambda x, y: x * y, torch.mul),
    "mul, broadcast": (lambda x, y: x * y[:, :1], lambda x, y: x * y[:, :1]),
    "matmul": (lambda x, y: x.matmul(y.t()), lambda x, y: x @ y.t()),
    "square": (lambda x, y: x.square(), lambda x, y: x.square()),
    "lt": (lambda x, y: x < y, lambda x, y: (x < y).float()),
    "ge": (lambda x, y: x >= y, lambda x, y: (x >= y).float()),
    "eq": (lambda x, y: x == y, lambda x, y: (x == y).float()),
    "relu": (lambda x, y: x.relu(), lambda x, y: x.relu()),
    "max": (lambda x, y: x.max(1)[0], lambda x, y: x.max(1)[0]),
    "public factor": (lambda x, y: x * 0.5 + y, lambda x, y: x * 0.5 + y),
    "through bits and back": (
        lambda x, y: x.to(crypten.mpc.binary).to(crypten.mpc.arithmetic),
        lambda x, y: x,
    ),
    "stacked": (lambda x, y: crypten.stack([x, y]).sum(0), torch.add),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_arithmetic_between_two_parties(name: str) -> None:
    private, plain = OPERATIONS[name]

    def program() -> torch.Tensor:
        return private(share(X, 0), share(Y, 1)).get_plain_text()

    for result in run_crypten(program):
        assert (result.float() - plain(X, Y)).abs().max() < 2e-3


def test_binary_shares() -> None:
    a, b = torch.tensor([0b1100, -1, 2**62, 5]), torch.tensor([0b1010, 77, -(2**63), -5])

    def program() -> list[torch.Tensor]:
        x, y = (share(t, p, ptype=crypten.mpc.binary)._tensor for p, t in enumerate((a, b)))
        return [v.reveal() for v in (x & y, x ^ y, x | y, x + y, x < y, x == y)]

    for result in run_crypten(program):
        for got, expected in zip(result, (a & b, a ^ b, a | b, a + b, (a < b).long(), (a == b).long()), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("receiver", [0, 1])
def test_a_result_can_be_revealed_to_one_party(receiver: int) -> None:
    def program() -> tuple[Any, Any, Cost]:
        session = current_session().session
        x = share(X, 0)
        before = session.cost.copy()
        one = x.get_plain_text(dst=receiver)
        cost = session.cost - before
        several = crypten.mpc.primitives.ArithmeticSharedTensor.reveal_batch([x._tensor, x._tensor], dst=receiver)
        return one, several, cost

    results = run_crypten(program)
    one, several, cost = results[receiver]
    assert torch.allclose(one, X) and len(several) == 2
    assert cost == Cost(received_bytes=8 * X.numel(), rounds=1)
    assert results[1 - receiver][:2] == (None, None)
    assert results[1 - receiver][2] == Cost(sent_bytes=8 * X.numel(), rounds=1)


def test_shares_pass_in_and_out_without_a_copy() -> None:
    def program() -> None:
        mine = torch.arange(6)
        tensor, sharing = to_mpc_tensor(mine), to_mpc_tensor(mine)._tensor
        assert tensor.share.data_ptr() == sharing.share.data_ptr() == mine.data_ptr()
        assert from_crypten(tensor).data_ptr() == from_crypten(sharing).data_ptr() == mine.data_ptr()
        encoders = [t.encoder for t in (tensor, sharing, to_mpc_tensor(mine), to_mpc_tensor(mine)._tensor)]
        assert len({id(encoder) for encoder in encoders}) == 4, "CrypTen changes encoders in place: never share one"
        bit = tensor < 0  # scale 1
        assert torch.equal(from_crypten(bit), bit.share << 16)
        with pytest.raises(TypeError, match="arithmetic"):
            from_crypten(tensor.to(crypten.mpc.binary))

    run_crypten(program)


# ---------------------------------------------------------------- the dealer


def test_triples_come_from_our_dealer_and_are_counted() -> None:
    taken: list[Correlation] = []

    def program(session: Session) -> Cost:
        if session.party == 0:
            take = session.take
            session.take = lambda c: taken.append(c) or take(c)  # type: ignore[method-assign, func-returns-value]
        with active(CryptenSession(session)):
            x, y = share(X, 0), share(Y, 1)
            x * y, x.matmul(y.t()), x.square(), x._tensor.reveal()
            x.lt(y)
        return session.cost

    cost, _ = run_parties(program)
    assert {type(c) for c in taken} == {SessionKeys, Triple, SquarePair, BinaryTriple, BitPair}
    assert taken[:3] == [SessionKeys(), Triple("mul", (2, 3), (2, 3), (2, 3)), Triple("matmul", (2, 3), (3, 2), (2, 2))]
    assert cost.correction_bytes == sum(c.correction_bytes() for c in taken)
    assert type(crypten.mpc.get_default_provider()) is DealerProvider


def test_crypten_own_providers_are_out_of_reach() -> None:
    for name in ("TFP", "TTP", "HE"):
        with cfg.temp_override({"mpc.provider": name}), pytest.raises(KeyError):
            crypten.mpc.get_default_provider()


def test_what_is_not_offered_is_refused_with_a_reason() -> None:
    communicator = crypten.communicator

    def program() -> None:
        for refused in ("broadcast_obj", "send", "gather", "scatter"):
            with pytest.raises(ProtocolError, match=refused):
                getattr(communicator.get(), refused)
        with pytest.raises(ProtocolError, match="MAX"):
            communicator.get().all_reduce(torch.zeros(1), op=torch.distributed.ReduceOp.MAX)
        with pytest.raises(ProtocolError, match="wrap_rng"):
            crypten.mpc.get_default_provider().wrap_rng((2,))
        with pytest.raises(ProtocolError, match="conv1d"):
            crypten.mpc.get_default_provider().generate_additive_triple((1, 1, 4), (1, 1, 2), "conv1d")
        with pytest.raises(ProtocolError, match="dropout"):
            crypten.generators["global"][torch.device("cpu")]
        with pytest.raises(ProtocolError, match="cuda"):
            crypten.rand(2, device="cuda")

    run_crypten(program)
    with pytest.raises(ProtocolError, match="init"):
        crypten.init()
    with pytest.raises(AttributeError, match=r"crypten\.nn"):
        crypten.nn.Linear  # noqa: B018


def test_without_a_session_the_error_says_what_to_do() -> None:
    with pytest.raises(ProtocolError, match="active"):
        crypten.cryptensor(X)


def test_a_lost_peer_is_not_mistaken_for_lack_of_memory() -> None:
    """CrypTen's conversion to bits takes a RuntimeError for lack of memory and tries again: ours must not be one."""

    class SilentPeer(DryRunSession):
        attempts = 0

        def _round(self, requests: list[Opening]) -> None:
            self.attempts += 1
            raise PeerLost("the other party sent nothing")

    with active(CryptenSession(DryRunSession())) as session:
        x = share(X, 0)
        session.communicator._session = silent = SilentPeer()
        with pytest.raises(PeerLost):
            x.to(crypten.mpc.binary)
    assert silent.attempts == 1


# ---------------------------------------------------------------- two sessions in one process


def test_two_sessions_in_threads_do_not_touch_each_other() -> None:
    """Four threads take turns at random: two computations, each with both parties, with options of their own."""

    def program(scale: float, iterations: int) -> Callable[[Session], tuple[torch.Tensor, Cost]]:
        def inside(session: Session) -> tuple[torch.Tensor, Cost]:
            with active(CryptenSession(session)), cfg.temp_override({"functions.exp_iterations": iterations}):
                total = share(X * 0, 0)
                for i in range(15):
                    gate.wait()
                    x, y = share(X * scale, i % 2), share(Y * scale, 1 - i % 2)
                    total = total + x * y - (x < y) + (x * 0.01).exp()
                assert cfg.functions.exp_iterations == iterations
                return total.get_plain_text(), session.cost

        return inside

    gate = threading.Barrier(4, timeout=600)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(run_parties, program(scale, n)) for scale, n in ((1.0, 4), (0.5, 8))]
        results = [run.result() for run in runs]
    for (scale, n), ((at_0, cost_0), (at_1, cost_1)) in zip(((1.0, 4), (0.5, 8)), results, strict=True):
        x, y = X * scale, Y * scale
        exp = (1 + x * 0.01 / 2**n) ** 2**n  # CrypTen's, with this session's option
        assert torch.equal(at_0, at_1)
        assert (at_0 - 15 * (x * y - (x < y).float() + exp)).abs().max() < 0.05
        assert cost_0.sent_bytes == cost_1.received_bytes and cost_0.rounds == cost_1.rounds
    assert results[0][0][1].rounds < results[1][0][1].rounds  # fewer squarings
    assert not crypten.CrypTensor.AUTOGRAD_ENABLED, "a switch of the whole process that its functions would toggle"


def test_two_sessions_interleaved_in_one_thread() -> None:
    outer, inner = CryptenSession(DryRunSession()), CryptenSession(DryRunSession())
    before = inner.session.cost.copy()
    with active(outer):
        x = share(X, 0)
        with active(inner):
            y = share(Y, 0)
            y * y
            assert current_session() is inner
        assert inner.session.cost - before == Cost(96, 96, 48, 1)
        x * x
        x * x
        assert current_session() is outer
    assert outer.session.cost - before == Cost(192, 192, 96, 2)
    assert inner.session.cost - before == Cost(96, 96, 48, 1)
    assert not crypten.communicator.is_initialized()


def test_options_cannot_be_assigned_for_everybody() -> None:
    for assign in (
        lambda: setattr(cfg.functions, "exp_iterations", 3),
        lambda: setattr(cfg, "mpc.provider", "TFP"),
        lambda: cfg.__setitem__("functions.exp_iterations", 3),
    ):
        with pytest.raises(ConfigError, match="temp_override"):
            assign()
    assert cfg["functions.exp_iterations"] == 8


# ---------------------------------------------------------------- randomness


def mixed_program(session: Session) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(shares, values) of a program that uses every kind of randomness: triples, zero sharings, own streams."""
    with active(CryptenSession(session)):
        x, y = share(X, 0), share(Y, 1)
        results = [x, y, x * y, x.square(), x < y, x.to(crypten.mpc.binary), crypten.rand(3, 2), x.softmax(1)]
        return [r.share for r in results], [r.get_plain_text() for r in results]


def test_no_mersenne_twister_comes_near_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object, **options: object) -> None:
        raise AssertionError("a generator that is not cryptographic was used")

    for name in ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "rand_like", "randn_like",
                 "randint_like", "multinomial", "Generator", "manual_seed"):  # fmt: skip
        monkeypatch.setattr(torch, name, forbidden)
    for name in ("random_", "uniform_", "normal_", "bernoulli_", "exponential_"):
        monkeypatch.setattr(torch.Tensor, name, forbidden)
    for name in ("rand", "randn", "randint", "random", "random_sample", "bytes", "default_rng", "RandomState",
                 "Generator", "seed", "uniform", "normal", "choice", "permutation"):  # fmt: skip
        monkeypatch.setattr(np.random, name, forbidden)
    for name in ("random", "randint", "randrange", "getrandbits", "randbytes", "choice", "shuffle", "Random", "seed"):
        monkeypatch.setattr(random, name, forbidden)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    run_parties(mixed_program)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index]


def test_shares_follow_from_the_seeds_and_from_nothing_else() -> None:
    torch.manual_seed(1)
    first = run_seeded(mixed_program)
    torch.manual_seed(2)
    random.seed(3)
    second = run_seeded(mixed_program)
    other = run_seeded(mixed_program, (SEEDS[0], b"another seed...."))
    for party in (0, 1):
        for i, (a, b, c) in enumerate(zip(first[party][0], second[party][0], other[party][0], strict=True)):
            assert torch.equal(a, b), f"share {i} of party {party} is not a function of the seeds"
            assert not torch.equal(a, c), f"share {i} of party {party} does not depend on the other's seed"


def test_each_party_keeps_its_own_randomness_and_zero_sharings_add_up() -> None:
    def program() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        arithmetic, binary = crypten.mpc.primitives.ArithmeticSharedTensor, crypten.mpc.primitives.BinarySharedTensor
        local = current_session().local.elements((4,))
        return arithmetic.PRZS((50,)).share, binary.PRZS((50,)).share, local

    (a0, b0, own_0), (a1, b1, own_1) = run_crypten(program)
    assert not a0.eq(0).any() and torch.equal(a0 + a1, torch.zeros_like(a0))
    assert not b0.eq(0).any() and torch.equal(b0, b1)
    assert not own_0.eq(own_1).any()


def test_two_runs_on_one_session_have_different_masks() -> None:
    def program(session: Session) -> list[torch.Tensor]:
        shares = []
        for _ in range(2):
            with active(CryptenSession(session)):
                shares.append(share(X, 0).share)
        return shares

    for first, second in run_seeded(program):
        assert not first.eq(second).any()


# ---------------------------------------------------------------- planning


def test_a_dry_run_plans_what_a_run_takes() -> None:
    def program(session: Session) -> Cost:
        mixed_program(session)
        with active(CryptenSession(session)):
            x, y = share(X, 0), share(Y, 1)
            x.matmul(y.t()).argmax(1, one_hot=False).get_plain_text(dst=1)
            (x * 0.01).sigmoid().get_plain_text(dst=0)
        return session.cost

    planned = DryRunSession()
    program(planned)
    cost, _ = run_parties(program)
    assert planned.cost == planned.plan.cost() == cost
    assert cost.rounds > 100 and cost.sent_bytes != cost.received_bytes


# ---------------------------------------------------------------- the import


def test_the_version_is_the_one_that_this_was_proved_on() -> None:
    assert crypten.__version__ == PROVED_ON == "0.4.1"


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_import_needs_torch_and_numpy_alone() -> None:
    unwanted = {"onnx", "pandas", "torchvision", "sklearn", "yaml", "omegaconf", "scipy", "tensorboard"}
    code = (
        "import sys; from mpcache.protocols.crypten.importing import import_crypten; c = import_crypten();"
        f"print(sorted(set(m.split('.')[0] for m in sys.modules) & {unwanted}), c is import_crypten())"
    )
    assert run_python(code) == "[] True"


def test_the_mpc_backend_and_its_plan_do_without_it() -> None:
    code = (
        "import sys; sys.modules['crypten'] = None\n"
        "from mpcache.generation.backends import plan_session, private_backend\n"
        "with private_backend('mpc', plan_session('mpc')) as backend: print(backend.zeros((2,)) + 1)"
    )
    assert run_python(code) == "Secret(shape=(2,), party=0)"


def test_where_it_is_missing_the_error_says_how_to_install_it() -> None:
    code = (
        "import sys; sys.modules['crypten'] = None\n"
        "try: import mpcache.protocols.backends.crypten\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    told = run_python(code)
    assert told.startswith("ConfigError") and told.endswith("pip install --no-deps crypten==0.4.1")


def test_another_version_or_an_earlier_import_is_refused(tmp_path: Any) -> None:
    (tmp_path / "crypten").mkdir()
    (tmp_path / "crypten" / "__init__.py").write_text("__version__ = '9.9'\n")
    code = (
        "import sys; sys.path.insert(0, {path!r}); {first}\n"
        "from mpcache.protocols.crypten.importing import import_crypten\n"
        "try: import_crypten()\n"
        "except Exception as error: print(type(error).__name__, error, 'crypten.config' in sys.modules)"
    )
    assert run_python(code.format(path=str(tmp_path), first="")).startswith(
        "ConfigError MPCache works with crypten 0.4.1"
    )
    assert "imported before" in run_python(code.format(path=str(tmp_path), first="import crypten"))
