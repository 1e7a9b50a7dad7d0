"""What `daemonkit unit --for compose` prints, on Docker Compose and on Swarm."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
from apps import CRASHING, TWO_INSTANCES, manifest, told
from nodes import Node, eventually, process_1, programs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def compose(docker: Node, build: Callable[[Node], None], tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Bring up what `daemonkit unit` prints for an app file."""
    build(docker)

    def up(app_file: str) -> None:
        docker.write("/srv/up/compose.yaml", manifest(tmp_path, app_file, "compose"))
        docker.run("docker-compose", "up", "-d", cwd="/srv/up")

    yield up
    docker.run("docker-compose", "down", cwd="/srv/up")


def _containers(node: Node) -> dict[str, dict]:
    ids = node.run("docker", "ps", "-aq", "--filter=label=com.docker.compose.project=up").split()
    return {one["Id"]: one for one in json.loads(node.run("docker", "inspect", *ids))} if ids else {}


def _healthy(node: Node) -> list[str]:
    return [key for key, one in _containers(node).items() if one["State"].get("Health", {}).get("Status") == "healthy"]


def test_a_killed_process_1_is_restarted_once(docker, compose, seen) -> None:
    compose(TWO_INSTANCES)
    seconds = eventually(lambda: len(_healthy(docker)) == 2)
    seen(f"compose: both replicas healthy {seconds:.1f} s after docker-compose up")
    victim = _healthy(docker)[0]
    before = programs(docker)
    assert len(before) == 2
    begun = time.monotonic()
    os.kill(process_1(docker, victim), signal.SIGKILL)
    eventually(
        lambda: _containers(docker)[victim]["RestartCount"] == 1 and _containers(docker)[victim]["State"]["Running"]
    )
    eventually(lambda: len(programs(docker)) == 2 and set(programs(docker)) != set(before))
    seen(f"compose: the killed replica's program runs again after {time.monotonic() - begun:.1f} s")
    eventually(lambda: len(_healthy(docker)) == 2)
    assert sorted(one["RestartCount"] for one in _containers(docker).values()) == [0, 1]
    assert len(programs(docker)) == 2


def test_crashes_and_delays_are_those_of_daemonkit_up(docker, compose, under_up, seen) -> None:
    compose(CRASHING.format(folder="/srv/site"))
    (container,) = _containers(docker)

    def seen_by_docker() -> list[str]:
        return told(docker.run("sh", "-c", 'docker logs "$0" 2>&1', container))

    eventually(lambda: seen_by_docker()[: len(under_up)] == under_up)
    eventually(lambda: _containers(docker)[container]["RestartCount"] >= 1)
    seen("compose: given up after the restarts of daemonkit up, then started anew by Docker, without an end")


def test_a_reload_is_made_inside(docker, compose) -> None:
    compose(TWO_INSTANCES)
    eventually(lambda: len(_healthy(docker)) == 2)
    before = set(programs(docker))
    for container in _containers(docker):
        docker.run("docker", "exec", container, "daemonkit", "reload", "web")
    eventually(lambda: len(set(programs(docker)) - before) == 2)
    assert [one["RestartCount"] for one in _containers(docker).values()] == [0, 0]


ENDS = """
[defaults]
cwd = "/srv/site"

[apps.done]
command = ["sleep", "1.5"]

[apps.broken]
command = ["sh", "-c", "sleep 1.5; exit 3"]
restart = "never"
"""


def test_an_app_that_ends_ends_its_container_with_0_or_1(docker, compose) -> None:
    compose(ENDS)
    eventually(lambda: not any(one["State"]["Running"] for one in _containers(docker).values()))
    ends = {one["Config"]["Labels"]["com.docker.compose.service"]: one for one in _containers(docker).values()}
    assert {name: (one["State"]["ExitCode"], one["RestartCount"]) for name, one in ends.items()} == {
        "done": (0, 0),
        "broken": (1, 0),
    }
