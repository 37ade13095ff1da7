"""Settings as a peer's request has them."""

from mpcache.policies import AnySettings, PolicySettings
from mpcache.wire import from_wire


def received(text: str) -> PolicySettings:
    """Read as strictly as from a peer. Raises ConfigError, HandshakeError."""
    return from_wire(AnySettings, text, "the settings")  # type: ignore[arg-type]
