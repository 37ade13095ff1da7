"""Networks that a computation is priced on or delayed as: a round-trip time and a bandwidth."""

from __future__ import annotations

from dataclasses import dataclass

from mpcache.protocols.errors import ConfigError
from mpcache.protocols.session import ROUND_BYTES


@dataclass(frozen=True)
class Network:
    """round_trip: seconds; bandwidth: bytes a second, in each direction."""

    name: str
    round_trip: float
    bandwidth: float

    def seconds(self, rounds: int, online_bytes: int) -> float:
        """What the network alone takes. A round takes half a round trip, as both parties send at the same time; all
        bytes, of both directions, go one after another."""
        return rounds * self.round_trip / 2 + online_bytes / self.bandwidth

    @property
    def round_bytes(self) -> int:
        """How many bytes cost as much time as a round: what protocols choose their shapes by."""
        if self.round_trip == 0:
            return ROUND_BYTES
        round_seconds = ROUND_SECONDS + self.round_trip / 2
        return round(round_seconds / (1 / self.bandwidth + BYTE_SECONDS))


ROUND_SECONDS = 0.7e-3
BYTE_SECONDS = 4e-9
"""What a round, and a byte online or of correlations, takes besides the network: about what `mpcache bench calibrate`
finds on a 2-core machine."""


LOOPBACK = Network("loopback", 0.0, 1e10)
"""Processes of one machine: what a message costs there is computing (see `mpcache.generation.price.Speed`)."""

NETWORKS = {n.name: n for n in (LOOPBACK, Network("lan", 0.8e-3, 125e6), Network("wan", 20e-3, 50e6))}
"""lan: 1 Gbit/s; wan: 400 Mbit/s."""

LONGEST_NAME = 64
LONGEST_ROUND_TRIP = 100.0
SLOWEST, FASTEST = 125.0, 125e9
_UNITS = {"kbit": 125.0, "mbit": 125e3, "gbit": 125e6}


def parse_network(text: str) -> Network:
    """A preset's name, or RTT,BANDWIDTH such as 5ms,100mbit. Raises ConfigError."""
    if text in NETWORKS:
        return NETWORKS[text]
    if len(text) > LONGEST_NAME:
        raise ConfigError(f"a network is written in {LONGEST_NAME} characters at most")
    round_trip, _, bandwidth = text.lower().replace(" ", "").partition(",")
    try:
        unit = next(u for u in _UNITS if bandwidth.endswith(u))
        if not round_trip.endswith("ms"):
            raise ValueError
        network = Network(text, float(round_trip[:-2]) / 1e3, float(bandwidth[: -len(unit)]) * _UNITS[unit])
    except (StopIteration, ValueError):
        raise ConfigError(
            f"the network {text!r} is none of {', '.join(NETWORKS)}, nor written like 5ms,100mbit"
        ) from None
    if not (0 <= network.round_trip <= LONGEST_ROUND_TRIP and SLOWEST <= network.bandwidth <= FASTEST):
        raise ConfigError(
            f"the network {text!r} needs a round-trip time from zero to {LONGEST_ROUND_TRIP * 1e3:g} ms and a "
            "bandwidth from 1 kbit to 1,000 gbit"
        )
    return network
