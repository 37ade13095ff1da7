"""The rooms of the house: imports run downwards only, so that no two rooms need each other."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = (
    "mpcache.benchmarks.timings",
    "mpcache.benchmarks.run",
    "mpcache.benchmarks.report",
    "mpcache.benchmarks.cases",
    "mpcache.benchmarks.measure",
    "mpcache.benchmarks.peers",
    "mpcache.benchmarks.records",
    "mpcache.parties.command",
    "mpcache.parties",
    "mpcache.inspection",
    "mpcache.generation",
    "mpcache.policies",
    "mpcache.model",
    "mpcache.demo",
    "mpcache.wire",
    "mpcache.files",
    "mpcache.typed_fields",
    "mpcache.suggest",
    "mpcache.protocols.backends",
    "mpcache.protocols.crypten",
    "mpcache.protocols",
)
"""From the roof to the cellar: a room imports itself and what stands after it here."""
BY_NAME = {
    ("mpcache.__main__", "mpcache.parties.command.main"),
    ("mpcache.parties.command.main", "mpcache.benchmarks.run.commands"),
}
"""Who looks up which module by its name: `python -m mpcache` is the command line, which loads the benchmarks when it is
asked for them."""
SHOWING = ("click", "rich")
"""What people see is made with these, in the command line and the benchmarks alone."""


def _modules() -> dict[str, Path]:
    """Every module of the package by its full name; some of its folders are links."""
    found = {}
    for folder, _, files in os.walk(ROOT / "mpcache", followlinks=True):
        for file in files:
            path = Path(folder) / file
            parts = path.relative_to(ROOT).with_suffix("").parts
            if path.suffix == ".py" and "generated" not in parts and "spu" not in parts:
                found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = _modules()


def _room(module: str) -> str | None:
    """The innermost room that a module is in; None for the package's own front."""
    return max((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), key=len, default=None)


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def _imported(module: str) -> Iterator[str]:
    """What a module imports, wherever in it that stands; names that it looks up are in quotes there."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from (_module_of(source, alias.name) for alias in node.names)


def _module_of(source: str, name: str) -> str:
    return f"{source}.{name}" if f"{source}.{name}" in MODULES else source


def _looked_up(module: str) -> Iterator[str]:
    """Modules of ours that a module names in quotes to an importing function."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from (c.value for c in node.args if isinstance(c, ast.Constant) and "mpcache" in str(c.value))


def test_every_module_has_its_room() -> None:
    assert {module for module in MODULES if _room(module) is None} == {
        "mpcache",
        "mpcache.__main__",
        "mpcache.benchmarks",
    }


@pytest.mark.parametrize("room", ROOMS)
def test_no_import_climbs(room: str) -> None:
    """An import inside a function is one like any other."""
    below = ROOMS[ROOMS.index(room) :]
    for module in (module for module in MODULES if _room(module) == room):
        for imported in _imported(module):
            if imported.partition(".")[0] == "mpcache" and imported != "mpcache":  # whose version anyone may ask for
                assert _room(imported) in below, f"{module} imports {imported}, which stands above it"


def test_what_is_looked_up_by_name_is_known() -> None:
    """The package's own front loads what it exports when it is asked for: see its `__all__`."""
    found = {(module, name) for module in MODULES if module != "mpcache" for name in _looked_up(module)}
    assert found <= BY_NAME, found - BY_NAME


def test_no_module_needs_itself() -> None:
    """Nor do two of one room need each other when they are imported."""
    needs = {module: set(_at_import(module)) & set(MODULES) - {module} for module in MODULES}
    while free := {module for module, others in needs.items() if not others & set(needs)}:
        needs = {module: others for module, others in needs.items() if module not in free}
    assert not needs, {module: sorted(others & set(needs)) for module, others in needs.items()}


def _at_import(module: str) -> Iterator[str]:
    """What it imports outside of functions and of what only a type checker reads."""
    for node in _tree(module).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (_module_of(node.module, alias.name) for alias in node.names)


def test_what_computes_shows_nothing() -> None:
    for module in MODULES:
        room = _room(module)
        if room is not None and ROOMS.index(room) > ROOMS.index("mpcache.parties.command"):
            shown = [name for name in _imported(module) if name.partition(".")[0] in SHOWING]
            assert not shown, f"{module} imports {', '.join(shown)}"
