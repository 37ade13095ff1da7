"""A network namespace for owner and dealer: the link to it is a real one, with whatever delay its maker gave it."""

from __future__ import annotations

from dataclasses import dataclass

from mpcache.protocols.errors import ConfigError


@dataclass(frozen=True)
class Namespace:
    """A Linux network namespace by its name; owner, dealer: the addresses there where they listen.

    The dealer's may lie on a link of its own that is not slowed: it works ahead, and its stream is another's business.
    """

    name: str
    owner: str
    dealer: str

    @property
    def prefix(self) -> list[str]:
        """What a command is run by, to run in it (Linux, iproute2, root)."""
        return ["ip", "netns", "exec", self.name]


def parse_namespace(text: str) -> Namespace:
    """NAME,OWNER_ADDRESS,DEALER_ADDRESS. Raises ConfigError."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(parts):
        raise ConfigError(f"the namespace {text!r} is not written like far,10.9.0.1,10.8.0.1: name, owner's, dealer's")
    return Namespace(*parts)
