"""Programs with commands, beside each other: what a shell sees of starts that fail, and how long each command takes.

`.venv/bin/python bench/programs.py [ROUNDS]`, after `make bench` has installed the peers. The contenders take turns. Times are
medians, and multiples of `python -c pass` in the same rounds.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORK = """
import os, socket, sys, time
def work(ready=lambda: None):
    match os.environ.get("HOW"):
        case "import": import nosuchmodule
        case "port": socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
        case "exit": sys.exit("bad config")
        case "late": time.sleep(0.2); raise RuntimeError("the database is down")
    ready()
    while True:
        time.sleep(0.1)
"""
HERE = """
import os, sys
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
"""
PROGRAMS = {
    "daemonkit": """
import daemonkit
def main(daemon):
    from work import work
    work(daemon.ready)
service = daemonkit.Service(
    main, pidfile=HERE + "/daemonkit.pid", stdout=HERE + "/daemonkit.log", stderr=daemonkit.STDOUT, wait_ready=True
)
sys.exit(service.main())
""",
    "daemonocle": """
import daemonocle
def main():
    from work import work
    work()
log = HERE + "/daemonocle.log"
daemon = daemonocle.Daemon(worker=main, pid_file=HERE + "/daemonocle.pid", stdout_file=log, stderr_file=log, work_dir=HERE)
daemon.do_action(sys.argv[1])
""",
    "python-daemon": """
import daemon, signal
from daemon.pidfile import TimeoutPIDLockFile
pidfile = TimeoutPIDLockFile(HERE + "/python-daemon.pid", -1)
def start():
    log = open(HERE + "/python-daemon.log", "a")
    with daemon.DaemonContext(pidfile=pidfile, stdout=log, stderr=log):
        from work import work
        work()
def stop():
    os.kill(pidfile.read_pid(), signal.SIGTERM)
def status():
    try:
        os.kill(pidfile.read_pid() or 1 << 22, 0)
    except OSError:
        sys.exit(3)
{"start": start, "stop": stop, "status": status}[sys.argv[1]]()
""",
}


def _type(directory: Path, name: str, command: str, **environment: str) -> tuple[int, str, float]:
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, directory / f"{name}_app.py", command], env={**os.environ, **environment}, text=True, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, " / ".join(done.stdout.strip().splitlines()), time.perf_counter() - begin


def _wait_for_end(directory: Path, name: str) -> None:
    """Wait until a daemon has ended: python-daemon's `stop` does not."""
    while (
        subprocess.run(["pgrep", "-f", f"{directory}/{name}_app.py"], stdout=subprocess.DEVNULL, check=False).returncode
        == 0
    ):
        time.sleep(0.02)  # noqa: TID251 - a peer's daemon tells nobody


def _failures(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for how in ("import", "port", "exit", "late"):
            for name in PROGRAMS:
                status, text, _ = _type(directory, name, "start", HOW=how, PORT=port)
                print(f"| {how} | {name} | {status} | {text or 'nothing'} |", flush=True)
                _wait_for_end(directory, name)
                (directory / f"{name}.pid").unlink(missing_ok=True)


def _times(directory: Path, rounds: int) -> None:
    taken: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        taken.setdefault(("python", "-c pass"), []).append(time.perf_counter() - begin)
        for name in PROGRAMS:
            for command in ("start", "status", "stop"):
                taken.setdefault((name, command), []).append(_type(directory, name, command)[2])
            _wait_for_end(directory, name)
    base = statistics.median(taken["python", "-c pass"])
    for (name, command), times in taken.items():
        median = statistics.median(times)
        print(f"| {name} {command} | {median * 1e3:.0f} ms | {median / base:.1f} |")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "work.py").write_text(WORK)
        for program, text in PROGRAMS.items():
            (directory / f"{program}_app.py").write_text(HERE + text)
        _failures(directory)
        _times(directory, int(sys.argv[1]) if len(sys.argv) > 1 else 15)


if __name__ == "__main__":
    main()
