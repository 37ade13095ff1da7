"""Files of prompts."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from mpcache.parties.command.main import main
from mpcache.parties.command.prompts import read_prompts
from mpcache.protocols.errors import ConfigError


def test_a_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("Who?\n\n  Where? \n{}\n")
    assert read_prompts(path) == ["Who?", "  Where? ", "{}"]


def test_a_prompt_of_several_lines_is_written_as_json(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Q:\\nWho?", "id": 3}\n\n{"prompt": "Where?"}')
    assert read_prompts(path) == ["Q:\nWho?", "Where?"]


@pytest.mark.parametrize("line", ["Who?", "{}", "[]", '{"prompt": 3}', '"prompt"', "[" * 100_000])
def test_a_line_without_a_prompt_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Who?"}\n' + line)
    with pytest.raises(ConfigError, match=r'line 2 of .* is no JSON object with a text "prompt"'):
        read_prompts(path)


def test_a_file_without_a_prompt_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\n \n")
    with pytest.raises(ConfigError, match="there is no prompt in"):
        read_prompts(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prompts(tmp_path / "none.txt")


def test_one_prompt_and_many_are_not_asked_for_at_once(tmp_path: Path) -> None:
    settings, prompts = tmp_path / "client.toml", tmp_path / "prompts.txt"
    settings.write_text('owner = "127.0.0.1:1"\ndealer = "127.0.0.1:2"\ntokenizer = "model"\n')
    options = ["client", "--config", str(settings), "--prompts", str(prompts), "--prompt-file", str(prompts)]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 1 and "give one of them" in result.stderr
