"""Type a session in a copy of examples/site, and write what the terminal shows as pictures/site.svg: `make picture`.

What differs from one time to the next (pids, seconds, memory, the folder) is written as one and the same, so that the
picture changes only when what is shown does.
"""

from __future__ import annotations

import io
import os
import pty
import re
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
PICTURE = HERE / "pictures" / "site.svg"
SESSION = [
    "cat daemonkit.toml",
    "daemonkit up",
    "curl http://127.0.0.1:8000/",
    "sed -i 's/instances = 2/instances = 4/' daemonkit.toml",
    "daemonkit up",
    "daemonkit ls",
    "daemonkit logs scheduler -n 2",
    "daemonkit down",
]
SAME = [
    (r"\x1b\[\d*[AJK]|\r", ""),
    (r"pid \d+", "pid 4242"),
    (r"(?<=\d/\d  )\d+ +", "4242  "),
    (r"PID +", "PID   "),
    (r"\d+ s ", "2 s "),
    (r"\d+\.\d % +", "0.1 %  "),
    (r"CPU +", "CPU    "),
    (r"\d+\.\d MiB", "20.0 MiB"),
    (r"tick \d+", "tick 7"),
    (r"/[\w/-]+(?=/daemonkit\.toml)", "/srv/site"),
]


def typed(command: str, folder: Path) -> str:
    """Return what a terminal shows of a command."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        variables = {"PATH": path, "DAEMONKIT_HOME": f"{folder}/home", "TERM": "xterm", "HOME": str(folder)}
        os.execvpe("sh", ["sh", "-c", command], os.environ | variables)
    shown = io.BytesIO()
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # EIO: everybody has closed it
            break
        shown.write(part)
    os.close(terminal)
    os.waitpid(pid, 0)
    return shown.getvalue().decode()


def last_lines(text: str) -> str:
    """Return what is left on the screen: the lines of progress are gone."""
    return re.sub(r"(?:[^\n]*: (?:is starting|is changing|is stopping|is looked at|waits)[^\n]*\n)+", "", text)


def main() -> None:
    """Record the session."""
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "site"
        shutil.copytree(HERE.parent / "examples" / "site", folder)
        try:
            for command in SESSION:
                shown = typed(command, folder).replace("\r\n", "\n")
                for pattern, same in SAME:
                    shown = re.sub(pattern, same, shown)
                console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
                console.print(Text.from_ansi(last_lines(shown).rstrip("\n")))
        finally:
            typed("daemonkit delete --all", folder)
    console.save_svg(str(PICTURE), title="daemonkit up", unique_id="site")


if __name__ == "__main__":
    main()
