"""Machines on this one: each with a process 1, a network, a host name, control groups and a file system of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
CGROUPS = Path("/sys/fs/cgroup")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PATIENCE = 120.0  # seconds; guards against a hang and says nothing about speed


def eventually(look: Callable[[], object], patience: float = PATIENCE) -> float:
    """Look until what is seen is true; return the seconds until then."""
    begun = time.monotonic()
    while not (seen := look()):
        assert time.monotonic() - begun < patience, f"not within {patience} s: {seen!r}"
        time.sleep(0.05)  # noqa: TID251 - what is looked at has no event to wait for
    return time.monotonic() - begun


class Node:
    """A machine of the network 10.99.0.0/24, which has no way out. `kill` is a power failure."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.address = f"10.99.0.{number}"
        self.link = f"node{number}"
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        cache = os.environ["ENGINES"]
        spaces = ["--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child"]
        program = ["unshare", *spaces, "sh", str(HERE / "node.sh"), cache, self.name]
        self._unshare = subprocess.Popen(
            program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=self._enter_groups
        )
        with self._unshare.stdout as output:
            said = output.readline()
            assert said == "up\n", f"{self.name} does not come up: {said}{output.read()}"
        self.pid = int(Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text())
        self._connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _enter_groups(self) -> None:
        """Take what the node starts into control groups that can be found and removed afterwards."""
        for top in _hierarchies():
            group = top / os.environ["ENGINES_GROUP"] / self.name
            group.mkdir(parents=True, exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):  # in version 1 a new one has none, and takes no process
                if (top / name).exists() and not (top / "cgroup.controllers").exists():
                    for folder in (group.parent, group):
                        (folder / name).write_text((top / name).read_text())
            (group / "cgroup.procs").write_text(str(os.getpid()))

    def _connect(self) -> None:
        if subprocess.run(["ip", "link", "show", "nodes"], capture_output=True, check=False).returncode:
            _ip("link add nodes type bridge")
            _ip("link set nodes up")
            _ip("addr add 10.99.0.254/24 dev nodes")
        _ip(f"link add {self.link} type veth peer name eth0 netns {self.pid}")
        _ip(f"link set {self.link} master nodes up")
        self.run("ip", "addr", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")
        self.run("ip", "route", "add", "default", "via", "10.99.0.254")  # engines ask for one, and reach nothing by it

    def command(self, *words: str, **environment: str) -> list[str]:
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup"]
        variables = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", **environment}
        return [*enter, "env", "-i", *(f"{name}={value}" for name, value in variables.items()), *words]

    def run(self, *words: str, cwd: str = "/", check: bool = True) -> str:
        """Run a program on the node; return what it prints."""
        command = self.command("sh", "-c", 'cd "$0" && exec "$@"', cwd, *words)
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise AssertionError(f"{self.name}: {words} failed with {done.returncode}: {done.stderr or done.stdout}")
        return done.stdout.strip()

    def status_of(self, *words: str) -> int:
        """Run a program on the node; return its exit status."""
        return subprocess.call(
            self.command(*words), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def daemon(self, *words: str, log: str) -> subprocess.Popen[bytes]:
        """Start a program that runs as long as the node does, its output in a file there."""
        with open(self.path(f"/var/log/{log}.log"), "ab") as file:
            started = subprocess.Popen(
                self.command(*words), stdin=subprocess.DEVNULL, stdout=file, stderr=file, preexec_fn=self._enter_groups
            )
        self._daemons.append(started)
        return started

    def path(self, path: str) -> Path:
        """Return the path, from here, of what has that path there."""
        return Path(f"/proc/{self.pid}/root{path}")

    def write(self, path: str, text: str) -> None:
        self.path(path).parent.mkdir(parents=True, exist_ok=True)
        self.path(path).write_text(text)

    def read(self, path: str) -> str:
        try:
            return self.path(path).read_text()
        except FileNotFoundError:
            return ""

    def kill(self) -> None:
        """End all of it at once: with process 1 the kernel kills every other."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._unshare.wait()
        for daemon in self._daemons:
            daemon.wait()
        self._daemons = []


def _hierarchies() -> list[Path]:
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    kinds = [line.split(":")[1].removeprefix("name=") for line in Path("/proc/self/cgroup").read_text().splitlines()]
    return [CGROUPS / kind for kind in kinds if kind]


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


def programs(node: Node, words: str = "python web.py") -> list[int]:
    """Return the pids, as they are called here, of the programs that run on a node."""
    return [pid for pid in _pids_of(node) if _read(f"/proc/{pid}/cmdline").replace("\0", " ").strip() == words]


def process_1(node: Node, container: str) -> int:
    """Return process 1 of a container, as it is called here."""
    inside = node.run("docker", "inspect", "--format={{.State.Pid}}", container)
    here = re.compile(rf"^NSpid:.*\t{inside}\t1$", re.MULTILINE)
    (pid,) = [pid for pid in _pids_of(node) if here.search(_read(f"/proc/{pid}/status"))]
    return pid


def _pids_of(node: Node) -> list[int]:
    """Return all of a node's processes, its containers' too: they are below its control groups."""
    group = f"/{os.environ['ENGINES_GROUP']}/{node.name}"
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [
        pid
        for pid in pids
        if any(line.endswith(group) or f"{group}/" in line for line in _read(f"/proc/{pid}/cgroup").splitlines())
    ]


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
