"""CrypTen over our transport, dealer and randomness."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mpcache.checkpoint import load_checkpoint
from mpcache.decoder import Decoder
from mpcache.generate import GenerationPlan, steps
from protocols.backends.crypten import CryptenBackend
from protocols.backends.plain import PlainBackend
from protocols.crypten_bridge import PROVED_VERSION, DryRunSession, active, from_crypten, import_crypten, to_crypten
from protocols.errors import MpcacheError
from protocols.local import run_parties
from protocols.ring import encode
from protocols.session import Cost, Session
from tests.mpcache.models import save_random_model
from tests.protocols.sharing import shares_of
from tests.protocols.test_randomness import no_other_randomness  # noqa: F401

X = torch.tensor([[1.5, -2.0, 0.25], [3.0, 0.0, -7.5]])
Y = torch.tensor([[2.0, 4.0, -1.0], [0.5, 8.0, 2.0]])


def run_crypten(program: Callable[[Any, Session], Any]) -> tuple[Any, Cost]:
    def party(session: Session) -> tuple[Any, Cost]:
        with active(session) as crypten:
            return program(crypten, session), session.cost

    (first, cost), (second, _) = run_parties(party)
    assert torch.equal(first, second)
    return first, cost


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (lambda x, y: x + y, X + Y),
        (lambda x, y: x * y, X * Y),
        (lambda x, y: x.matmul(y.t()), X @ Y.t()),
        (lambda x, y: x.square(), X * X),
        (lambda x, y: x < y, (X < Y).float()),
        (lambda x, y: x.relu(), X.relu()),
        (lambda x, y: x.max(dim=1)[0], X.amax(1)),
    ],
)
def test_cryptens_protocols_give_right_results(program: Callable[[Any, Any], Any], expected: torch.Tensor) -> None:
    def both(crypten: Any, session: Session) -> torch.Tensor:
        return program(crypten.cryptensor(X, src=0), crypten.cryptensor(Y, src=1)).get_plain_text()

    result, cost = run_crypten(both)
    assert (result - expected).abs().max() < 1e-3
    assert cost.rounds > 1


def test_binary_shares_convert_both_ways() -> None:
    def program(crypten: Any, session: Session) -> torch.Tensor:
        x = crypten.cryptensor(X, src=0)
        return x.to(crypten.mpc.binary).to(crypten.mpc.arithmetic).get_plain_text()

    assert (run_crypten(program)[0] - X).abs().max() < 1e-4


def test_our_shares_are_cryptens_shares() -> None:
    shared = shares_of(encode(X))

    def program(crypten: Any, session: Session) -> torch.Tensor:
        tensor = to_crypten(shared[session.party])
        assert from_crypten(tensor) is shared[session.party]
        return (tensor * 2).get_plain_text()

    assert torch.equal(run_crypten(program)[0], 2 * X)


def test_sessions_in_one_process_do_not_meet() -> None:
    """Two computations step by step in turn, with roles swapped between the threads."""

    def program(crypten: Any, session: Session) -> torch.Tensor:
        x = crypten.cryptensor(X, src=0)
        for _ in range(5):
            x = (x * 0.5).relu() + 1
        return x.get_plain_text()

    from concurrent.futures import ThreadPoolExecutor

    expected = X
    for _ in range(5):
        expected = (expected * 0.5).relu() + 1
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: run_crypten(program), range(2)))
    assert all((r - expected).abs().max() < 1e-3 for r, _ in results)
    assert results[0][1] == results[1][1]


def test_crypten_outside_a_session_is_refused() -> None:
    crypten = import_crypten()
    with pytest.raises(MpcacheError, match="outside"):
        crypten.cryptensor(X)
    with pytest.raises(MpcacheError, match=r"in place of crypten\.init"):
        crypten.init()


def test_the_bridge_was_proved_on_this_version() -> None:
    assert import_crypten().__version__ == PROVED_VERSION


def test_the_import_needs_none_of_the_heavy_packages() -> None:
    code = (
        "import sys; from protocols.crypten_bridge import import_crypten; import_crypten(); "
        "heavy = {'onnx', 'pandas', 'torchvision', 'sklearn', 'yaml', 'omegaconf', 'scipy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2], timeout=120)


def test_no_other_randomness_is_near_cryptens_masks(no_other_randomness: None) -> None:  # noqa: F811
    def program(crypten: Any, session: Session) -> torch.Tensor:
        return (crypten.cryptensor(X, src=0) * crypten.cryptensor(Y, src=1)).relu().get_plain_text()

    assert (run_crypten(program)[0] - (X * Y).relu()).abs().max() < 1e-3


def test_a_dry_run_plans_what_a_run_costs() -> None:
    def program(crypten: Any, session: Session) -> torch.Tensor:
        return (crypten.cryptensor(X, src=0) * crypten.cryptensor(Y, src=1)).softmax(-1).get_plain_text()

    planned = DryRunSession()
    with active(planned) as crypten:
        program(crypten, planned)
    assert planned.plan.cost() == run_crypten(program)[1]


@pytest.mark.parametrize(("n", "accurate"), [(4, True), (1024, False)])
def test_cryptens_softmax_holds_for_few_scores_only(n: int, accurate: bool) -> None:
    def program(crypten: Any, session: Session) -> torch.Tensor:
        return crypten.cryptensor(torch.ones(1, n), src=0).softmax(-1).get_plain_text()

    error = float((run_crypten(program)[0] - 1 / n).abs().max())
    assert (error < 1e-2) == accurate


def test_the_crypten_backend_runs_the_decoder(tmp_path: Path) -> None:
    save_random_model(tmp_path, "llama")
    checkpoint = load_checkpoint(tmp_path)
    prompt, plan = [7, 1, 2, 40], GenerationPlan(4, 2)
    plain = PlainBackend()
    expected = list(steps(Decoder(checkpoint.config, plain, checkpoint.tensors), plan, prompt))

    def party(session: Session) -> list[int | None]:
        with active(session) as crypten:
            backend = CryptenBackend(session, crypten)
            decoder = Decoder(checkpoint.config, backend, checkpoint.tensors if session.party == 0 else None)
            return list(steps(decoder, plan, prompt if session.party == 1 else None))

    at_owner, at_client = run_parties(party)
    assert at_client == expected
    assert at_owner == [None, None]
