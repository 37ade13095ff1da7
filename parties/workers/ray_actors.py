"""Workers that are actors on a Ray cluster. Ray is imported where it is asked for, and nowhere else.

Seeds are arguments of calls, which go straight to the actor: those of an actor's creation would stay in Ray's control
store. Each argument travels by itself: a large one would take small ones with it into the object store. What a call
gives lies in the object store of its node until it is taken. docs/threat-model.md says who sees it.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from mpcache import __version__
from mpcache.parties.workers.pool import Pool, State, outcome, settle
from mpcache.protocols.errors import ConfigError, PeerLost

LOCAL = "local"
"""The address of a Ray that is started for this process, on this machine, and ends with it."""
TOKEN_HINT = "Does it ask for a token? Then set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file that has it"
START_SECONDS = 300.0
"""For an actor to start."""


class Actor:
    """What runs on the cluster: a worker's state, and its calls."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self._state: State = {}

    def versions(self) -> tuple[str, str]:
        """Of what must be the same everywhere."""
        return versions()

    def call(self, function: Callable[..., Any], *arguments: Any) -> tuple[bool, Any]:
        return outcome(self._state, function, arguments)


class RayActor:
    """A host that is an actor with a processor of its own. It is not started again: what it held would be missing."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self.lost = False
        self._actor = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(Actor).remote()
        try:
            theirs = ray.get(self._actor.versions.remote(), timeout=START_SECONDS)
        except ray.exceptions.RayError as error:
            self.stop()
            raise PeerLost(f"a worker does not start on Ray: {_said(error)}") from None
        if theirs != versions():
            self.stop()
            raise ConfigError(
                f"Ray's nodes have MPCache and torch {' and '.join(theirs)}, this machine {' and '.join(versions())}: "
                "install the same everywhere"
            )

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Future[Any]:
        future: Future[Any] = Future()
        made = self._actor.call.remote(function, *arguments).future()
        made.add_done_callback(lambda ended: self._end(future, ended))
        return future

    def stop(self) -> None:
        self._ray.kill(self._actor)

    def _end(self, future: Future[Any], ended: Future[Any]) -> None:
        error = ended.exception()
        if error is None:
            settle(future, *ended.result())
        else:
            self.lost = True
            future.set_exception(
                PeerLost(f"a worker on Ray ended: {_said(error)}", told="the dealer lost one of its processes")
            )


def ray_pool(address: str, count: int | None = None) -> Pool:
    """Workers on the Ray cluster at `address`; count: as many as it has processors, if nobody says.

    Raises ConfigError, and PeerLost if a worker does not start.
    """
    if "://" in address:
        raise ConfigError(
            f"a Ray address is that of a cluster which this machine is part of, such as 127.0.0.1:6379, or {LOCAL}, "
            f"not {address[:60]!r}: run `ray start --address=HEAD:6379` on this machine"
        )
    ray = _imported(address)
    _connect(ray, address, count)
    try:
        there = int(ray.cluster_resources().get("CPU", 0))
        wanted = count or there
        if not 1 <= wanted <= there:
            raise ConfigError(f"Ray at {address} has {there} processors, and {wanted or 1} are needed")
        return Pool(lambda: RayActor(ray), wanted, ray.shutdown)
    except BaseException:
        ray.shutdown()
        raise


def versions() -> tuple[str, str]:
    """MPCache's and torch's."""
    return __version__, importlib.metadata.version("torch").partition("+")[0]


def _imported(address: str) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a Ray that is started here reports to nobody
    if address == LOCAL or address.startswith("127."):
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # its name for: listen on loopback alone
    try:
        import ray
    except ModuleNotFoundError:
        raise ConfigError("Ray is not installed here: pip install 'mpcache[ray]'") from None
    return ray


def _connect(ray: Any, address: str, count: int | None) -> None:
    """Raises ConfigError."""
    own = {"num_cpus": count, "include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    except Exception as error:  # Ray raises this class itself, where a node does not start in time
        hint = "" if address == LOCAL else f". {TOKEN_HINT}"
        raise ConfigError(f"there is no Ray at {address[:60]}: {_said(error)}{hint}") from None
    if own and ray.util.get_node_ip_address() != "127.0.0.1":
        ray.shutdown()
        raise ConfigError("a Ray that is started here is for this machine alone: import ray after MPCache has done it")


def _said(error: BaseException) -> str:
    """The first line of what Ray says; the others hold stack traces."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
