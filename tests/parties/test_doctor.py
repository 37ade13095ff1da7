"""`mpcache doctor` shows what the products' choice goes by."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mpcache.parties.command.main import main
from mpcache.protocols.products import choice
from mpcache.protocols.products.choice import CLASSES, SETTING, ShapeClass


@pytest.fixture(autouse=True)
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[ShapeClass]:
    """What was measured; limbs are fast for many rows."""
    found: list[ShapeClass] = []

    def measure(what: ShapeClass) -> dict[str, float]:
        found.append(what)
        return {"torch": 0.5, "vectors": 0.6, "limbs": 2.0 if what.rows == "many" else 0.1}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(SETTING, raising=False)
    monkeypatch.setattr(choice, "measure", measure)
    return found


def examined(path: Path, *options: str) -> tuple[str, dict]:
    result = CliRunner().invoke(main, ["doctor", "--json", str(path / "doctor.json"), *options])
    assert result.exit_code == 0, result.output
    return result.stdout, json.loads((path / "doctor.json").read_text())


def test_the_machine_and_the_choice_are_shown(tmp_path: Path) -> None:
    shown, findings = examined(tmp_path)
    for value in (choice.processor(), findings["vector_width"], f"{SETTING}=auto", "0 bytes"):
        assert value in shown
    assert {(p["rows"], p["chosen"]) for p in findings["products"]} == {
        ("many", "limbs"),
        ("some", "torch"),
        ("few", "torch"),
    }
    assert {p["why"] for p in findings["products"]} == {"4.0 times torch", "no other is clearly faster"}
    assert [(p["form"], p["rows"], p["bits"]) for p in findings["products"]] == [
        (what.form, what.rows, what.bits) for what in CLASSES
    ]


def test_what_is_known_is_measured_again_only_when_asked(tmp_path: Path, measured: list[ShapeClass]) -> None:
    examined(tmp_path)
    examined(tmp_path)
    assert measured == list(CLASSES)
    examined(tmp_path, "--measure")
    assert measured == [*CLASSES, *CLASSES]


def test_a_setting_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETTING, "vectors")
    _, findings = examined(tmp_path)
    assert {(p["chosen"], p["why"]) for p in findings["products"]} == {("vectors", f"{SETTING}=vectors")}


def test_a_setting_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETTING, "quick")
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert result.stderr == f"mpcache: {SETTING} is one of auto, torch, vectors, limbs, not 'quick'\n"
