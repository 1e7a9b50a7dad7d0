"""Several programs as one, beside PM2 and supervisord: `up`, cold and with nothing to do, memory, a scale under load.

`.venv/bin/python bench/several.py [ROUNDS]`, after `make bench` has installed the peers. Three files are brought up, each
written as its own tool has it: an ecosystem of 3 apps, a supervisord.conf of 5 programs, and 5 services in the order that
a process-compose.yaml gives them. The first two are converted by `daemonkit import`, the third by hand. Contenders take
turns; times are medians. process-compose itself is a Go program that none of PyPI, npm and Debian has.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peers import Pm2, Supervisord
from stage import free_port
from supervisors import client
from table import HERE, compile_program

BIN = Path(sys.executable).parent
SLEEPS = [f"sleep {1001 + number}" for number in range(5)]
ECOSYSTEM = {
    "apps": [
        {"name": name, "script": "sleep", "args": str(1001 + number), "interpreter": "none"}
        for number, name in enumerate(("api", "worker", "checks"))
    ]
}
CONTROL = """[unix_http_server]
file=%(here)s/ctl
[supervisord]
logfile=%(here)s/supervisord.log
pidfile=%(here)s/supervisord.pid
childlogdir=%(here)s
user=root
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://%(here)s/ctl
"""
FIVE = CONTROL + "".join(f"[program:p{number}]\ncommand={command}\n" for number, command in enumerate(SLEEPS))
IN_ORDER = "".join(
    f'[apps.{name}]\ncommand = "{command}"\nready_check = "true"\nafter = {json.dumps(after)}\n'
    for command, (name, after) in zip(
        SLEEPS,
        {"cache": [], "db": [], "api": ["cache", "db"], "web": ["api"], "jobs": ["db"]}.items(),
        strict=True,
    )
)


class Tool:
    """A tool with one file, in a folder of its own."""

    def __init__(self, folder: Path, file: str, up: list[str], again: list[str], end: list[str]) -> None:
        """Take the commands that bring the file up, cold and again, and end all."""
        self.folder, self.file, self._up, self._again, self._end = folder, file, up, again, end

    def type(self, command: list[str]) -> float:
        """Run a command to its end; return the seconds."""
        variables = {"DAEMONKIT_HOME": f"{self.folder}/home", "PM2_HOME": f"{self.folder}/pm2", "CI": "1"}
        begin = time.perf_counter()
        done = subprocess.run(
            command, cwd=self.folder, env={**os.environ, **variables}, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: status {done.returncode}: {done.stdout}")
        return time.perf_counter() - begin

    def up(self) -> float:
        return self.type(self._up)

    def again(self) -> float:
        return self.type(self._again)

    def end(self) -> None:
        self.type(self._end)
        while pss_of(self.folder):  # supervisorctl does not wait for it
            time.sleep(0.02)  # noqa: TID251 - a peer tells nobody


def tools(folder: Path) -> dict[str, Tool]:
    """Write each tool's files; return the tools."""
    pm2, supervisord, control = str(Pm2._program()), str(BIN / "supervisord"), str(BIN / "supervisorctl")  # noqa: SLF001 - what runs it
    daemonkit = str(BIN / "daemonkit")
    texts = {"ecosystem.json": json.dumps(ECOSYSTEM), "supervisord.conf": FIVE, "in-order.toml": IN_ORDER}
    found = {}
    for file, text in texts.items():
        place = folder / f"daemonkit-{file}"
        place.mkdir()
        (place / file).write_text(text)
        if file != "in-order.toml":
            converted = subprocess.run(
                [daemonkit, "import", file], cwd=place, check=True, capture_output=True, text=True
            )
            (place / "apps.toml").write_text(converted.stdout)
        up = [daemonkit, "up", "-f", file if file == "in-order.toml" else "apps.toml"]
        found[f"daemonkit, {file}"] = Tool(place, up[-1], up, up, [daemonkit, "delete", "--all"])
    for name, file, up, again, end in (
        (
            "PM2",
            "ecosystem.json",
            [pm2, "start", "ecosystem.json"],
            [pm2, "startOrReload", "ecosystem.json"],
            [pm2, "kill"],
        ),
        ("supervisord", "supervisord.conf", [supervisord], [control, "update"], [control, "shutdown"]),
    ):
        place = folder / name
        place.mkdir()
        (place / file).write_text(texts[file])
        found[f"{name}, {file}"] = Tool(place, file, up, again, end)
    return found


