"""Which workers a user's settings ask for."""

from __future__ import annotations

from mpcache.parties.workers.pool import Pool
from mpcache.parties.workers.processes import LocalProcess


def chosen_pool(workers: int, ray: str = "") -> Pool | None:
    """None: this process alone works. ray: the address of a cluster, where 1 worker stands for as many as fit it.

    Raises ConfigError, and PeerLost if a process does not start.
    """
    if ray:
        from mpcache.parties.workers.ray_actors import ray_pool

        return ray_pool(ray, None if workers == 1 else workers)
    return Pool(LocalProcess, workers) if workers > 1 else None
