"""One description of a generation, and what the client keeps to itself."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from mpcache.generation.request import ClientRequest, GenerationRequest
from mpcache.generation.text import TextStream
from mpcache.model.decoder import PREFILL_BLOCK
from mpcache.model.shapes import SHAPES
from mpcache.policies import policy_settings
from mpcache.protocols.errors import ConfigError
from tests.asking import asked, asking


def test_facts_are_named_and_fixed() -> None:
    with pytest.raises(TypeError):
        GenerationRequest(5, 2)  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        asked(5, 2).prompt_tokens = 6  # type: ignore[misc]


def test_equal_requests_give_equal_text_which_reads_as_the_same_request() -> None:
    request = asked(70, 3, temperature=0.5, policy=policy_settings("h2o"), network="wan")
    assert GenerationRequest.from_json(request.to_json()) == request
    assert asked(70, 3).to_json() == asked(70, 3).to_json() != request.to_json()


def test_a_prompt_is_read_in_blocks() -> None:
    model = SHAPES["tiny"]
    assert asked(2 * PREFILL_BLOCK + 1, 1).blocks(model) == [(0, 64), (64, 128), (128, 129)]
    assert asked(10, 1, prefill_block=5).blocks(model) == [(0, 5), (5, 10)]


def test_a_prompt_is_as_long_as_its_request_says() -> None:
    with pytest.raises(ConfigError, match="the prompt has 2 tokens where 3 were announced"):
        ClientRequest(prompt=[1, 2], public=asked(3, 1))
    other = asking([1, 2], 4, vocabulary=9, network="lan").with_prompt([5, 6, 7], max_new_tokens=1)
    assert other == asking([5, 6, 7], 1, vocabulary=9, network="lan")


def test_a_prompt_shows_in_no_log() -> None:
    assert "90417" not in repr(asking([90417], 1)) and "90417" not in asking([90417], 1).public.to_json()


def test_an_answer_of_fixed_length_stops_at_no_token() -> None:
    stop = asking([1], 4, end_tokens=(2, 3)).stop
    assert stop is not None and [stop(token) for token in (1, 2, 3)] == [False, True, True]
    assert asking([1], 4, end_tokens=(2, 3), fixed_length=True).stop is None


class Bytes:
    """A tokenizer whose tokens are bytes of UTF-8."""

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


def test_text_comes_in_whole_characters_and_all_of_it() -> None:
    stream = TextStream(Bytes())
    pieces = [stream.add(token) for token in "aß€".encode()]
    assert pieces == ["a", "", "ß", "", "", "€"] and stream.rest() == ""
    assert stream.text == "aß€" and stream.tokens == list("aß€".encode())


def test_half_a_character_at_the_end_is_given_at_last() -> None:
    stream = TextStream(Bytes())
    assert [stream.add(token) for token in "aß".encode()[:2]] == ["a", ""]
    assert stream.rest() == "\ufffd" and stream.rest() == ""
