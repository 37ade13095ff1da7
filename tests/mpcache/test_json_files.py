"""Other people's JSON files: read strictly, and every fault is one line that names the file."""

from pathlib import Path

import pytest

from mpcache.model.json_files import LARGEST_FILE, find_json_object, read_json_object
from mpcache.protocols.errors import ModelError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[]", r"holds \[\] where an object"),
        (b"null", "holds None where an object"),
        (b'"a"', "holds 'a' where an object"),
        (b"7", "holds 7 where an object"),
        (b'{"a": NaN}', "'NaN' is not a finite number"),
        (b'{"a": [-Infinity]}', "'-Infinity' is not a finite number"),
        (b'{"a": 1e999}', "'1e999' is not a finite number"),
        (b'{"a": ' + b"1" * 5000 + b"}", "4300 digits"),
        (b'{"a": 1, "a": 2}', "the field 'a' is there twice"),
        (b'{"b": {"a": 1, "a": 1}}', "the field 'a' is there twice"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b'{"a": "\xff"}', "codec can't decode"),
        (b"{}" + b" " * LARGEST_FILE, "more than 16 MiB"),
    ],
    ids=range(16),
)
def test_a_file_that_is_no_sound_object_is_an_error(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text)
    with pytest.raises(ModelError, match=message) as error:
        read_json_object(path)
    assert str(error.value).startswith(f"{path} cannot be read: ")
    assert "\n" not in str(error.value) and len(str(error.value)) < len(str(path)) + 200


def test_only_a_file_that_is_not_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    assert find_json_object(path) is None
    path.symlink_to(tmp_path / "not-downloaded")
    with pytest.raises(ModelError, match="No such file"):
        find_json_object(path)
    with pytest.raises(ModelError, match="directory"):
        find_json_object(tmp_path)


def test_half_a_character_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(r'{"a": "\ud800", "b": "\ud83d\ude00"}')
    fields = read_json_object(path)
    assert fields.text("b") == "\U0001f600"
    with pytest.raises(ModelError, match=r"a is .*, not a text"):
        fields.text("a")
