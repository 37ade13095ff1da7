"""Attention received, and the arg min over it, at sizes where a sum or a difference could leave its ring."""

import torch

from mpcache.protocols.backends.mpc import MpcBackend
from mpcache.protocols.backends.plain import PlainBackend
from mpcache.protocols.local import run_parties
from mpcache.protocols.ring import decode, encode
from mpcache.protocols.session import Session
from mpcache.protocols.shares import Secret
from tests.protocols.sharing import shares_of


def test_many_queries_of_one_head_add_up_without_overflow() -> None:
    """As with 40 query heads over one key/value head, and blocks of 64 tokens."""
    queries, keys, values = torch.randn(1, 2560, 4), torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    keys[0, 1] = 0.0
    queries[..., 0], keys[0, 2, 0] = 9.0, 9.0  # nearly all attention goes to the last token
    plain = PlainBackend()
    observed = torch.arange(2560)
    _, expected = plain.attend_observed(queries, plain.append(None, keys, values), None, observed)
    shared = [shares_of(encode(x)) for x in (queries, keys, values)]

    def program(session: Session) -> torch.Tensor:
        backend = MpcBackend(session)
        q, k, v = (Secret(x[session.party], session.party) for x in shared)
        cached, masked = backend.enter(None, q, k, v)
        return backend.attend_observed(masked, cached, None, observed)[1].share

    a, b = run_parties(program)
    assert expected.max() > 2000
    assert (decode(a + b) - expected).abs().max() < 0.5


def test_the_smallest_is_found_up_to_its_stated_bound() -> None:
    """Beyond 2^15, where 32 bits would not do."""
    scores = torch.tensor([[90_000.0, 0.25, 120_000.0], [3.0, 70_000.0, 3.0]])
    shared = shares_of(encode(scores))

    def program(session: Session) -> torch.Tensor:
        secret = Secret(shared[session.party], session.party)
        return MpcBackend(session).argmin(secret, 131_072.0).share

    a, b = run_parties(program)
    assert (a + b)[:, 0].tolist() == [[0, 1, 0], [1, 0, 0]]
