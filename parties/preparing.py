"""A client that prepares a session: it needs no prompt, and gets no token."""

from __future__ import annotations

from collections.abc import Callable

from mpcache.parties.connection import Connection, Links
from mpcache.parties.handshake import Handshake, Wanted


def prepare_session(
    where: Connection, wanted: Wanted, hear: Callable[[int], None] = lambda nbytes: None
) -> tuple[bytes, int]:
    """(id, bytes on the dealer's disk) of a session that all three have prepared, for a prompt of the request's length.

    The dealer has its corrections, encrypted under this client's seed; owner and client have their seeds. The owner's
    masked weights are fetched, too. The client keeps its seed last: what it offers, the others had. hear: is told again
    and again how many bytes are on the dealer's disk. Raises MpcacheError; the other processes are told why.
    """
    links = Links(where)
    with links.to_owner() as link:
        handshake = Handshake(where, link, wanted)
        welcome = handshake.for_preparation()
        seed, nbytes = links.party(link).prepare(welcome.agreements[0], hear)
        link.receive(1)  # the owner has kept its own
        handshake.keep(seed, welcome.facts)
        return link.session, nbytes
