"""What is built and installed: a wheel and an sdist, and what a program that imports the installed package gets."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from harness import eventually

import daemonkit

ROOT = Path(__file__).parent.parent
VERSION = daemonkit.__version__
FILES = ["LICENSE", "Makefile", "hatch_build.py", "pyproject.toml", *(page.name for page in ROOT.glob("*.md"))]
DIRECTORIES = [".ci", "bench", "daemonkit", "docs", "examples", "stress", "tests"]


def _run(*command: object, cwd: Path) -> str:
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _tree(root: Path) -> set[str]:
    """Return what belongs to the project in a directory, and not what tools have left in it."""
    made = {"__pycache__", "_build"}
    found = {path for name in DIRECTORIES for path in (root / name).rglob("*") if path.is_file()}
    return {str(path.relative_to(root)) for path in found if not made & set(path.parts)} | {*FILES}


def _build(source: Path, to: Path) -> tuple[Path, Path]:
    _run(sys.executable, "-m", "hatchling", "build", "-d", to, cwd=source)
    return to / f"daemonkit-{VERSION}-py3-none-any.whl", to / f"daemonkit-{VERSION}.tar.gz"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return _build(ROOT, tmp_path_factory.mktemp("dist"))


def test_the_wheel_has_the_package_and_its_licence_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(f"daemonkit-{VERSION}.dist-info/METADATA").decode()
    about = {name for name in names if name.startswith(f"daemonkit-{VERSION}.dist-info/")}
    assert names - about == {name for name in _tree(ROOT) if name.startswith("daemonkit/")}
    assert "daemonkit/py.typed" in names and f"daemonkit-{VERSION}.dist-info/licenses/LICENSE" in about
    for line in (
        f"Version: {VERSION}",
        "License-Expression: MIT",
        "Requires-Python: >=3.11",
        "Classifier: Typing :: Typed",
    ):
        assert f"\n{line}\n" in metadata


def test_the_sdist_has_all_that_its_tests_need_and_builds_the_same_wheel(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    with tarfile.open(built[1]) as sdist:
        sdist.extraction_filter = getattr(tarfile, "data_filter", None)  # from 3.11.4 on
        sdist.extractall(tmp_path)
    unpacked = tmp_path / f"daemonkit-{VERSION}"
    assert _tree(unpacked) == _tree(ROOT)
    assert all((unpacked / name).is_file() for name in FILES)
    assert os.access(unpacked / ".ci" / "run", os.X_OK)
    again, _ = _build(unpacked, tmp_path / "dist")
    with zipfile.ZipFile(again) as second, zipfile.ZipFile(built[0]) as first:
        assert {i.filename: i.CRC for i in second.infolist()} == {i.filename: i.CRC for i in first.infolist()}


PROGRAM = """
import pathlib, sys, daemonkit
assert pathlib.Path(daemonkit.__file__).is_relative_to(sys.prefix), daemonkit.__file__
with daemonkit.detached(pidfile="app.pid", stdout="app.log", stderr=daemonkit.STDOUT):
    print(daemonkit.supervise(["true"], instances=2).exitcode, daemonkit.__version__)
"""


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_what_is_installed_runs_and_has_types(built: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    packages = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    for name in ("daemon", "lockfile", "hatchling", "packaging", "pathspec", "pluggy", "trove_classifiers"):
        os.symlink(Path(sysconfig.get_path("purelib")) / name, packages / name)  # no registry is asked
    options = ("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation")
    _run(python, *options, built[kind == "sdist"], cwd=tmp_path)

    (tmp_path / "program.py").write_text(PROGRAM)
    assert _run(python, "program.py", cwd=tmp_path) == ""
    eventually(lambda: (tmp_path / "app.log").read_text() == f"0 {VERSION}\n", "the daemon's log")
    eventually(lambda: not (tmp_path / "app.pid").exists(), "the daemon's end")

    shutil.copy(ROOT / "tests" / "consumer.py", tmp_path)
    mypy = (sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-executable", python)
    _run(*mypy, "consumer.py", cwd=tmp_path)
