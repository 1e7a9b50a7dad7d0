"""What `daemonkit unit --for kubernetes` prints, by `podman kube play`."""

from __future__ import annotations

import json
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from apps import CRASHING, manifest, told
from conftest import IMPORT, need
from nodes import Node, eventually, programs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

APP = """
[apps.web]
command = "python web.py"
cwd = "/srv/site"
wait_ready = true
stop_timeout = 5
restart = "always"
"""
NETAVARK = '[network]\nnetwork_backend = "netavark"\n'


@pytest.fixture(scope="module")
def podman(base: Path, build: Callable[[Node], None]) -> Iterator[Node]:
    """A node with podman, which needs no engine of its own, and the image."""
    need("bin/podman")
    with Node("podman", 21) as node:
        node.write("/etc/containers/containers.conf", NETAVARK)
        with base.open("rb") as tar:
            subprocess.run(
                node.command("podman", "import", "-q", *IMPORT, "-", "base"),
                stdin=tar,
                stdout=subprocess.DEVNULL,
                check=True,
            )
        build(node)
        yield node


@pytest.fixture
def play(podman: Node, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Play what `daemonkit unit` prints for an app file; return the container's name."""

    def one(app_file: str) -> str:
        podman.write("/srv/up/site.yaml", manifest(tmp_path, app_file, "kubernetes", "localhost/site"))
        podman.run("podman", "kube", "play", "/srv/up/site.yaml")
        (name,) = [one["Names"][0] for one in _containers(podman)]
        return name

    yield one
    podman.run("podman", "kube", "down", "/srv/up/site.yaml", check=False)
    podman.run("podman", "volume", "prune", "-f")


def _containers(node: Node) -> list[dict]:
    return [one for one in json.loads(node.run("podman", "ps", "-a", "--format=json")) if "site" in one["Image"]]


def _inspect(node: Node, container: str) -> dict:
    return json.loads(node.run("podman", "inspect", container))[0]


def _log(node: Node, container: str) -> str:
    return node.run("sh", "-c", 'podman logs "$0" 2>&1', container)


def test_it_comes_up_and_its_probe_says_so(podman, play, seen) -> None:
    begun = time.monotonic()
    name = play(APP)
    eventually(lambda: podman.status_of("podman", "exec", name, "daemonkit", "status", "web") == 0)
    seen(f"podman kube play: up {time.monotonic() - begun:.1f} s after it was typed")
    assert podman.run("podman", "exec", name, "cat", "/proc/1/cmdline").strip("\0") == "daemonkit: web"
    assert podman.status_of("podman", "healthcheck", "run", name) == 0  # the livenessProbe


def test_it_stops_within_the_grace_period(podman, play, seen) -> None:
    name = play(APP)
    eventually(lambda: "up" in _log(podman, name).splitlines())
    assert _inspect(podman, name)["Config"]["StopTimeout"] == 10  # stop_timeout and 5 s for the supervisor
    begun = time.monotonic()
    podman.run("podman", "stop", name)
    seen(f"podman stop: {time.monotonic() - begun:.2f} s of the 10 s that the manifest grants, status 0")
    assert _inspect(podman, name)["State"]["ExitCode"] == 0
    assert "bye" in _log(podman, name).splitlines()


def test_a_killed_process_1_is_started_again_once(podman, play, seen) -> None:
    name = play(APP)
    eventually(lambda: len(programs(podman)) == 1)
    before = programs(podman)
    begun = time.monotonic()
    podman.run("kill", "-9", str(_inspect(podman, name)["State"]["Pid"]))
    eventually(lambda: len(programs(podman)) == 1 and programs(podman) != before)
    seen(f"podman: a killed process 1 is up again after {time.monotonic() - begun:.1f} s")
    assert _inspect(podman, name)["RestartCount"] == 1


def test_crashes_and_delays_are_those_of_daemonkit_up(podman, play, under_up, seen) -> None:
    name = play(CRASHING.format(folder="/srv/site"))
    eventually(lambda: told(_log(podman, name))[: len(under_up)] == under_up)
    eventually(lambda: _inspect(podman, name)["RestartCount"] >= 1)
    seen("podman: given up after the restarts of daemonkit up, then started anew by podman, without an end")
