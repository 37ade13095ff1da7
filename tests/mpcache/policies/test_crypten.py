"""Every policy on CrypTen's own protocols: the baseline decides as plaintext does where CrypTen is accurate."""

from typing import Any

import pytest
import torch

from mpcache.policies import PolicySettings, available_policies
from mpcache.protocols.backends.crypten import CryptenBackend
from mpcache.protocols.crypten.dry_run import DryRunSession
from mpcache.protocols.local import run_parties
from mpcache.protocols.ring import RING_BITS, decode
from mpcache.protocols.session import Cost, Session
from tests.mpcache.policies.driving import attention, random_case
from tests.mpcache.policies.matrix import SETTINGS
from tests.mpcache.policies.private import compare_decisions, recording_plain, recording_private, sharing, watch

CASES = [
    pytest.param(settings, id=name, marks=[] if name in available_policies() else [pytest.mark.slow])
    for name, settings in SETTINGS.items()
]
APPROXIMATE = 10
"""CrypTen's softmax and norms are off by half a per cent here: ten times the error of ours."""


@pytest.mark.parametrize("settings", CASES)
def test_the_same_decisions_and_attention_as_in_plaintext(settings: PolicySettings) -> None:
    case = random_case(settings, 22, 5, layers=2, head_size=32, seed=1)
    plain = recording_plain()
    expected = attention(case, plain)

    def program(session: Session) -> tuple[list[torch.Tensor], Any]:
        backend = recording_private(CryptenBackend(session), session)
        out = attention(case, backend, sharing(session))
        opened = [session.run(session.open(torch.stack([x.share for x in step]), RING_BITS)) for step in out]
        return [decode(x) for x in opened], backend.decisions

    (actual, decisions), _ = run_parties(program)
    if compare_decisions(decisions, plain.decisions, APPROXIMATE) == len(plain.decisions):
        for ours, theirs in zip(actual, expected, strict=True):
            assert (ours - torch.stack(theirs)).abs().max() < 0.02


@pytest.mark.parametrize("name", ["h2o", "quest", "mpcache"])
def test_what_is_sent_is_what_a_dry_run_sends(name: str) -> None:
    case = random_case(SETTINGS[name], 22, 3, layers=2, head_size=32)

    def program(session: Session) -> tuple[list[Any], Cost]:
        transcript = watch(session)
        attention(case, CryptenBackend(session), sharing(session))
        return transcript, session.cost

    dry = DryRunSession()
    assert program(dry) == run_parties(program)[0]
