"""Every code block of the README and the docs runs, or is a command that would."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mpcache.parties.command.main import main

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("", "docs/", "examples/", "benchmarks/", "benchmarks/peers/")
PAGES = sorted(page for folder in FOLDERS for page in ROOT.glob(f"{folder}*.md"))
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
QUICK = {("plan", "gpt2"), ("policies",), ("certs", "certificates")}
"""Commands that take seconds when they have these words: they run. Of others, the options are read."""


def blocks(page: Path, language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(page.read_text()) if kind.strip() == language]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands(page: Path) -> list[list[str]]:
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


SHELL = [pytest.param(words, id=f"{name(page)}: {' '.join(words)}") for page in PAGES for words in commands(page)]


def test_every_block_says_what_it_is() -> None:
    kinds = {(name(page), kind) for page in PAGES for kind, _ in BLOCK.findall(page.read_text())}
    assert {kind for _, kind in kinds} <= {"python", "sh", "text", "toml"}, kinds


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_the_pages_python_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks(page, "python")))
    run(script)


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=name)
def test_an_example_runs(script: Path) -> None:
    run(script)


def run(script: Path) -> None:
    """In a process of its own, as a user would; what it registers stays there."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=script.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", SHELL)
def test_a_command_of_a_page_can_be_typed(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, *arguments = words
    if program == "mpcache" and any(set(quick) <= set(arguments) for quick in QUICK):
        monkeypatch.chdir(tmp_path)
        assert CliRunner().invoke(main, arguments, catch_exceptions=False).exit_code == 0
    elif program == "mpcache":
        assert_options(main, arguments)
    elif program == "python":
        is_module = arguments[0] == "-m"
        assert importlib.util.find_spec(arguments[1]) is not None if is_module else (ROOT / arguments[0]).is_file()
    elif "/" in program:
        assert (ROOT / program).is_file()
    else:
        assert program in ("pip", "uv", "git", "pytest", "export"), words


def assert_options(command: click.Command, arguments: list[str]) -> None:
    """Parse as the command line would, down to the last subcommand, and run nothing."""
    if "/" not in "".join(arguments) and "--help" in arguments:
        return
    context = click.Context(command)
    while isinstance(command, click.Group):
        chosen, *arguments = arguments
        found = command.get_command(context, chosen)
        assert found is not None, chosen
        command = found
    command.make_parser(context).parse_args(list(arguments))
