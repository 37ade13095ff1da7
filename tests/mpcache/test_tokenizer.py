"""What a data owner takes from its own folder: whole prompts, and the tokens that end an answer."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from tokenizers import Tokenizer, models

from mpcache.demo import DEMO_MODEL
from mpcache.model.tokenizer import end_tokens, load_tokenizer, vocabulary_size
from mpcache.protocols.errors import ModelError
from tests.mpcache.folders import change_json
from tests.mpcache.test_config_file import ANY_JSON

NEWLINE = 199
TOKENIZER = load_tokenizer(DEMO_MODEL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A client's folder: the demo model's tokenizer, and no word on what ends an answer."""
    shutil.copy(DEMO_MODEL / "tokenizer.json", tmp_path)
    return tmp_path


def test_a_missing_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", '{"version": "1.0"}', "\0", '"a"'])
def test_a_malformed_tokenizer_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(tmp_path)


def test_twenty_tokens_given_are_twenty_tokens_used(folder: Path) -> None:
    prompt = TOKENIZER.decode(TOKENIZER.encode((DEMO_MODEL / "daysheet_512.txt").read_text()).ids[:20])
    expected = TOKENIZER.encode(prompt).ids
    assert len(expected) == 20
    stored = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for cut, padded in ((8, None), (None, 64), (8, 64)):
        stored.no_truncation()
        stored.no_padding()
        if cut:
            stored.enable_truncation(cut)
        if padded:
            stored.enable_padding(length=padded)
        stored.save(str(folder / "tokenizer.json"))
        assert len(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(prompt).ids) == (padded or cut)
        assert load_tokenizer(folder).encode(prompt).ids == expected


def test_the_demo_models_answers_end_with_their_line() -> None:
    assert end_tokens(DEMO_MODEL, TOKENIZER) == (NEWLINE,)
    assert TOKENIZER.decode([NEWLINE]) == "\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ()),
        ({"generation_config.json": {"eos_token_id": 5}}, (5,)),
        ({"generation_config.json": {"eos_token_id": [7, 5, 7]}, "config.json": {"eos_token_id": 9}}, (5, 7)),
        ({"generation_config.json": {"eos_token_id": 0}, "config.json": {"eos_token_id": 9}}, (0,)),
        ({"generation_config.json": {}, "config.json": {"eos_token_id": [9, 3]}}, (3, 9)),
        ({"generation_config.json": {"eos_token_id": None}, "config.json": {"eos_token_id": 9}}, (9,)),
        ({"config.json": {"eos_token_id": 9}, "tokenizer_config.json": {"eos_token": "\n"}}, (9,)),
        ({"config.json": {}, "tokenizer_config.json": {"eos_token": "\n"}}, (NEWLINE,)),
        ({"tokenizer_config.json": {"eos_token": {"content": "\n", "lstrip": False}}}, (NEWLINE,)),
        ({"tokenizer_config.json": {"eos_token": None}}, ()),
    ],
)
def test_end_tokens_are_those_of_the_first_file_that_names_any(
    folder: Path, files: dict[str, dict[str, object]], expected: tuple[int, ...]
) -> None:
    for name, fields in files.items():
        change_json(folder / name, **fields)
    assert end_tokens(folder, TOKENIZER) == expected


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("value", ["5", True, 1.0, -1, 1 << 40, [5, "7"], [[5]], {"a": 5}])
def test_an_end_token_is_a_whole_number(folder: Path, file: str, value: object) -> None:
    change_json(folder / file, eos_token_id=value)
    with pytest.raises(ModelError, match=rf"{file}: eos_token_id is .*, not a whole number"):
        end_tokens(folder, TOKENIZER)


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("generation_config.json", {"eos_token_id": [5, 842]}, "eos_token_id 842 is no token of tokenizer.json"),
        ("tokenizer_config.json", {"eos_token": "</never>"}, "eos_token '</never>' is no token of tokenizer.json"),
        ("tokenizer_config.json", {"eos_token": "\n\n\n\n"}, "is no token of tokenizer.json"),
        ("tokenizer_config.json", {"eos_token": "\u732b"}, "is no token of tokenizer.json"),
        ("tokenizer_config.json", {"eos_token": ["\n"]}, "eos_token is .*, not a text"),
        ("tokenizer_config.json", {"eos_token": {"id": 3}}, "eos_token: content is missing"),
        ("tokenizer_config.json", {"eos_token": {"content": 3}}, "eos_token: content is 3, not a text"),
        ("tokenizer_config.json", {"eos_token": "\ud800"}, "eos_token is .*, not a text"),
    ],
)
def test_an_end_token_is_one_of_the_tokenizers(
    folder: Path, file: str, fields: dict[str, object], message: str
) -> None:
    change_json(folder / file, **fields)
    with pytest.raises(ModelError, match=message):
        end_tokens(folder, TOKENIZER)


@pytest.mark.parametrize("file", ["generation_config.json", "config.json", "tokenizer_config.json"])
def test_a_file_that_is_a_list_is_an_error(folder: Path, file: str) -> None:
    (folder / file).write_text("[1]")
    with pytest.raises(ModelError, match=rf"{file} cannot be read: .* where an object"):
        end_tokens(folder, TOKENIZER)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


@settings(max_examples=200, deadline=None)
@given(ANY_JSON, ANY_JSON)
def test_any_value_is_read_or_an_error_in_words(scratch: Path, identifier: object, text: object) -> None:
    (scratch / "generation_config.json").write_text(json.dumps({"eos_token_id": identifier}))
    (scratch / "tokenizer_config.json").write_text(json.dumps({"eos_token": text}))
    with suppress(ModelError):
        assert all(TOKENIZER.id_to_token(token) is not None for token in end_tokens(scratch, TOKENIZER))


def test_a_vocabulary_has_room_for_every_id_though_ids_have_gaps() -> None:
    """By their number a token could be beyond the model's vocabulary, and its failure would tell that it is there."""
    gap = Tokenizer(models.WordLevel({**{f"t{i}": i for i in range(95)}, "rare": 97}, unk_token="t0"))
    assert gap.get_vocab_size() == 96 and vocabulary_size(gap) == 98
    assert vocabulary_size(TOKENIZER) == TOKENIZER.get_vocab_size() == 842
