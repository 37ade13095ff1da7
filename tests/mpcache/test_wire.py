"""What a peer describes: read strictly, or refused in a line that says which field is wrong."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.generation.request import PRECISION, GenerationRequest
from mpcache.model.config import LIMITS, ModelConfig
from mpcache.model.shapes import SHAPES
from mpcache.policies import AnySettings, PolicySettings
from mpcache.policies.clusters import PageSettings
from mpcache.policies.mpcache import MPCacheSettings
from mpcache.protocols.errors import HandshakeError, ModelError, MpcacheError
from mpcache.wire import LONGEST, from_wire, to_wire

REQUEST = GenerationRequest(
    prompt_tokens=60,
    max_new_tokens=4,
    temperature=0.5,
    policy=MPCacheSettings(clusters=(8, 4)),
    network="lan",
)
READERS = {ModelConfig: SHAPES["tiny"], GenerationRequest: REQUEST}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=8), values, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("value", [SHAPES["llama-7b"], PageSettings("quest", 100), MPCacheSettings(), REQUEST])
def test_a_description_survives_its_journey(value: Any) -> None:
    assert from_wire(type(value), to_wire(value), "it") == value


def test_a_description_has_no_more_than_its_characters() -> None:
    text = REQUEST.to_json()
    assert GenerationRequest.from_json(text.ljust(LONGEST)) == REQUEST
    with pytest.raises(HandshakeError, match=f"it has {LONGEST + 1} characters, more than {LONGEST}"):
        GenerationRequest.from_json(text.ljust(LONGEST + 1))


def test_every_field_of_a_model_has_a_bound() -> None:
    numbers = {field.name for field in fields(ModelConfig) if str(field.type) == "int"}
    assert numbers == set(LIMITS)
    for name, limit in LIMITS.items():
        for value in (0, -1, limit + 1):
            with pytest.raises(ModelError, match=f"a model's {name} lies between 1 and"):
                replace(SHAPES["tiny"], **{name: value})


@pytest.mark.parametrize("kind", [ModelConfig, PolicySettings, MPCacheSettings, AnySettings, GenerationRequest])
@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "3", "{}x", '{"family": "llama"', "[" * 5000, '{"a":' * 2000, " " * (LONGEST + 1), "\ud800"],
)
def test_what_is_no_description_is_refused_in_a_line(kind: type, text: str) -> None:
    with pytest.raises(HandshakeError, match="it cannot be read") as error:
        from_wire(kind, text, "it")
    assert len(str(error.value)) < 300


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_stands_in_a_field_is_taken_as_it_is_or_refused(data: st.DataObject) -> None:
    """Never changed into what was expected, never another error."""
    kind, whole = data.draw(st.sampled_from(list(READERS.items())))
    raw = asdict(whole)
    inner = data.draw(st.sampled_from([raw, raw.get("policy", raw)]))
    name, value = data.draw(st.sampled_from(sorted(inner))), data.draw(JSON)
    inner[name] = value
    try:
        read = kind.from_json(json.dumps(raw))
    except MpcacheError as error:
        assert len(str(error)) < 1000
    else:
        assert json.loads(to_wire(read)) == json.loads(json.dumps(raw))


def test_a_request_is_checked_before_anything_is_planned() -> None:
    model = SHAPES["tiny"]
    REQUEST.check("dealer", model, 60, 4, 60)
    for changes, words in [
        ({"prompt_tokens": 61}, "the dealer allows 60 prompt tokens, not 61"),
        ({"max_new_tokens": 5}, "the dealer allows 4 new tokens, not 5"),
        ({"prompt_tokens": 0}, "needs a prompt"),
        ({"prefill_block": -1}, "prefill_block is a number of tokens, or 0"),
        ({"prefill_block": 61}, "the dealer allows blocks of 60 prompt tokens, not 61"),
        ({"precision": "none"}, f"computes with {PRECISION}"),
        ({"temperature": float("nan")}, "between 0 and 100"),
        ({"temperature": -1.0}, "between 0 and 100"),
        ({"backend": "plain"}, "unknown backend"),
        ({"network": "nanms,1mbit"}, "needs a round-trip time"),
        ({"policy": PolicySettings("magic")}, "unknown cache policy"),
    ]:
        with pytest.raises(HandshakeError, match=words):
            replace(REQUEST, **changes).check("dealer", model, 60, 4, 60)  # type: ignore[arg-type]
