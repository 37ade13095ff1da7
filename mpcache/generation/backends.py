"""Backends by name, for the processes and the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from mpcache.protocols.backends.interface import AnyBackend
from mpcache.protocols.backends.mpc import MpcBackend
from mpcache.protocols.plan import PlanSession
from mpcache.protocols.session import Session

PRIVATE_BACKENDS = ("mpc", "crypten")


@contextmanager
def private_backend(
    name: str,
    session: Session,
    weight_key: bytes | None = None,
    masked_weights: Mapping[str, torch.Tensor] | None = None,
) -> Iterator[AnyBackend]:
    """The backend `name` on a session, for as long as the block lasts."""
    if name == "mpc":
        yield MpcBackend(session, weight_key, dict(masked_weights or {}))
        return
    from mpcache.protocols.backends.crypten import CryptenBackend

    yield CryptenBackend(session)


def plan_session(name: str, check: Callable[[], None] = lambda: None) -> PlanSession:
    """A session that plans: on `meta` tensors for mpc; CrypTen runs dry, on zeros. check: see `PlanSession`."""
    if name == "mpc":
        return PlanSession(check)
    from mpcache.protocols.crypten.dry_run import DryRunSession

    return DryRunSession(check)
