"""Real programs as the page "Programs" starts them: each process of them is killed, they are reloaded under load and stopped at work.

`make programs`, or `.venv/bin/python stress/real.py [NAME...]`; what is not installed is left out and named. It prints a
table, which goes into that page if all were on trial. Status 1 if a process was left, or if a program did not come back.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # the harness and the catalogue are the tests'

import catalogue
import harness
from catalogue import NEXT, Scene

if TYPE_CHECKING:
    from collections.abc import Callable

REQUESTS = 300  # at least so many before the reload, and after it
CLIENT_RUNS = 60  # the same where each request is a program of its own, such as psql
CLIENTS = 4
JOBS = 40  # the same for a queue
BACK = 20.0  # seconds within which it must do its work again


@dataclass
class Load:
    """Clients that ask as fast as they can until they are told to end."""

    scene: Scene
    asked: int = 0
    failed: list[str] = field(default_factory=list)
    stale: int = 0
    """Requests that began after the reload had ended, and that the old release answered."""
    reloaded: bool = False
    last: str = ""
    _end: bool = False

    def __post_init__(self) -> None:
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while not self._end:
            reloaded = self.reloaded
            self.asked += 1
            try:
                last = self.last = self.scene.ask()
                self.stale += last != NEXT and reloaded
            except (OSError, AssertionError) as error:
                self.failed.append(_word(error))
                harness.select.select(
                    [], [], [], 0.01
                )  # a port that nobody listens at would be asked 10,000 times a second

    def end(self) -> None:
        """Let the last requests end."""
        self._end = True
        for thread in self._threads:
            thread.join()


def _word(error: Exception) -> str:
    """Return what became of a request, without its numbers."""
    text = " ".join(str(error).split())
    known = ("refused", "reset by peer", "RemoteDisconnected", "starting up", "shutting down")
    return next((word for word in known if word in text), f"{type(error).__name__} {text}")


UVICORN = "uvicorn's: it closes what it has accepted and not yet read"
PORT = "its port's: one run ends before the next can have it"
FAULTS = {
    "uworker": UVICORN,
    "uvicorn": UVICORN,
    "hypercorn": "hypercorn's: it closes what it has accepted and not yet read",
    "granian": "granian's: what waits at its own socket is reset as it closes that",
    **dict.fromkeys(("redis", "postgres", "java"), PORT),
    "dramatiq": "dramatiq's: it needs more than a second to fail, and does not say when it is up",
    "rq": "rq's: it loads a job's module only as the job runs",
    "celery": "celery's: what a child has taken is lost with the child",
}
"""Whose fault a request or a job that is lost is, where it is known."""


class Trial:
    """What one program goes through, and the row that comes of it."""

    def __init__(self, scene: Scene) -> None:
        """Note nothing yet."""
        self.scene = scene
        self.killed: dict[str, str] = {}
        self.instances = 0
        self.left = 0
        self.requests = self.lost = 0
        self.load = "| - | - | - "
        self.broken = self.stop = "-"
        self.notes: list[str] = []

    def all(self) -> None:
        """Do all of it."""
        self.scene.start()
        self.scene.ask()
        self.instances = len(self.scene.mains)
        for who in ("main", "child", "worker", "supervisor"):
            self.killed[who] = self.kill(who)
        if self.scene.name in catalogue.JOBS:
            self.load = self.reload_with_jobs()
        elif self.scene.name not in {"chromium", "beat"}:
            self.load = self.reload_under_load()
        if self.scene.name not in catalogue.OTHER:
            self.broken = self.reload_broken()
        self.stop = self.stop_at_work()

    def kill(self, who: str) -> str:
        """SIGKILL one of its processes; all that belonged to a run that is over must go, and the program must come back."""
        scene = self.scene
        family, mains = scene.family, scene.mains
        children = [pid for main in mains for pid in harness.children(main)]
        if who == "child" and not children:
            return "-"
        victim = {"main": mains, "child": children, "worker": [scene.worker], "supervisor": [scene.supervisor]}[who][0]
        over = {"main": {victim, *_below(victim)}, "child": {victim}}.get(who, family)
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        with contextlib.suppress(AssertionError):
            harness.eventually(lambda: not any(map(harness.alive, over)), patience=5)
        left = [pid for pid in over if harness.alive(pid)]
        for pid in over:  # with the supervisor gone they come here, and Apache takes a zombie for a server that runs
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        self.left += len(left)
        self.notes += [f"{who} killed: left {_words(pid)}" for pid in left]
        if who == "supervisor":
            scene.type("start", scene.name)
        return "back" if self._is_back(over) else "**gone**"

    def _is_back(self, over: set[int]) -> bool:
        def works() -> bool:
            mains = set(self.scene.mains) - over
            return len(mains) == self.instances and all(map(harness.alive, mains)) and bool(self._ask())

        with contextlib.suppress(AssertionError):
            return bool(harness.eventually(works, patience=BACK))
        return False

    def _ask(self) -> str:
        try:
            return self.scene.ask()
        except FileNotFoundError:  # a job
            self.lost += 1
            raise

    def reload_under_load(self) -> str:
        """Deploy a new release by a rolling restart; by `restart` where the program has a port of its own."""
        scene = self.scene
        load = Load(scene)
        try:
            count = CLIENT_RUNS if scene.name in catalogue.OTHER else REQUESTS
            harness.eventually(lambda: load.asked > count)
            scene.set_release(NEXT)
            how = self._reload(load)
            load.reloaded = True
            asked = load.asked
            harness.eventually(lambda: load.asked > asked + count)
        finally:
            load.end()
        self.lost += len(load.failed)
        self.notes += [f"{how}: {what} x {load.failed.count(what)}" for what in sorted(set(load.failed))]
        has_release = scene.name not in catalogue.OTHER
        return f"| {how} | {load.asked:,} / {len(load.failed)} | {load.stale if has_release else '-'} "

    def _reload(self, load: Load) -> str:
        """Put the new release into service as the page says; return by which command."""
        scene = self.scene
        if line := catalogue.SIGNALS.get(scene.name):
            scene.type_signal()
            if scene.name not in catalogue.OTHER:
                harness.eventually(lambda: load.last == NEXT)  # a signal does not tell when its work is done
            return f"`signal {line.split()[-2]}`"
        done = scene.type("reload", scene.name, status=None)
        if done.returncode == 0:
            return "`reload`"
        self.notes.append(f"reload: {done.stderr.strip().splitlines()[-1]}")
        scene.type("restart", scene.name)
        return "`restart`"

    def reload_with_jobs(self) -> str:
        """Deploy with jobs in the queue, and some more afterwards: each is done, the later ones by the new release."""
        scene = self.scene
        before = scene.hand_in(JOBS)
        scene.set_release(NEXT)
        scene.type("reload", scene.name)
        after = scene.hand_in(JOBS)
        done = scene.folder / "done"
        with contextlib.suppress(AssertionError):
            harness.eventually(lambda: all((done / number).exists() for number in (*before, *after)), patience=BACK)
        lost = [number for number in (*before, *after) if not (done / number).exists()]
        stale = [number for number in after if number not in lost and (done / number).read_text() != NEXT]
        self.lost += len(lost)
        return f"| `reload` | {2 * JOBS} / {len(lost)} | {len(stale)} "

    def reload_broken(self) -> str:
        """Deploy a release that can't start; tell whether the old one still answers."""
        scene = self.scene
        with scene.broken_release():
            if scene.name in catalogue.SIGNALS:
                status = scene.type_signal()
                harness.select.select([], [], [], 1.0)  # nothing tells when it has read its files
            else:
                status = scene.type("reload", scene.name, status=None).returncode
            try:
                kept = scene.ask() == NEXT
            except (OSError, AssertionError):
                kept = False
        if not kept:
            scene.type("restart", scene.name)
        return f"{'kept' if kept else '**down**'}{'' if status else ', and not told'}"

    def stop_at_work(self) -> str:
        """Stop it while it answers one request or does one job, which is let go on only then; tell how that ended."""
        scene = self.scene
        if scene.name in catalogue.OTHER:
            scene.type("stop", scene.name)
            return "-"
        ended: list[str] = []
        if scene.name in catalogue.JOBS:
            scene.hand_in(1, "slow")
            asker = None
        else:
            asker = threading.Thread(target=lambda: ended.append(_outcome(lambda: scene.ask("/slow"))))
            asker.start()
        harness.eventually((scene.folder / "begun").exists)
        stopping = subprocess.Popen(
            [sys.executable, "-m", "daemonkit", "stop", scene.name], env=scene.shell.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        harness.select.select([], [], [], 1.0)  # the signal is on its way: nothing from outside tells that it has come
        (scene.folder / "go").touch()
        if said := stopping.communicate()[0].strip():
            self.notes.append(f"stop: {said}")
        if asker:
            asker.join()
            return ended[0]
        return "done" if (scene.folder / "finished").exists() else "**lost**"

    def row(self) -> str:
        """Return its row of the table."""
        killed = " | ".join(self.killed.get(who, "") for who in ("main", "child", "worker", "supervisor"))
        fault = (
            FAULTS.get(self.scene.name, "not known") if self.lost or "cut" in self.stop or "lost" in self.stop else ""
        )
        return f"| {self.scene.name} | {killed} | {self.left} {self.load}| {self.broken} | {self.stop} | {fault} |"


def _outcome(ask: Callable[[], str]) -> str:
    try:
        ask()
    except OSError as error:
        return f"**cut** ({type(error).__name__})"
    return "done"


def _below(pid: int) -> list[int]:
    found = harness.children(pid)
    for one in found:
        found += harness.children(one)
    return found


def _words(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return str(pid)


HEAD = """\
| program | main | child | worker | supervisor | left | new release by | requests / failed | stale | a broken release | work at `stop` | whose fault |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def on_trial(name: str, folder: Path) -> tuple[str, list[str], bool]:
    """Put one on trial; return its row (none if it is not installed), notes, and whether nothing was broken."""
    scene = Scene(folder, name)
    trial = Trial(scene)
    failure = ""
    try:
        if scene.missing:
            return "", [f"left out, no {scene.missing} here"], True
        trial.all()
    except Exception as error:  # what it had shown by then is told all the same
        failure = f"{type(error).__name__}: {error}"
    finally:
        scene.end()
    with contextlib.suppress(AssertionError):
        harness.eventually(lambda: not list(harness.own_children()), patience=5)
    for pid, words in harness.own_children():
        trial.left += 1
        trial.notes.append(f"left in the end: {words}")
        os.kill(pid, signal.SIGKILL)
    is_whole = not failure and not trial.left and not any("gone" in word for word in trial.killed.values())
    return trial.row(), [note for note in (*trial.notes, failure) if note], is_whole


def main() -> int:
    """Put one after the other on trial."""
    harness.become_subreaper()
    print(HEAD, flush=True)
    rows, notes, good = [HEAD], [], True
    for name in sys.argv[1:] or catalogue.LINES:
        with tempfile.TemporaryDirectory(prefix="daemonkit-real-") as folder:
            row, said, is_whole = on_trial(name, Path(folder))
        good = good and is_whole
        rows += [row] if row else []
        notes += [f"- {name}: {note}" for note in said]
        print(row, flush=True)
    print("\n" + "\n".join(notes))
    if not sys.argv[1:]:
        page = catalogue.PAGE.read_text()
        table = "\n".join(rows) + "\n"
        catalogue.PAGE.write_text(
            re.sub(r"^\| program \| main .*?\n(?=\n|\Z)", table, page, flags=re.MULTILINE | re.DOTALL)
        )
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
