"""Real programs as the page "Programs" starts them: each process of them is killed, they are reloaded under load and stopped at work.

`make programs`, or `.venv/bin/python stress/real.py [NAME...]`; what is not installed is left out and named. It prints the
table of that page. Status 1 if a process was left, or if a program did not come back.
"""

from __future__ import annotations

import contextlib
import os
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
                self.last = self.scene.ask()
                self.stale += self.last != NEXT and reloaded
            except (OSError, AssertionError) as error:
                self.failed.append(f"{type(error).__name__} {error}")
                harness.select.select([], [], [], 0.01)  # a port that nobody listens at would be asked 10,000 times a second

    def end(self) -> None:
        """Let the last requests end."""
        self._end = True
        for thread in self._threads:
            thread.join()


class Trial:
    """What one program goes through, and the row that comes of it."""

    def __init__(self, scene: Scene) -> None:
        """Note nothing yet."""
        self.scene = scene
        self.killed: dict[str, str] = {}
        self.instances = 0
        self.left = 0
        self.load = self.stop = ""
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
        elif self.scene.name in {"chromium", "beat"}:
            self.load = "| – | – | – "
        else:
            self.load = self.reload_under_load()
        self.stop = self.stop_at_work()

    def kill(self, who: str) -> str:
        """SIGKILL one of its processes; all that belonged to a run that is over must go, and the program must come back."""
        scene = self.scene
        family, mains = scene.family, scene.mains
        children = [pid for main in mains for pid in harness.children(main)]
        if who == "child" and not children:
            return "–"
        victim = {"main": mains, "child": children, "worker": [scene.worker], "supervisor": [scene.supervisor]}[who][0]
        over = {"main": {victim, *_below(victim)}, "child": {victim}}.get(who, family)
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        with contextlib.suppress(AssertionError):
            harness.eventually(lambda: not any(map(harness.alive, over)), patience=5)
        left = [pid for pid in over if harness.alive(pid)]
        self.left += len(left)
        self.notes += [f"{who} killed: left {_words(pid)}" for pid in left]
        if who == "supervisor":
            scene.type("start", scene.name)
        return "back" if self._is_back(over) else "**gone**"

    def _is_back(self, over: set[int]) -> bool:
        def works() -> bool:
            mains = set(self.scene.mains) - over
            return len(mains) == self.instances and all(map(harness.alive, mains)) and bool(self.scene.ask())

        with contextlib.suppress(AssertionError):
            return bool(harness.eventually(works, patience=BACK))
        return False

    def reload_under_load(self) -> str:
        """Deploy a new release by a rolling restart; by `restart` where the program has a port of its own."""
        scene = self.scene
        load = Load(scene)
        try:
            harness.eventually(lambda: load.asked > REQUESTS)
            scene.set_release(NEXT)
            how = self._reload(load)
            load.reloaded = True
            asked = load.asked
            harness.eventually(lambda: load.asked > asked + REQUESTS)
        finally:
            load.end()
        self.notes += [f"{how}: {what} x {load.failed.count(what)}" for what in sorted(set(load.failed))]
        has_release = scene.name not in catalogue.OTHER
        return f"| {how} | {load.asked:,} / {len(load.failed)} | {load.stale if has_release else '–'} "

    def _reload(self, load: Load) -> str:
        """Put the new release into service as the page says; return by which command."""
        scene = self.scene
        if number := catalogue.SIGNALS.get(scene.name):
            scene.type("signal", number, scene.name)
            if scene.name not in catalogue.OTHER:
                harness.eventually(lambda: load.last == NEXT)  # a signal does not tell when its work is done
            return f"`signal {number}`"
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
        return f"| `reload` | {2 * JOBS} / {len(lost)} | {len(stale)} "

    def stop_at_work(self) -> str:
        """Stop it while it answers one request or does one job, which is let go on only then; tell how that ended."""
        scene = self.scene
        if scene.name in catalogue.OTHER:
            scene.type("stop", scene.name)
            return "–"
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
        self.notes.append(f"stop: {stopping.communicate()[0].strip()}")
        if asker:
            asker.join()
            return ended[0]
        return "done" if (scene.folder / "finished").exists() else "**lost**"

    def row(self) -> str:
        """Return its row of the table."""
        killed = " | ".join(self.killed.values())
        return f"| {self.scene.name} | {killed} | {self.left} {self.load}| {self.stop} |"


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


HEAD = """
| program | main | child | worker | supervisor | left | new release by | requests / failed | stale | work at `stop` |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def main() -> int:
    """Put one after the other on trial."""
    harness.become_subreaper()
    print(HEAD, flush=True)
    notes, broken = [], 0
    for name in sys.argv[1:] or catalogue.LINES:
        with tempfile.TemporaryDirectory(prefix="daemonkit-real-") as folder:
            scene = Scene(Path(folder), name)
            if scene.missing:
                notes.append(f"- {name}: left out, no {scene.missing} here")
                scene.end()
                continue
            trial = Trial(scene)
            try:
                trial.all()
            except Exception as error:
                trial.notes.append(f"{type(error).__name__}: {error}")
                broken += 1
            finally:
                scene.end()
            with contextlib.suppress(AssertionError):
                harness.eventually(lambda: not list(harness.own_children()), patience=5)
            trial.left += len(list(harness.own_children()))
            for pid, words in harness.own_children():
                trial.notes.append(f"left in the end: {words}")
                os.kill(pid, signal.SIGKILL)
            print(trial.row(), flush=True)
            notes += [f"- {name}: {note}" for note in trial.notes if note]
            broken += trial.left + sum("gone" in word for word in trial.killed.values())
    print("\n" + "\n".join(notes))
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
