"""What `daemonkit unit --for compose` prints, on a Swarm of two nodes."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest
from apps import TWO_INSTANCES, manifest
from conftest import start_docker
from nodes import Node, eventually, programs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

VERSION = 'version: "3.9"\n'
"""Debian's client asks for it; later ones ignore it."""


@pytest.fixture
def swarm(docker: Node, build: Callable[[Node], None], base: Path, tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    """A manager and a worker, with the stack deployed."""
    build(docker)
    with Node("worker", 2) as worker:
        start_docker(worker, base)
        build(worker)
        docker.run("docker", "swarm", "init", f"--advertise-addr={docker.address}")
        token = docker.run("docker", "swarm", "join-token", "-q", "worker")
        worker.run("docker", "swarm", "join", f"--token={token}", f"{docker.address}:2377")
        text = manifest(tmp_path, TWO_INSTANCES, "compose")
        docker.write("/srv/swarm/compose.yaml", VERSION + text)
        deploy = ["docker", "stack", "deploy", "--resolve-image=never", "-c", "compose.yaml", "site"]
        docker.run(*deploy, cwd="/srv/swarm")
        yield docker, worker
        docker.run("docker", "stack", "rm", "site")
        docker.run("docker", "swarm", "leave", "--force")


def test_a_lost_node_s_replica_comes_up_elsewhere(swarm: tuple[Node, Node], seen: Callable[[str], None]) -> None:
    manager, worker = swarm
    seconds = eventually(lambda: (len(programs(manager)), len(programs(worker))) == (1, 1), 120)
    seen(f"swarm: a replica on each node {seconds:.1f} s after docker stack deploy")
    eventually(lambda: _numbers(manager) == ["1", "2"])
    begun = time.monotonic()
    worker.kill()
    eventually(lambda: len(programs(manager)) == 2, 120)
    seen(f"swarm: node killed; its replica runs on the other after {time.monotonic() - begun:.1f} s")
    eventually(lambda: manager.run("docker", "service", "ls", "--format={{.Replicas}}") == "2/2", 120)
    seen(f"swarm: ... and counts as running (2/2) after {time.monotonic() - begun:.1f} s")
    assert len(programs(manager)) == 2


def _numbers(manager: Node) -> list[str]:
    """Return the numbers that the replicas say they have."""
    logs = manager.run("docker", "service", "logs", "--raw", "site_web")
    return sorted(re.findall(r"^instance (\d+) on", logs, re.MULTILINE))