def pss_of(folder: Path) -> float:
    """Return the MiB of all processes of a folder: what each has alone, and its share of the rest."""
    marks = {f"DAEMONKIT_HOME={folder}/home".encode(), f"PM2_HOME={folder}/pm2".encode()}
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marks & {*(process / "environ").read_bytes().split(b"\0")}:
                lines = (process / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except OSError:
            continue
    return total / 1024


def _times(folder: Path, rounds: int) -> None:
    taken: dict[tuple[str, str], list[float]] = {}
    found = tools(folder)
    for _ in range(rounds):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        taken.setdefault(("python -c pass", ""), []).append(time.perf_counter() - begin)
        for name, tool in found.items():
            taken.setdefault((name, "up, cold"), []).append(tool.up())
            tool.again()  # the first one finds files that nobody has read yet
            taken.setdefault((name, "again"), []).append(tool.again())
            tool.end()
    base = statistics.median(taken["python -c pass", ""])
    for (name, what), times in taken.items():
        print(f"| {name} | {what} | {statistics.median(times) * 1e3:.0f} ms | {statistics.median(times) / base:.1f} |")


def _memory(folder: Path) -> None:
    """Weigh 5 programs, once they have idled."""
    sleeps = {"apps": [{**ECOSYSTEM["apps"][0], "name": f"p{number}"} for number in range(5)]}
    (folder / "five").mkdir()
    for name, tool in tools(folder / "five").items():
        if "ecosystem" in name and not name.startswith("PM2"):
            continue
        if name.startswith("PM2"):
            (tool.folder / tool.file).write_text(json.dumps(sleeps))
        tool.up()
        time.sleep(3)  # noqa: TID251 - they idle then
        print(f"| {name} | 5 programs in all | {pss_of(tool.folder):.1f} MiB |", flush=True)
        tool.end()
    place = folder / "run"
    place.mkdir()
    (place / "apps.toml").write_text("".join(f'[apps.p{n}]\ncommand = "{one}"\n' for n, one in enumerate(SLEEPS)))
    environment = {**os.environ, "DAEMONKIT_HOME": f"{place}/home"}
    run = subprocess.Popen(
        [BIN / "daemonkit", "run", "-f", "apps.toml"], cwd=place, env=environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    time.sleep(5)  # noqa: TID251 - the same
    print(f"| daemonkit run -f | 5 programs in all | {pss_of(place):.1f} MiB |", flush=True)
    run.terminate()
    run.wait()


# --- a scale under load ----------------------------------------------------------------------------------------------


def _scale(folder: Path) -> None:
    """Go from 2 to 6 to 3 instances while two clients ask."""
    if reason := compile_program("child", str(folder)):
        raise SystemExit(reason)
    for name, begin, change, end in (_scaled_daemonkit(folder), _scaled_pm2(folder), _scaled_supervisord(folder)):
        port = begin()
        clients = [client(port) for _ in range(2)]
        time.sleep(1)  # noqa: TID251 - the load is to last for a while
        for count in (6, 3):
            change(count)
            time.sleep(2)  # noqa: TID251 - the same
        answers = [one.communicate()[0].split() for one in clients]
        requests, failed = (sum(int(answer[i]) for answer in answers) for i in (0, 1))
        print(f"| {name} | 2 to 6 to 3 | {requests} requests | {failed} failed |", flush=True)
        end()


def _place(folder: Path, name: str) -> tuple[Path, int]:
    place = folder / name
    place.mkdir()
    os.mkfifo(place / "fifo")
    os.open(place / "fifo", os.O_RDWR | os.O_NONBLOCK)  # so that whoever reports there does not wait
    return place, free_port()


def _scaled_daemonkit(folder: Path):  # noqa: ANN202 - what the loop above unpacks
    place, port = _place(folder, "d")
    file = place / "daemonkit.toml"
    text = f'[apps.web]\ncommand = ["{folder}/child", "{place}/fifo", "serve", "3"]\nlisten = "127.0.0.1:{port}"\nwait_ready = true\ninstances = '
    up = [str(BIN / "daemonkit"), "up"]
    tool = Tool(place, file.name, up, up, [up[0], "delete", "--all"])

    def change(count: int) -> None:
        file.write_text(f"{text}{count}\n")
        tool.up()

    return "daemonkit", lambda: change(2) or port, change, tool.end


def _scaled_pm2(folder: Path):  # noqa: ANN202 - as above
    place, port = _place(folder, "p")
    pm2 = str(Pm2._program())  # noqa: SLF001 - as above
    app = {
        "name": "web", "script": f"{HERE}/server.js", "exec_mode": "cluster", "instances": 2, "wait_ready": True,
        "env": {"FIFO": f"{place}/fifo", "PORT": str(port)},
    }  # fmt: skip
    (place / "ecosystem.json").write_text(json.dumps({"apps": [app]}))
    tool = Tool(place, "ecosystem.json", [pm2, "start", "ecosystem.json"], [], [pm2, "kill"])
    return "PM2", lambda: tool.up() and port, lambda count: tool.type([pm2, "scale", "web", str(count)]), tool.end


def _scaled_supervisord(folder: Path):  # noqa: ANN202 - as above
    place, port = _place(folder, "s")
    control = [str(BIN / "supervisorctl")]
    tool = Tool(place, "supervisord.conf", [str(BIN / "supervisord")], [*control, "update"], [*control, "shutdown"])

    def write(count: int) -> None:
        program = f"[program:web]\ncommand={folder}/child {place}/fifo serve {port}\nprocess_name=%(process_num)d\n"
        (place / "supervisord.conf").write_text(f"{CONTROL}{program}numprocs={count}\n")

    def begin() -> int:
        write(2)
        tool.up()
        time.sleep(2)  # noqa: TID251 - supervisord returns before anything runs
        return port

    def change(count: int) -> None:
        write(count)
        tool.again()

    return "supervisord", begin, change, tool.end


def main() -> None:
    for kind in (Pm2, Supervisord):
        if reason := kind.missing():
            raise SystemExit(f"{kind.name}: {reason}")
        print(f"{kind.name} {kind.version()}")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        _times(Path(name), int(sys.argv[1]) if len(sys.argv) > 1 else 5)
        _memory(Path(name))
        _scale(Path(name))


if __name__ == "__main__":
    main()
