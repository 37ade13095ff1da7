"""What a party makes of the dealer's last word."""

from __future__ import annotations

import pytest

from mpcache.parties.certificates import Identity
from mpcache.parties.dealer_link import DealerLink, Ending
from mpcache.protocols.errors import PeerLost
from tests.hostile.dealer import Corrections, Failure, dealer_that, request


@pytest.mark.parametrize(
    ("failure", "ending"),
    [
        (Failure(kind=Failure.LEFT, text="the owner left"), Ending("the owner left", other_left=True)),
        (Failure(text="the owner left"), Ending("the owner left", other_left=False)),
        (Failure(kind=99, text="gone"), Ending("gone", other_left=False)),  # type: ignore[arg-type]
        (Failure(kind=Failure.LEFT, text="\x1b[2J" + "x" * 1000), Ending(" [2J" + "x" * 296, other_left=True)),
    ],
    ids=["left", "words alone", "a kind that there is not", "a text that paints the terminal"],
)
def test_that_the_other_party_left_is_a_kind_not_words(
    identities: dict[str, Identity], failure: object, ending: Ending
) -> None:
    with dealer_that(lambda wanted: iter([Corrections(failure=failure)]), identities["dealer"]) as address:
        link = DealerLink(address, identities["client"], request("client"), 600.0)
        with pytest.raises(PeerLost, match="the dealer ended the session"):
            link.wait_started()
        link.close()
    assert link.ending == ending
