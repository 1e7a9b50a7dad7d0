"""Type sessions in a terminal, and write what it shows as pictures: `make picture`.

What differs from one time to the next (pids, seconds, memory, the folder) is replaced by fixed values, so that a
picture changes only when its words do. A picture bears a mark of what it was made
from: with --if-changed, as `make docs` has it, only those are made anew whose
commands or programs have changed.
"""

from __future__ import annotations

import hashlib
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
SITE = HERE.parent / "examples" / "site"
WIDTH = 80
# A picture, the folder that its session is typed in, and the commands. One that begins with a space is not shown.
SESSIONS: list[tuple[str, Path, list[str]]] = [
    (
        "service",
        HERE / "pictures" / "service",
        [
            "python app.py start",
            "python app.py start",
            "kill -9 $(cat app.pid)",
            "python app.py status",
            "python app.py start",
            "python app.py stop",
            "rm settings.json",
            "python app.py start",
        ],
    ),
    (
        "site",
        SITE,
        [
            "cat daemonkit.toml",
            "daemonkit up",
            "curl http://127.0.0.1:8000/",
            "sed -i 's/instances = 2/instances = 4/' daemonkit.toml",
            "daemonkit up",
            "daemonkit logs scheduler -n 2",
            "daemonkit down",
        ],
    ),
    ("ls", SITE, [" daemonkit up", "daemonkit ls", "daemonkit status web"]),
    ("top", SITE, [" daemonkit up", "daemonkit top"]),
]
SAME = [
    (r"\x1b\[\d*[AJKH]|\x1b\[\?\d+[hl]|\r", ""),
    (r"PID +", "PID   "),
    (r"\d+ s ", "2 s "),
    (r"\d+\.\d % +", "0.1 %  "),
    (r"CPU +", "CPU    "),
    (r"\d+\.\d MiB", "20.0 MiB"),
    (r"tick \d+", "tick 7"),
    (r"/[\w./-]+(?=/(?:daemonkit\.toml|home/|settings\.json))", "/srv/site"),
    (r"(directory  +)/\S+", r"\1/srv/site"),
]
PID = re.compile(
    r"(?m)((?:pid |process |\d/\d  |^(?:\x1b\[[\d;]*m)*\d  ))(\d+)( {2}|(?! )) *"
)
TOP_IS_READ_FOR = 4  # seconds


def typed(command: str, folder: Path) -> str:
    """Return what a terminal shows of a command."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        variables = {
            "PATH": path,
            "DAEMONKIT_HOME": f"{folder}/home",
            "TERM": "xterm",
            "HOME": str(folder),
        }
        if command == "daemonkit top":
            command = f"stty cols {WIDTH} rows 24; timeout --foreground -s INT {TOP_IS_READ_FOR} daemonkit top"
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
    return shown.getvalue().decode().replace("\r\n", "\n")


def last_lines(text: str, pids: dict[str, str]) -> str:
    """Return what is left on the screen: lines of progress and earlier screens are gone."""
    text = text.rsplit("\x1b[H", maxsplit=1)[-1]
    text = re.sub(
        r"[^\n]*: (?:is starting|is changing|is stopping|is looked at|waits)[^\n]*\n",
        "",
        text,
    )
    text = PID.sub(
        lambda found: (
            f"{found[1]}{pids.setdefault(found[2], str(4242 + 5 * len(pids)))}{found[3]}"
        ),
        text,
    )
    for pattern, same in SAME:
        text = re.sub(pattern, same, text)
    return text


def mark_of(source: Path, commands: list[str]) -> str:
    """Return the mark of what a picture is made from."""
    files = [
        *source.glob("*.py"),
        *source.glob("daemonkit.toml"),
        *source.glob("*.json"),
    ]
    content = [
        path.read_bytes() for path in sorted(files) if path.name != "nomad.json"
    ]
    made_from = repr((WIDTH, commands)).encode() + b"".join(content)
    return f"<!-- from {hashlib.sha256(made_from).hexdigest()[:16]} -->"


def has_changed(name: str, source: Path, commands: list[str]) -> bool:
    """Tell whether a picture was made from something else."""
    picture = HERE / "pictures" / f"{name}.svg"
    return (
        not picture.exists()
        or mark_of(source, commands) not in picture.read_text()
    )


def record(name: str, source: Path, commands: list[str]) -> None:
    """Type the commands in a copy of the folder, and write the picture."""
    pids: dict[str, str] = {}
    console = Console(
        record=True, width=WIDTH, file=io.StringIO(), force_terminal=True
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "site"
        shutil.copytree(source, folder)
        try:
            for command in commands:
                shown = last_lines(typed(command.strip(), folder), pids)
                if not command.startswith(" "):
                    console.print(
                        Text.assemble(("$ ", "bold green"), (command, "bold"))
                    )
                    console.print(
                        Text.from_ansi(shown.rstrip("\n")),
                        end="\n" if shown.strip() else "",
                    )
        finally:
            typed("daemonkit delete --all", folder)
    picture = HERE / "pictures" / f"{name}.svg"
    console.save_svg(
        str(picture),
        title=commands[-1].strip().removesuffix(" web"),
        unique_id=name,
    )
    picture.write_text(
        "\n".join(line.rstrip() for line in picture.read_text().splitlines())
        + f"\n{mark_of(source, commands)}\n"
    )


if __name__ == "__main__":
    for session in SESSIONS:
        if sys.argv[1:] == ["--if-changed"]:
            if has_changed(*session):
                record(*session)
        elif not sys.argv[1:] or session[0] in sys.argv[1:]:
            record(*session)
