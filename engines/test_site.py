"""examples/site, by the manifests that are printed for it."""

from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING

from apps import ROOT, daemonkit, dockerfile
from nodes import eventually, programs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nodes import Node

SITE = ROOT / "examples/site"
ASK = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"
APPS = {"python store.py": 1, "python web.py": 2, "python scheduler.py": 1}


def _put(node: Node) -> None:
    """Lay the site down where its manifests look for it."""
    for file in SITE.iterdir():
        if file.is_file():
            node.write(f"/srv/site/{file.name}", file.read_text())


def _printed(engine: str, tmp_path: Path) -> str:
    return daemonkit("unit", "-f", str(SITE / "cluster.toml"), "--for", engine, "--image", "site:1", folder=tmp_path)


def _page(node: Node, port: int) -> str:
    return node.run("python3", "-c", ASK, f"http://127.0.0.1:{port}/", check=False)


def _running(nodes: list[Node]) -> dict[str, int]:
    return {words: sum(len(programs(node, words)) for node in nodes) for words in APPS}


def test_the_site_on_compose(docker: Node, tmp_path: Path, seen: Callable[[str], None]) -> None:
    _put(docker)
    docker.write("/srv/site/Dockerfile", dockerfile())
    docker.write("/srv/site/requirements.txt", "daemonkit\n")
    docker.run("docker", "build", "--build-arg=BASE=base", "--tag=site:1", "/srv/site")
    docker.write("/srv/site/compose.yaml", _printed("compose", tmp_path))
    begun = time.monotonic()
    docker.run("docker-compose", "up", "-d", cwd="/srv/site")
    eventually(lambda: all("visitor" in _page(docker, port) for port in (8000, 8001)))
    seen(f"site on compose: both web replicas answer {time.monotonic() - begun:.1f} s after docker-compose up")
    assert _running([docker]) == APPS
    (store,) = docker.run("docker", "ps", "-q", "--filter=label=com.docker.compose.service=store").split()
    docker.run("docker", "exec", store, "pkill", "-KILL", "-f", "^python store.py")
    eventually(lambda: "visitor" in _page(docker, 8000))
    assert docker.run("docker", "inspect", "--format={{.RestartCount}}", store) == "0"  # daemonkit did it
    ids = docker.run("docker", "ps", "-q").split()
    begun = time.monotonic()
    docker.run("docker-compose", "stop", cwd="/srv/site")
    seconds = time.monotonic() - begun
    statuses = docker.run("docker", "inspect", "--format={{.State.ExitCode}}", *ids).split()
    docker.run("docker-compose", "down", cwd="/srv/site")
    assert set(statuses) == {"0"}
    seen(f"site on compose: {len(ids)} containers stopped in {seconds:.1f} s, all with status 0")


def test_the_site_on_slurm(cluster: tuple[Node, dict[str, Node]], tmp_path: Path, seen: Callable[[str], None]) -> None:
    control, nodes = cluster
    for node in (control, *nodes.values()):
        _put(node)
    # As printed, but for the Python and the PATH of the machine where it was printed.
    script = _printed("slurm", tmp_path).replace(sys.executable, "/usr/bin/python3")
    script = re.sub(r"^export PATH=.*", "export PATH=/usr/local/bin:/usr/bin:/bin", script, flags=re.MULTILINE)
    control.write("/srv/site/slurm.sh", script)
    begun = time.monotonic()
    control.run("sh", "slurm.sh", cwd="/srv/site")

    def places() -> dict[str, str]:
        return dict(line.split() for line in control.run("squeue", "-h", "-t", "R", "-o", "%j %N").splitlines())

    eventually(lambda: "store" in places())
    for node in nodes.values():  # a cluster has no names for jobs: who looks for one asks squeue
        hosts = re.sub(r".* store\n", "", node.read("/etc/hosts"))
        node.write("/etc/hosts", f"{hosts}{nodes[places()['store']].address} store\n")
    eventually(lambda: len(places()) == 3 and "visitor" in _page(nodes[places()["web"]], 8000))
    seen(f"site on slurm: the page answers {time.monotonic() - begun:.1f} s after the script was run")
    assert _running([*nodes.values()]) == APPS
    store = nodes[places()["store"]]
    begun = time.monotonic()
    control.run("scancel", "--batch", "--signal=TERM", "--user=root")
    eventually(lambda: not control.run("squeue", "-h"))
    assert any("values are kept" in file.read_text() for file in store.path("/srv/site").glob("slurm-*.out"))
    seen(f"site on slurm: three jobs stopped in {time.monotonic() - begun:.1f} s")
