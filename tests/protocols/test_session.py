import threading

import pytest
import torch

from mpcache.protocols.errors import PeerLost, ProtocolError
from mpcache.protocols.local import run_parties
from mpcache.protocols.plan import PlanSession
from mpcache.protocols.session import Session, together
from mpcache.protocols.softmax import softmax
from mpcache.protocols.transport import channel_pair
from tests.protocols.sharing import run_counted


def test_independent_protocols_share_messages() -> None:
    async def twice(session: Session, x: torch.Tensor) -> torch.Tensor:
        first = await session.open(x, 64)
        return first + await session.open(x, 64)

    async def both(session: Session, x: torch.Tensor) -> torch.Tensor:
        a, b = await together(twice(session, x), session.open(x, 64))
        return session.constant(a + b)

    result, cost = run_counted(both, torch.tensor([3, 4]))
    assert result.tolist() == [9, 12]
    assert cost.rounds == 2


def test_a_one_way_message_tells_the_sender_nothing() -> None:
    def program(session: Session) -> torch.Tensor | None:
        return session.run(session.transfer(torch.tensor([5]) if session.party == 1 else None, (1,), 8, receiver=0))

    at_0, at_1 = run_parties(program)
    assert at_0 is not None and at_0.tolist() == [5]
    assert at_1 is None


def test_a_message_of_the_wrong_length_is_refused() -> None:
    a, b = channel_pair()
    a.send(b"12345")
    with pytest.raises(ProtocolError, match="expected a message of 8 bytes, received 5"):
        b.receive(8)


def test_a_silent_peer_is_an_error_after_the_deadline() -> None:
    a, _ = channel_pair(timeout=0.01)
    with pytest.raises(PeerLost, match="sent nothing"):
        a.receive(8)


@pytest.mark.parametrize("failing", [0, 1])
def test_if_one_of_two_parties_fails_its_error_is_raised_and_the_other_does_not_wait(failing: int) -> None:
    def program(session: Session) -> None:
        if session.party == failing:
            raise ZeroDivisionError("of one party")
        session.run(session.open(torch.tensor([5]), 64))

    with pytest.raises(ZeroDivisionError, match="of one party"):
        run_parties(program, timeout=threading.TIMEOUT_MAX)


def test_the_plan_of_a_protocol_equals_its_run() -> None:
    planned = PlanSession()
    planned.run(softmax(planned, torch.empty(3, 50, dtype=torch.int64, device="meta")))
    _, cost = run_counted(softmax, torch.zeros(3, 50, dtype=torch.int64))
    assert planned.plan.cost() == cost


def test_a_party_alone_sees_uniform_values_only() -> None:
    """What is opened in a softmax of constants spreads over its whole width, and differs from run to run."""
    seen: list[torch.Tensor] = []

    def program(session: Session) -> None:
        original = session._round

        def watch(requests: list) -> None:  # type: ignore[type-arg]
            original(requests)
            if session.party == 0:
                seen.extend(r.result.double().reshape(-1) / 2.0**r.bits for r in requests if 4 < r.bits < 64)

        session._round = watch  # type: ignore[method-assign]
        session.run(softmax(session, torch.zeros(4, 500, dtype=torch.int64)))

    run_parties(program)
    for values in (v for v in seen if v.numel() >= 2000):
        assert abs(float(values.mean()) - 0.5) < 0.06
        assert float(values.std()) > 0.22
