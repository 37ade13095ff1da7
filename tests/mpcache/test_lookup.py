"""Drafts from the text itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mpcache.generation.lookup import LONGEST, PromptLookup


def test_what_came_after_the_last_tokens_before_is_drafted() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 9, 1, 2, 3], 12)
    assert lookup.draft(3) == [4, 5, 9]
    lookup.add([4, 5])
    assert lookup.draft(2) == [9, 1]


def test_a_longer_run_goes_before_a_later_one_and_of_equals_the_latest_counts() -> None:
    assert PromptLookup([1, 2, 7, 2, 8, 1, 2], 7).draft(1) == [7]
    assert PromptLookup([1, 2, 7, 1, 2, 8, 1, 2], 8).draft(1) == [8]


def test_what_repeats_is_drafted_over_and_over() -> None:
    assert PromptLookup([5, 6, 7, 6, 7], 9).draft(5) == [6, 7, 6, 7, 6]


def test_where_the_last_token_is_new_it_is_drafted_again() -> None:
    assert PromptLookup([1, 2, 3], 3).draft(2) == [3, 3]


def naive(text: list[int], count: int) -> list[int]:
    """The same, one step at a time."""
    end = len(text) - 1

    def run(place: int) -> int:
        length = 0
        while length < LONGEST and place - length >= 0 and text[place - length] == text[end - length]:
            length += 1
        return length

    found = max(range(end), key=lambda place: (run(place), place))
    return [text[found + 1 + i % (end - found)] for i in range(count)]


@given(st.lists(st.integers(0, 2), min_size=2, max_size=40), st.integers(1, 9), st.integers(0, 9))
def test_drafts_are_those_of_a_plain_search(text: list[int], count: int, spare: int) -> None:
    assert PromptLookup(text, len(text) + spare).draft(count) == naive(text, count)
