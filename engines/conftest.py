"""The engines' nodes, which are there as long as their tests run, and the figures that are printed at the end."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from apps import CRASH, CRASHING, REQUIREMENTS, WEB, daemonkit, dockerfile, told
from nodes import Node, eventually
from slurm import running_cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parent.parent
FIGURES: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if missing := os.environ.get("ENGINES_MISSING"):
        for item in items:
            item.add_marker(pytest.mark.skip(reason=missing))
    elif "ENGINES" not in os.environ:
        raise pytest.UsageError("the engines are tested by `make engines`")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FIGURES:
        terminalreporter.section("seen")
        for line in FIGURES:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def seen() -> Callable[[str], None]:
    """Note a figure for the end."""
    return FIGURES.append


def need(*programs: str) -> None:
    """Skip the test where Debian's package could not be had."""
    root = Path(os.environ["ENGINES"], "root")
    if missing := [program for program in programs if not os.path.lexists(root / "usr" / program)]:
        pytest.skip(f"no {', '.join(missing)}: the package could not be fetched (see {root.parent}/log)")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system with Python, pip, and the wheels that pip finds there: stands for `python:3.12-slim`."""
    path = tmp_path_factory.mktemp("image") / "base.tar"
    shutil.copyfile(Path(os.environ["ENGINES"], "base.tar"), path)
    with tarfile.open(path, "a") as tar:
        tar.add(os.environ["ENGINES_WHEELS"], "./wheels")
        python = tarfile.TarInfo("./usr/bin/python")
        python.type, python.linkname = tarfile.SYMTYPE, "python3"
        tar.addfile(python)
    return path


# In Debian's Python pip wants to be told that it may install; python:slim's need not be.
IMPORT = [
    "--change=ENV PIP_NO_INDEX=1",
    "--change=ENV PIP_FIND_LINKS=/wheels",
    "--change=ENV PIP_BREAK_SYSTEM_PACKAGES=1",
]


def start_docker(node: Node, base: Path) -> None:
    """Start the engine on a node, and give it the base image."""
    node.daemon("dockerd", log="dockerd")
    eventually(lambda: node.status_of("docker", "info") == 0)
    command = node.command("docker", "import", *IMPORT, "-", "base")
    with base.open("rb") as tar:
        subprocess.run(command, stdin=tar, stdout=subprocess.DEVNULL, check=True)


@pytest.fixture(scope="session")
def docker(base: Path) -> Iterator[Node]:
    """A node with a Docker engine."""
    need("sbin/dockerd")
    with Node("docker", 1) as node:
        start_docker(node, base)
        yield node


@pytest.fixture(scope="session")
def build() -> Callable[[Node], None]:
    """Build the image `site` on a node, as the documentation says it."""

    def one(node: Node) -> None:
        for name, text in (
            ("Dockerfile", dockerfile()),
            ("requirements.txt", REQUIREMENTS),
            ("web.py", WEB),
            ("crash.py", CRASH),
        ):
            node.write(f"/srv/site/{name}", text)
        builder = "docker" if node.status_of("docker", "info") == 0 else "podman"
        node.run(builder, "build", "--build-arg=BASE=base", "--tag=site", "/srv/site")

    return one


@pytest.fixture(scope="session")
def under_up(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return what `daemonkit up` tells of an app that crashes until it is given up."""
    folder = tmp_path_factory.mktemp("up")
    (folder / "crash.py").write_text(CRASH)
    (folder / "daemonkit.toml").write_text(CRASHING.format(folder=folder))
    daemonkit("up", folder=folder, check=False)
    eventually(lambda: '"failed"' in daemonkit("status", "crash", "--json", folder=folder, check=False))
    log = daemonkit("logs", "crash", "-n", "1000", folder=folder)
    daemonkit("down", folder=folder, check=False)
    assert [line for line in told(log) if "restarts" in line], log
    return told(log)


@pytest.fixture(scope="session")
def cluster() -> Iterator[tuple[Node, dict[str, Node]]]:
    """A Slurm controller, and two nodes by their names."""
    need("sbin/slurmctld", "sbin/slurmd", "sbin/munged")
    with running_cluster() as nodes:
        yield nodes
