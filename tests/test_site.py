"""`examples/site`: a store, a web page on two workers and a scheduler, typed as its README says."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import threading
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import eventually
from shell import Shell

if TYPE_CHECKING:
    from collections.abc import Iterator

SITE = Path(__file__).parent.parent / "examples" / "site"


class Site(Shell):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        shutil.copytree(SITE, folder, dirs_exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
        self.edit("daemonkit.toml", "8000", str(self.port))
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{self.environment['PATH']}"

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert old in text
        (self.folder / name).write_text(text.replace(old, new))

    def page(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=10) as answer:
            return str(answer.read().decode())


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site("delete", "--all", status=None)


def test_the_site_comes_up_changes_and_goes_down_as_its_file_says(site: Site) -> None:
    lines = site("up").stdout.splitlines()
    assert lines[0].startswith("store: started") and len(lines) == 3
    assert site.page().startswith("hello, visitor 1; tick ")
    eventually(lambda: "tick 1" in site("logs", "scheduler").stdout)
    store = site.report("store")["pid"]
    site.edit("daemonkit.toml", "instances = 2", "instances = 4")
    assert sum("as it should be" in line for line in site("up").stdout.splitlines()) == 2
    assert site.report("web")["up"] == 4
    assert site.report("store")["pid"] == store
    assert site.page().startswith("hello, visitor 2; tick ")
    assert [line.partition(":")[0] for line in site("down").stdout.splitlines()][-1] == "store"
    assert json.loads((site.folder / "store.json").read_text())["visitors"] == "2"
    site("up")
    assert site.page().startswith("hello, visitor 3; tick ")


def test_no_request_fails_while_a_changed_file_is_rolled_in(site: Site) -> None:
    site("up")
    pid, asked, failed, over = site.report("web")["pid"], 0, [], threading.Event()

    def ask() -> None:
        nonlocal asked
        while not over.is_set():
            asked += 1
            try:
                site.page()
            except OSError as error:
                failed.append(error)

    visitor = threading.Thread(target=ask)
    visitor.start()
    try:
        for old, new in (("instances = 2", "instances = 6"), ("instances = 6", "instances = 3")):
            site.edit("daemonkit.toml", old, new)
            assert any(line.startswith("web: reloaded (instances)") for line in site("up").stdout.splitlines())
        site.edit(".env", "hello", "welcome")
        assert any(line.startswith("web: reloaded (env)") for line in site("up").stdout.splitlines())
    finally:
        over.set()
        visitor.join()
    assert failed == [] and asked > 10
    assert (site.report("web")["pid"], site.report("web")["up"]) == (pid, 3)
    assert site.page().startswith("welcome, visitor ")


def test_the_site_for_several_machines_asks_its_store_over_the_network(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        store = server.getsockname()[1]
    site.edit("cluster.toml", "/srv/site", str(site.folder))
    site.edit("cluster.toml", "0.0.0.0:8000", f"127.0.0.1:{site.port}")
    site.edit("cluster.toml", "0.0.0.0:6400", f"127.0.0.1:{store}")
    site.edit("cluster.env", "store:6400", f"127.0.0.1:{store}")
    assert len(site("up", "-f", "cluster.toml").stdout.splitlines()) == 3
    assert site.page().startswith("hello, visitor 1; tick ")
    site("restart", "store")
    assert site.page().startswith("hello, visitor 2; tick ")


@pytest.mark.parametrize("name", ["compose.yaml", "kubernetes.yaml", "nomad.json", "slurm.sh"])
def test_the_manifests_beside_the_site_are_what_is_printed(tmp_path: Path, name: str) -> None:
    shell, engine = Shell(tmp_path), name.partition(".")[0]
    image = [] if engine == "slurm" else ["--image", "site:1"]
    environment = {**shell.environment, "PATH": "/srv/venv/bin:/usr/bin:/bin"}
    printed = shell("unit", "-f", SITE / "cluster.toml", "--for", engine, *image, env=environment).stdout
    assert printed.replace(sys.executable, "/srv/venv/bin/python") == (SITE / name).read_text()
