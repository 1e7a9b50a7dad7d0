"""The Dockerfile of docs/howto/container.md, built and run by a real engine."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
from nodes import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nodes import Node


@pytest.fixture(scope="module")
def image(docker: Node, build: Callable[[Node], None]) -> Node:
    build(docker)
    return docker


@pytest.fixture
def run(image: Node) -> Iterator[Callable[..., str]]:
    """Run the image in the background; return the container's id."""
    started: list[str] = []

    def start(*options: str, command: tuple[str, ...] = ()) -> str:
        started.append(image.run("docker", "run", "-d", *options, "site", *command))
        return started[-1]

    yield start
    image.run("docker", "rm", "-f", *started)


def _inspect(node: Node, container: str) -> dict:
    return json.loads(node.run("docker", "inspect", container))[0]["State"]


def _is_healthy(node: Node, container: str) -> bool:
    return _inspect(node, container)["Health"]["Status"] == "healthy"


def test_daemonkit_is_process_1_and_its_status_the_healthcheck(image, run, seen) -> None:
    container = run()
    seconds = eventually(lambda: _is_healthy(image, container))
    assert image.run("docker", "exec", container, "cat", "/proc/1/cmdline").strip("\0") == "daemonkit: web"
    assert image.run("docker", "exec", container, "daemonkit", "status", "web", "--json").count('"running"') >= 1
    seen(f"docker: healthy {seconds:.1f} s after docker run returned")


def test_a_program_that_does_not_come_up_is_unhealthy(image, run) -> None:
    container = run("--health-interval=0.5s", "--health-retries=2", "--health-start-period=1ms", "-e", "CRASH=1")
    eventually(lambda: _inspect(image, container)["Health"]["Status"] == "unhealthy")
    assert _inspect(image, container)["Running"]
    assert _inspect(image, container)["Health"]["Log"][-1]["ExitCode"] == 4


def test_zombies_are_reaped_whoever_left_them(image, run) -> None:
    container = run("-e", "ORPHANS=20")
    eventually(lambda: "20 orphans" in image.run("docker", "logs", container))
    image.run("docker", "exec", container, "sh", "-c", "for i in 1 2 3 4 5; do (sleep 0.1; exit 3) & done")

    def processes() -> list[str]:
        return image.run("docker", "exec", container, "ps", "-eo", "stat=,args=").splitlines()

    eventually(lambda: not any("sleep" in line or line.startswith("Z") for line in processes()))


def test_docker_stop_is_clean_and_quick(image, run, seen) -> None:
    container = run()
    eventually(lambda: "up" in image.run("docker", "logs", container))
    begun = time.monotonic()
    image.run("docker", "stop", container)
    seconds = time.monotonic() - begun
    state = _inspect(image, container)
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
    assert "bye" in image.run("docker", "logs", container).splitlines()
    seen(f"docker stop: {seconds:.2f} s of the 10 s that it grants, status 0")


def test_what_the_program_needs_longer_for_is_granted_by_both(image, run, seen) -> None:
    container = run(
        "-e", "SLOW=3", command=("daemonkit", "run", "web", "-i", "1", "--stop-timeout=8", "--", "python", "web.py")
    )
    eventually(lambda: "up" in image.run("docker", "logs", container))
    begun = time.monotonic()
    image.run("docker", "stop", container)
    seconds = time.monotonic() - begun
    assert _inspect(image, container)["ExitCode"] == 0
    assert "bye" in image.run("docker", "logs", container).splitlines()
    seen(f"docker stop of a program that takes 3 s to end: {seconds:.2f} s, status 0")


def test_a_container_that_was_killed_starts_again_with_the_same_file_system(image, run) -> None:
    container = run()
    for times in (1, 2):
        eventually(lambda times=times: image.run("docker", "logs", container).splitlines().count("up") == times)
        image.run("docker", "kill", container)
        assert _inspect(image, container)["ExitCode"] == 137
        image.run("docker", "start", container)


def test_a_read_only_root_and_an_ordinary_user_will_do(image, run) -> None:
    container = run("--read-only", "--tmpfs=/tmp", "--user=1000:1000", "--cap-drop=ALL")
    eventually(lambda: _is_healthy(image, container))
    assert image.run("docker", "exec", container, "ps", "-o", "user=", "-p", "1").strip() == "1000"
