"""Somebody who types `daemonkit` commands, with a home for apps of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from harness import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

COMMAND = [sys.executable, "-m", "daemonkit"]
FIELDS = [
    "name",
    "state",
    "up",
    "wanted",
    "pid",
    "restarts",
    "uptime",
    "cpu",
    "memory",
    "command",
    "cwd",
    "logs",
    "instances",
]
QUICK = ["--min-uptime", "0.05"]
"""An app counts as up soon."""


class Shell:
    """Somebody with a home for apps of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.environment = {**os.environ, "DAEMONKIT_HOME": str(self.home)}

    def __call__(self, *arguments: object, status: int | None = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        """Type a command."""
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            **{"cwd": self.folder, "env": self.environment, "stdin": subprocess.DEVNULL, **options},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert status is None or done.returncode == status, (done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stdout + done.stderr
        return done

    def start(self, name: str, *options: object, command: tuple[object, ...] = ("sleep", "1000"), **more: Any) -> None:
        self("start", name, *QUICK, *options, "--", *command, **more)

    def report(self, name: str) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self("status", name, "--json", status=None).stdout)
        return report

    def state(self, name: str) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.home / f"{name}.state").read_text())
        return state

    def instances(self, name: str) -> list[int]:
        return [pid for one in self.state(name)["instances"] for pid in one["up"]]


def one_line(text: str) -> str:
    """Return the only line, which is the command's own."""
    assert text.startswith("daemonkit: ") and text.count("\n") == 1, text
    return text
