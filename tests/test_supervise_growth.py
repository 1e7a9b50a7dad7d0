"""What a supervisor does for one instance must not grow with the number of the others."""

from __future__ import annotations

import os
import signal
import struct
from typing import TYPE_CHECKING

import pytest
from supervising import Supervisor, supervising

if TYPE_CHECKING:
    from pathlib import Path

CRASHES = 5

# Both processes count the calls of Python functions in a file that they share.
COUNTED = """
import mmap, struct, sys
file = open("calls", "w+b")
file.truncate(8)
calls = mmap.mmap(file.fileno(), 8)
def count(frame, event, argument):
    if event == "call":
        calls[:8] = struct.pack("q", struct.unpack("q", calls[:8])[0] + 1)
def supervise_counted(*args, **options):
    sys.setprofile(count)
    supervise(*args, **options)
"""


@pytest.mark.parametrize("action", ["crash", "reload"])
def test_what_is_done_for_an_instance_does_not_grow_with_their_number(tmp_path: Path, action: str) -> None:
    few, many = (_calls(tmp_path / str(count), action, count) for count in (5, 100))
    assert many < 1.3 * few, f"{few} calls each for 5 instances, {many} each for 100"


def _calls(folder: Path, action: str, count: int) -> float:
    """Return how many Python functions are called for one instance."""
    folder.mkdir()
    options = f"instances={count}, min_uptime=0.02, steady_after=0.01, stdout='log.{{instance}}'"
    with supervising(folder, COUNTED + f"supervise_counted(['sleep', '1000'], {options})") as supervisor:
        ready = supervisor.until("ready", count)
        before = _counted(folder)
        times = CRASHES if action == "crash" else count
        if action == "crash":
            for number, event in enumerate(ready[:CRASHES], 1):
                os.kill(event["pid"], signal.SIGKILL)
                _wait(supervisor, count + number)
        else:
            supervisor.process.send_signal(signal.SIGHUP)
            _wait(supervisor, 2 * count)
            supervisor.until("exit", count)
        return (_counted(folder) - before) / times


def _wait(supervisor: Supervisor, count: int) -> None:
    supervisor.until("ready", count)


def _counted(folder: Path) -> int:
    return int(struct.unpack("q", (folder / "calls").read_bytes())[0])
