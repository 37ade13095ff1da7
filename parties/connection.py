"""Where a client finds the others, and its links to them for one call of the owner."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mpcache.parties.agreement import Party
from mpcache.parties.certificates import Identity
from mpcache.parties.dealer_link import READ_AHEAD, DealerLink, DealerLinks
from mpcache.parties.link import SESSION_BYTES, ClientLink, told
from mpcache.parties.tls import DEFAULT_TIMEOUT
from mpcache.protocols.errors import MpcacheError, PeerLost

_LAST_WORD = 2.0
"""Seconds that an owner's own reason may come later than the dealer's word that it left."""


@dataclass(frozen=True)
class Connection:
    """Where the others are, and how to reach them. max_model_gib: of masked weights and cache that are
    accepted; max_step_gib: of one correlation or message; prepared_hours: after which seeds of prepared sessions are
    deleted unused."""

    owner: str
    dealer: str
    identity: Identity | None
    state: Path
    timeout: float = DEFAULT_TIMEOUT
    max_model_gib: float = 16.0
    max_step_gib: float = 2.0
    prepared_hours: float = 168.0


class Links:
    """A client's links: to the owner, and then to the dealer, for each prompt. They are told why if it ends."""

    def __init__(self, where: Connection) -> None:
        self.where = where
        self.owner: ClientLink | None = None
        self.dealers = DealerLinks()
        self._stopped = False

    def stop(self) -> None:
        """Nobody wants to go on: the others are told. Any thread may call it."""
        self._stopped = True
        if self.owner is not None:
            self.owner.abort("the client stopped")
        self.dealers.close()

    def check_wanted(self) -> None:
        """After each link was made, as `stop` ends only those that it finds."""
        if self._stopped:
            raise PeerLost("the client stopped")

    @contextmanager
    def to_owner(self) -> Iterator[ClientLink]:
        """Closed with the block, as the one to the dealer is. The first error is the one that is told and raised."""
        where = self.where
        link = self.owner = ClientLink(where.owner, where.identity, os.urandom(SESSION_BYTES), where.timeout)
        try:
            self.check_wanted()
            yield link
        except MpcacheError as error:
            reason = link.reason(_LAST_WORD) if self.dealers.other_left else None
            link.abort(reason or told(error, "client"))
            if reason is not None:
                raise PeerLost(reason) from None
            raise
        except Exception as error:
            link.abort(told(error, "client"))
            raise
        finally:
            link.disconnect()
            self.dealers.close()

    def party(self, link: ClientLink, prompts: int = 1) -> Party:
        """This client before the dealer, with a link for each of so many prompts."""

        def watch(dealer: DealerLink) -> None:
            self.dealers.add(dealer)
            self.check_wanted()
            link.check = self.dealers.check

        where = self.where
        return Party(
            role="client",
            dealer=where.dealer,
            identity=where.identity,
            timeout=where.timeout,
            watch=watch,
            check_peer=link.check_peer,
            read_ahead=READ_AHEAD // prompts,
        )
