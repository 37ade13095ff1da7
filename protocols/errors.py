"""Every error that MPCache raises on purpose. Messages say what happened and what to do.

MpcacheError
├── ConfigError            a user's file, option or value is wrong
├── ModelError             a model folder cannot be used
├── IdentityError          certificates: missing, expired, wrong authority, wrong role
├── HandshakeError         the parties do not agree (version, model, policy, precision, plan)
├── Busy                   a process serves as many sessions as it may
├── TooLarge               a step of the computation needs more memory than a process allows it
├── ProtocolError          a message is out of order, of the wrong length, or was never due
├── PeerLost               a process went away or stopped answering; names the role
└── PlanError              a run and its plan differ (a fault of MPCache, never the user's mistake)
"""


class MpcacheError(Exception):
    """Base of all errors raised on purpose; the command line prints its message without a traceback."""


class ConfigError(MpcacheError):
    """A user's file, option or value is wrong."""


class ModelError(MpcacheError):
    """A model folder cannot be used."""


class IdentityError(MpcacheError):
    """A certificate is missing, expired, from another authority or of another role."""


class HandshakeError(MpcacheError):
    """The parties do not agree on version, model, policy, precision or plan."""


class Busy(MpcacheError):
    """A process serves as many sessions as it may. Try again later."""


class TooLarge(MpcacheError):
    """A step of the computation needs more memory than a process allows it."""


class ProtocolError(MpcacheError):
    """A message is out of order, of the wrong length, or was never due."""


class PeerLost(MpcacheError):
    """Another process went away, refused or stopped answering; the message names its role.

    told: what a third process may hear of it, if that is less: not where the lost one is.
    """

    def __init__(self, message: str, told: str | None = None) -> None:
        super().__init__(message)
        self.told = message if told is None else told


class PlanError(MpcacheError):
    """A run and its plan differ: a fault of MPCache, never the user's mistake."""
