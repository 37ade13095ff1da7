"""What `pip install` puts on a machine: one name, `mpcache`, that works anywhere and shares no file with others."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("mpcache", "protocols", "parties", "benchmarks", "pyproject.toml", "README.md", "LICENSE")
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
LEFT_BEHIND = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """Run with nothing of this checkout in sight; gives what the command printed."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, source: Path, target: Path) -> Path:
    """kind: wheel or sdist. As `pip wheel --no-build-isolation` does, with the setuptools of this environment."""
    target.mkdir()
    run(sys.executable, "-c", BUILD, f"build_{kind}", target, cwd=source)
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that are packaged, without what an earlier build left beside them."""
    folder = tmp_path_factory.mktemp("checkout") / "mpcache"
    folder.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=LEFT_BEHIND)
        else:
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def sdist(checkout: Path) -> Path:
    return build("sdist", checkout, checkout.parent / "sdist")


@pytest.fixture(scope="module")
def wheel(checkout: Path, sdist: Path) -> Path:
    return build("wheel", checkout, checkout.parent / "wheel")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel in it, installed by pip. It sees what the wheel depends on, and so not CrypTen."""
    folder = tmp_path_factory.mktemp("installed") / "environment"
    run(sys.executable, "-m", "venv", folder, cwd=wheel.parent)
    run(folder / "bin" / "pip", "install", "--no-deps", "--no-index", "--quiet", wheel, cwd=folder)
    lines = [sysconfig.get_path("purelib"), "import sys; sys.modules['crypten'] = None"]
    (site_packages(folder) / "dependencies.pth").write_text("\n".join(lines) + "\n")
    return folder


def site_packages(environment: Path) -> Path:
    (found,) = environment.glob("lib/python*/site-packages")
    return found


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_a_wheel_has_one_top_level_name(wheel: Path) -> None:
    assert {name.split("/")[0] for name in names(wheel)} == {"mpcache", "mpcache-0.1.0.dist-info"}


def test_a_wheel_has_every_module_and_no_test(wheel: Path, checkout: Path) -> None:
    rooms = {"mpcache": "mpcache", "protocols": "mpcache/protocols", "parties": "mpcache/parties"}
    rooms["benchmarks"] = "mpcache/benchmarks"
    expected = {
        f"{room}/{path.relative_to(checkout / folder)}"
        for folder, room in rooms.items()
        for path in (checkout / folder).rglob("*.py")
        if not path.name.startswith("test_") and not {"timings", ".venv"} & {*path.parts}
    }
    assert {name for name in names(wheel) if name.endswith(".py")} == expected


def test_a_wheel_has_the_files_that_are_read_at_run_time(wheel: Path) -> None:
    files = names(wheel)
    assert "mpcache/py.typed" in files
    for folder in ("mpcache/demo/model", "mpcache/benchmarks/peers/spu"):
        present = {f"{folder}/{path.name}" for path in (ROOT / folder).iterdir() if path.is_file()}
        assert present <= files
    assert "mpcache/benchmarks/report/report.css" in files
    assert "mpcache-0.1.0.dist-info/licenses/LICENSE" in files


def test_an_sdist_has_no_links_and_gives_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        assert not [member.name for member in archive if not (member.isfile() or member.isdir())]
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    assert names(build("wheel", source, tmp_path / "wheel")) == names(wheel)


def test_no_installed_file_belongs_to_another_distribution(installed: Path) -> None:
    (own,) = importlib.metadata.distributions(name="mpcache", path=[str(site_packages(installed))])
    files = set(map(str, own.files or ()))
    assert "mpcache/__init__.py" in files
    for other in importlib.metadata.distributions():
        if other.name != "mpcache":
            assert not files & set(map(str, other.files or ())), other.name


def test_the_metadata_asks_for_nothing_that_private_generation_does_not_use(installed: Path) -> None:
    (own,) = importlib.metadata.distributions(name="mpcache", path=[str(site_packages(installed))])
    asked = {line.split(";")[0] for line in own.requires or () if "extra ==" not in line}
    unwanted = {"crypten", "sklearn", "torchvision", "onnx", "pandas", "tensorboard", "scipy", "transformers"}
    assert not {name for name in unwanted if any(line.startswith(name) for line in asked)}
    assert own.metadata["License-Expression"] == "Apache-2.0"


def test_it_is_imported_from_where_it_is_installed(installed: Path, tmp_path: Path) -> None:
    code = "import mpcache, mpcache.protocols.ring as ring; print(mpcache.__version__, mpcache.__file__, ring.__file__)"
    version, *files = run(installed / "bin" / "python", "-c", code, cwd=tmp_path).split()
    assert version == "0.1.0"
    assert all(Path(file).is_relative_to(installed) for file in files)


@pytest.mark.parametrize("command", [["--help"], ["plan", "--shape", "tiny", "--tokens", "8"]], ids=" ".join)
def test_the_command_works_from_another_folder(installed: Path, tmp_path: Path, command: list[str]) -> None:
    assert run(installed / "bin" / "mpcache", *command, cwd=tmp_path)


def test_the_package_runs_as_the_command(installed: Path, tmp_path: Path) -> None:
    assert "--repeat" in run(installed / "bin" / "python", "-m", "mpcache", "bench", "decode", "--help", cwd=tmp_path)


def test_the_readmes_library_snippet_runs(installed: Path, tmp_path: Path) -> None:
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    private, plain = run(installed / "bin" / "python", "-c", snippet, cwd=tmp_path).splitlines()
    assert plain and private.startswith(f"{plain} ")
