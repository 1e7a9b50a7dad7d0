"""The programs that the engines run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def dockerfile() -> str:
    """Return the Dockerfile of the documentation."""
    found = re.search(
        r"^```dockerfile\n(.*?)^```$", (ROOT / "docs/howto/container.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert found
    return found[1]


REQUIREMENTS = "daemonkit\n"

WEB = """
import os, signal, socket, subprocess, sys, time

host, number = socket.gethostname(), os.environ.get("DAEMONKIT_INSTANCE")

def bye(*_):
    time.sleep(float(os.environ.get("SLOW", "0")))
    print("bye", flush=True)
    sys.exit(0)

signal.signal(signal.SIGTERM, bye)
if "CRASH" in os.environ:
    sys.exit(7)
orphans = int(os.environ.get("ORPHANS", "0"))
for _ in range(orphans):
    subprocess.run(["sh", "-c", "(sleep 0.1; exit 3) & exit 0"], start_new_session=True)
if orphans:
    print(orphans, "orphans")
print("up", flush=True)  # before the old run is stopped for this one
if address := os.environ.get("NOTIFY_SOCKET"):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(b"READY=1", address.replace("@", "\\0", 1))
print("instance", number, "on", host, flush=True)
while True:
    signal.pause()
"""
TWO_INSTANCES = """
[apps.web]
command = "python web.py"
cwd = "/srv/site"
instances = 2
wait_ready = true
stop_timeout = 5
restart = "always"
"""

CRASH = """
import sys, time

time.sleep(0.5)
sys.exit(3)
"""
CRASHING = """
[apps.crash]
command = "python {folder}/crash.py"
cwd = "{folder}"
min_uptime = 0.1
max_restarts = 4
"""


def told(log: str) -> list[str]:
    """Return what daemonkit's log says of starts, ends and delays, without pids and times."""
    lines = re.findall(r"instance 0 \(pid \d+\) (.*)", log)
    return [re.sub(r" after [\d.]+ s", "", line) for line in lines]


def daemonkit(*words: str, folder: Path, check: bool = True) -> str:
    """Run the command on this machine, with a home of its own; return what it prints."""
    command = [sys.executable, "-m", "daemonkit", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DAEMONKIT_HOME": str(folder / "home")}
    return subprocess.run(command, cwd=folder, env=environment, check=check, stdout=subprocess.PIPE, text=True).stdout


def manifest(folder: Path, app_file: str, engine: str, image: str = "site") -> str:
    """Return what `daemonkit unit` prints for an app file."""
    (folder / "daemonkit.toml").write_text(app_file)
    return daemonkit("unit", "-f", "daemonkit.toml", "--for", engine, "--image", image, folder=folder)
