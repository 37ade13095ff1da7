"""The owner's and the dealer's process of a cost benchmark.

The same servers as a generation's, with a benchmark's program, a model that may be random, and notes of what they used.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mpcache.benchmarks.measure.delay import delaying
from mpcache.benchmarks.measure.model import checkpoint
from mpcache.benchmarks.measure.namespace import Namespace
from mpcache.benchmarks.measure.profiler import Profiler
from mpcache.benchmarks.measure.program import Program
from mpcache.benchmarks.measure.usage import watched
from mpcache.generation.backends import PRIVATE_BACKENDS
from mpcache.generation.loop import Program as AnyProgram
from mpcache.generation.network import Network
from mpcache.model.config import ModelConfig
from mpcache.parties.certificates import Identity, load_identity
from mpcache.parties.dealer import DealerServer
from mpcache.parties.memory import keep_memory
from mpcache.parties.owner import OwnerServer
from mpcache.parties.serving import serve
from mpcache.parties.settings import DealerSettings, OwnerSettings
from mpcache.protocols.transport import Transport

LOOPBACK = "127.0.0.1"
UNLIMITED = 1e6
"""GiB: a benchmark's models are its own."""


@dataclass(frozen=True)
class Setup:
    """What all three processes of a benchmark are given. model: a folder; without, weights are random.

    network: what messages are delayed like, if owner and dealer are not in a namespace, where the link itself does it.
    profile: tell each process's CPU seconds by what it was at work on.
    """

    config: ModelConfig
    program: Program
    model: Path | None = None
    network: Network | None = None
    namespace: Namespace | None = None
    timeout_seconds: float = 300.0
    dealer_memory_mib: int = 128
    profile: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "model": None if self.model is None else str(self.model)}

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> Setup:
        return Setup(
            config=ModelConfig(**raw["config"]),
            program=Program(**raw["program"]),
            model=Path(raw["model"]) if raw["model"] else None,
            network=Network(**raw["network"]) if raw["network"] else None,
            namespace=Namespace(**raw["namespace"]) if raw["namespace"] else None,
            timeout_seconds=raw["timeout_seconds"],
            dealer_memory_mib=raw["dealer_memory_mib"],
            profile=raw["profile"],
        )

    @property
    def transport(self) -> Transport | None:
        """Of both parties: one that delays, where a network is to be simulated."""
        return delaying(self.network) if self.network and not self.namespace else None

    @property
    def hosts(self) -> dict[str, str]:
        """Where owner and dealer listen."""
        there = self.namespace
        return {"owner": there.owner if there else LOOPBACK, "dealer": there.dealer if there else LOOPBACK}


def _limits(setup: Setup) -> dict[str, Any]:
    """What both servers allow: everything that fits the model, on every private backend."""
    longest = setup.config.max_positions
    return {
        "timeout_seconds": setup.timeout_seconds,
        "planning_seconds": setup.timeout_seconds,
        "max_prompt_tokens": longest,
        "max_new_tokens": longest,
        "max_step_gib": UNLIMITED,
        "backends": PRIVATE_BACKENDS,
    }


def serve_dealer(setup: Setup, identity: Identity, program: AnyProgram) -> DealerServer:
    settings = DealerSettings(
        f"{setup.hosts['dealer']}:0",
        memory_mib=setup.dealer_memory_mib,
        max_model_gib=UNLIMITED,
        **_limits(setup),
    )
    return DealerServer(settings, identity, program)


def serve_owner(setup: Setup, identity: Identity, program: AnyProgram, dealer: str, state: Path) -> OwnerServer:
    settings = OwnerSettings(f"{setup.hosts['owner']}:0", dealer, model=Path(), state=state, **_limits(setup))
    model = checkpoint(setup.config, setup.model)
    return OwnerServer(settings, identity, model, program, setup.transport)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mpcache.benchmarks.measure.roles", description=__doc__)
    parser.add_argument("role", choices=("owner", "dealer"))
    parser.add_argument("--config", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    raw = json.loads(options.config.read_text())
    setup, identity = Setup.from_dict(raw["setup"]), load_identity(Path(raw["certificates"]), options.role)
    program = watched(setup.program, Path(raw["log"]), Profiler().start() if setup.profile else None)
    server: Any
    if options.role == "dealer":
        server = serve_dealer(setup, identity, program)
    else:
        server = serve_owner(setup, identity, program, raw["dealer"], Path(raw["state"]))
    address = f"{setup.hosts[options.role]}:{server.port}"
    serve(server, 0.0, lambda: print(f"{options.role} listening on {address}", flush=True))


if __name__ == "__main__":
    main()
