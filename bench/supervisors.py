"""Rows for `supervise()`, side by side with what else keeps programs running."""

from __future__ import annotations

import contextlib
import glob
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peers import PEERS, App, Daemonkit, InC, Peer
from stage import ROLES, Stage, free_port, running, spent, staged
from table import HERE, Line, compile_program, log, middle_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Kind = type[Peer]

_NOFILE = 4096
"""Enough for 500 children with pipes, in supervisors that do not raise it themselves."""
_TURN = {"circus": 5.0}
"""Seconds between two looks of those that poll, 1 in the others: crashes are spread over it."""
_RIGHT = {"killed": "2/2/2/2", "stubborn": "0/0/0/0", "crashes": "1/1/1/1"}
_SUFFIX = b" a line of a log as a program writes it, sixty-four bytes..\n"
_LINE = 8 + len(_SUFFIX)


@dataclass
class Bench:
    """What is measured, and how thoroughly."""

    folder: str
    quick: bool
    kinds: list[Kind] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def each(self, what: str, measure: Callable[[Kind], Any], kinds: list[Kind] | None = None) -> dict[str, Any]:
        """Measure one supervisor after the other; one that fails is noted and left out."""
        results = {}
        for kind in self.kinds if kinds is None else kinds:
            log(f"{what}: {kind.name}")
            try:
                results[kind.name] = measure(kind)
            except Exception as error:
                results[kind.name] = "failed"
                self.notes.append(f"{kind.name}, {what}: {error}")
        return results

    def staged(self, kind: Kind) -> contextlib.AbstractContextManager[Stage]:
        """Set up a supervisor."""
        return staged(kind, self.folder)


def supervisor_lines(folder: str, *, quick: bool) -> Iterator[Line]:
    """Compare supervisors; the last line holds what is to be said about them."""
    bench = Bench(folder, quick)
    for name in ("child", "supervisor"):
        if no_c := compile_program(name, folder):
            yield Line("supervisors", notes=[no_c])
            return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(_NOFILE, hard)), hard))
    for kind in PEERS:
        if reason := kind.missing():
            bench.notes.append(f"{kind.name}: skipped: {reason}")
        else:
            bench.kinds.append(kind)
            bench.notes.append(f"{kind.name} {kind.version()}: {kind.configuration}".replace(" :", ":"))
    for part in (_crash_lines, _size_lines, _idle_lines, _survivor_lines, _log_lines, _reload_lines, _loop_lines):
        yield from part(bench)
    yield Line("", notes=bench.notes)


# --- a crash ------------------------------------------------------------------------------------------------------


def _crash_lines(bench: Bench) -> Iterator[Line]:
    results = bench.each("a crash", lambda kind: _crashes(bench, kind, 3 if bench.quick else 20))
    ours, least = (middle_of(results.get(kind.name)) for kind in (Daemonkit, InC))
    yield Line("a crash until it runs again", results, "ms", "<= 2.5 x C", not ours > 2.5 * least)


def _crashes(bench: Bench, kind: Kind, count: int) -> list[float]:
    """Kill one instance after the other, each after a good run, at any point of what its supervisor may poll."""
    times = []
    with bench.staged(kind) as stage:
        first = running(stage, App(("sleep",), count))
        stage.watch(1.5)
        enough = time.monotonic() + 30
        for report in first:
            stage.watch(random.uniform(0, _TURN.get(kind.name, 1.0)) if count > 3 else 0)
            since, begin = len(stage.reports), time.monotonic()
            stage.kill(report)
            times.append(1e3 * (stage.wait_for(1, since=since)[0].time - begin))
            if time.monotonic() > enough:
                break
    return times


# --- how it grows -------------------------------------------------------------------------------------------------


def _size_lines(bench: Bench) -> Iterator[Line]:
    """Start and stop 1, 100 and 500 children; see how long that takes, and how large the supervisor is meanwhile."""
    sizes = (1, 5, 10) if bench.quick else (1, 100, 500)
    lines: list[Line] = []
    for size, start_goal, stop_goal in zip(sizes, (None, 110, 500), (None, 30, 100), strict=True):
        results = bench.each(f"{size} children", lambda kind, size=size: _sizes(bench, kind, size))
        columns = {name: _columns(found) for name, found in results.items()}
        memory = _column(columns, "memory")
        yield _limited(f"memory (PSS), {size} child{'ren' if size > 1 else ''}", memory, "MiB", 10)
        if size > 1:
            lines += [
                _limited(f"start {size}", _column(columns, "start"), "ms", start_goal),
                _limited("... from the call of `supervise()`", _column(columns, "call"), "ms", start_goal),
                _limited(f"stop {size}", _column(columns, "stop"), "ms", stop_goal),
            ]
    yield from sorted(lines, key=lambda line: line.what.startswith("stop"))


def _sizes(bench: Bench, kind: Kind, size: int) -> list[dict[str, float]]:
    """Repeat it while that does not take too long."""
    found: list[dict[str, float]] = []
    enough = time.monotonic() + (1 if bench.quick else 12)
    while len(found) < 5 and (not found or time.monotonic() < enough):
        found.append(_size(bench, kind, size))
    return found


def _size(bench: Bench, kind: Kind, size: int) -> dict[str, float]:
    with bench.staged(kind) as stage:
        begin = time.monotonic()
        reports = running(stage, App(("sleep",), size))
        last = max(report.time for report in reports)
        called = [report.time for report in stage.reports if report.role == "call"]
        stage.watch(1.5)
        result = {"start": 1e3 * (last - begin), "memory": stage.memory()}
        if called:
            result["call"] = 1e3 * (last - called[0])
        begin = time.monotonic()
        stage.peer.stop()
        if not stage.wait_gone(stage.alive(), 120):
            raise TimeoutError(f"{len(stage.alive())} of {size} still run 120 s after they were to be stopped")
        result["stop"] = 1e3 * (time.monotonic() - begin)
    return result


def _columns(found: Any) -> Any:
    if isinstance(found, str):
        return found
    return {key: [one[key] for one in found] for key in found[0]}


def _column(columns: dict[str, Any], key: str) -> dict[str, Any]:
    return {
        name: found if isinstance(found, str) else found[key]
        for name, found in columns.items()
        if isinstance(found, str) or key in found
    }


def _limited(what: str, results: dict[str, Any], unit: str, goal: float | None) -> Line:
    if goal is None:
        return Line(what, results, unit)
    return Line(what, results, unit, f"<= {goal:g} {unit}", middle_of(results[Daemonkit.name]) <= goal)


# --- nothing to do ------------------------------------------------------------------------------------------------


def _idle_lines(bench: Bench) -> Iterator[Line]:
    """Let all of them idle side by side: that is no load."""
    seconds, count = (2, 10) if bench.quick else (20, 100)
    with contextlib.ExitStack() as stack:
        stages: dict[str, Stage] = {}

        def begin(kind: Kind) -> dict[Any, Any]:
            stages[kind.name] = stage = stack.enter_context(bench.staged(kind))
            running(stage, App(("sleep",), count))
            stage.watch(1.5)
            return {}

        results = bench.each("idle", begin)
        time.sleep(1 if bench.quick else 5)  # noqa: TID251 - whatever they do after a start is over then
        before = {name: stage.effort() for name, stage in stages.items() if results[name] != "failed"}
        time.sleep(seconds)  # noqa: TID251 - the measure is what happens meanwhile
        used = {name: spent(effort, stages[name].effort()) for name, effort in before.items()}
    cpu = {name: [found[0]] for name, found in used.items()}
    switches = {name: [float(found[1])] for name, found in used.items()}
    ours = used.get(Daemonkit.name, (1.0, 1))
    yield Line(f"idle for {seconds} s with {count} children, CPU", cpu, "ms", "0", ours[0] == 0)
    yield Line("... voluntary context switches", switches, "", "0", ours[1] == 0)


# --- survivors ----------------------------------------------------------------------------------------------------


def _survivor_lines(bench: Bench) -> Iterator[Line]:
    """Count main processes / same group / own session / double-forked: who lives that should not, or twice."""
    for what, measure, right in (
        ("after `kill -9` of it and a new start, 2 instances", _after_kill, "killed"),
        ("left after stopping a tree that ignores SIGTERM", _after_stop, "stubborn"),
        ("left after 3 crashes", _after_crashes, "crashes"),
    ):
        kinds = [kind for kind in bench.kinds if kind is not InC]
        results = bench.each(what, lambda kind, measure=measure: measure(bench, kind), kinds)
        holds = results[Daemonkit.name] == _RIGHT[right]
        yield Line(what, results, "", _RIGHT[right], holds)
        if right == "killed":
            for more, which in (("... its worker process killed", 1), ("... both killed at once", 2)):
                found = bench.each(more, lambda _, which=which: _after_worker(bench, which), [Daemonkit])
                mains = found[Daemonkit.name].startswith("2/")
                right_here, holds = (
                    ("2 main", mains) if which == 2 else (_RIGHT[right], found[Daemonkit.name] == _RIGHT[right])
                )
                yield Line(more, found, "", right_here, holds)


def _trees(stage: Stage, count: int, since: int = 0, patience: float = 60) -> None:
    for role in ROLES:
        stage.wait_for(count, role, since, patience)


def _after_kill(bench: Bench, kind: Kind) -> str:
    app = App(("tree",), 2)
    with bench.staged(kind) as stage:
        stage.peer.start(app)
        _trees(stage, 2)
        stage.watch(1.5)
        since = len(stage.reports)
        stage.peer.kill()
        stage.watch(0.2)
        stage.peer.start(app)
        with contextlib.suppress(TimeoutError):  # runit finds the old ones again, and starts none
            _trees(stage, 2, since, patience=5)
        stage.watch(3)
        return stage.left()


def _after_worker(bench: Bench, which: int) -> str:
    """Kill the worker process, by which=2 the calling one in the same instant, and start again."""
    app = App(("tree",), 2)
    with bench.staged(Daemonkit) as stage:
        stage.peer.start(app)
        _trees(stage, 2)
        stage.watch(1.5)
        since = len(stage.reports)
        caller, worker = stage.supervisors()
        for pid in (worker, caller)[:which]:
            os.kill(pid, signal.SIGKILL)
        if which == 2:
            stage.watch(0.2)
            stage.peer.start(app)
        _trees(stage, 2, since)
        stage.watch(3)
        return stage.left()


def _after_stop(bench: Bench, kind: Kind) -> str:
    with bench.staged(kind) as stage:
        stage.peer.start(App(("stubborn",), stop_timeout=2))
        _trees(stage, 1)
        stage.watch(1.5)
        stage.peer.stop()
        stage.watch(5)
        return stage.left()


def _after_crashes(bench: Bench, kind: Kind) -> str:
    with bench.staged(kind) as stage:
        stage.peer.start(App(("tree",)))
        _trees(stage, 1)
        for _ in range(3):
            stage.watch(1.5)
            since = len(stage.reports)
            stage.kill([report for report in stage.reports if report.role == "main"][-1])
            _trees(stage, 1, since)
        stage.watch(1)
        return stage.left()


# --- logs ---------------------------------------------------------------------------------------------------------


def _log_lines(bench: Bench) -> Iterator[Line]:
    """Write millions of numbered lines as fast as it goes; see how fast that is, and whether they are all there."""
    count = 200_000 if bench.quick else 6_000_000
    if shutil.disk_usage("/var/tmp").free < 4 * count * _LINE:
        bench.notes.append(f"logs: skipped: /var/tmp has not {4 * count * _LINE >> 20} MiB free")
        return
    plain = statistics.median(_redirected(bench, count) for _ in range(3))
    for what, size in (("log without rotation", None), ("log with rotation at 50 MiB", 50 << 20)):
        kinds = [kind for kind in bench.kinds if size is None or kind.rotates]
        results = bench.each(what, lambda kind, size=size: _logged(bench, kind, count, size), kinds)
        speeds = _column(results, "speed")
        lost = {name: found if isinstance(found, str) else found["lost"] for name, found in results.items()}
        least = 600 if size else round(0.9 * plain)
        goal = f">= {least} MB/s" + ("" if size else f" (0.9 x plain redirection, {plain:.0f})")
        yield Line(what, speeds, "MB/s", goal, middle_of(speeds[Daemonkit.name]) >= least)
        none = "0; 0"
        yield Line(f"... lines lost; split, of {count:,}", lost, "", none, lost[Daemonkit.name] == none)


def _redirected(bench: Bench, count: int) -> float:
    """Return the MB/s of the program with its stdout in a file."""
    with bench.staged(InC) as stage:
        path = os.path.join(stage.peer.folder, "app.log")
        stage.peer.start(App(("log", str(count)), log=path))
        return _speed(stage, path, count)


def _speed(stage: Stage, path: str, count: int) -> float:
    """Return how fast it was all in the files, in MB/s, or what did come came."""
    begin = stage.wait_for(1)[0].time
    size, changed = 0, time.monotonic()
    while size < count * _LINE and time.monotonic() < changed + 5:
        stage.look(0.002)
        if (now := _logged_bytes(path)) != size:
            size, changed = now, time.monotonic()
    return size / (changed - begin) / 1e6


def _logged_bytes(path: str) -> int:
    total = 0
    for part in glob.glob(f"{path[:-4]}*"):
        with contextlib.suppress(FileNotFoundError):
            total += os.stat(part).st_size
    return total


def _logged(bench: Bench, kind: Kind, count: int, size: int | None) -> dict[str, Any]:
    speeds = []
    for _ in range(3 if kind is Daemonkit and not bench.quick else 1):
        with bench.staged(kind) as stage:
            path = os.path.join(stage.peer.folder, "app.log")
            stage.peer.start(App(("log", str(count)), log=path, log_max_bytes=size))
            speeds.append(_speed(stage, path, count))
            stage.wait_for(1, "written")
            stage.peer.stop()
            stage.wait_gone(stage.alive())
            lost = _account(glob.glob(f"{path[:-4]}*"), count)
    return {"speed": speeds, "lost": lost}


def _account(paths: list[str], count: int) -> str:
    """Compare what is in the files with what was written: lines lost, and lines split between two files."""
    found, split, rest = bytearray(count), 0, b""
    for path in sorted(paths, key=_begins_with):
        with open(path, "rb") as file:
            for piece in file:
                line, rest = rest + piece, b""
                if not line.endswith(b"\n"):
                    split, rest = split + 1, line
                elif len(line) == _LINE and line.endswith(_SUFFIX):
                    found[int(line[:8])] = 1
    return f"{found.count(0):,}; {split}"


def _begins_with(path: str) -> int:
    """Return the number of the first whole line in a file; the very first may be the end of one."""
    with open(path, "rb") as file:
        for line in (file.readline(), file.readline()):
            if len(line) == _LINE and line.endswith(_SUFFIX):
                return int(line[:8])
    return -1


# --- a rolling restart --------------------------------------------------------------------------------------------


def _reload_lines(bench: Bench) -> Iterator[Line]:
    """Restart four servers one by one under load, three times."""
    kinds = [kind for kind in bench.kinds if kind.reloads]
    times = 1 if bench.quick else 3
    results = bench.each("a rolling restart", lambda kind: [_reloaded(bench, kind) for _ in range(times)], kinds)
    columns = {name: _columns(found) for name, found in results.items()}
    requests, failed, stall = (_column(columns, key) for key in ("requests", "failed", "stall"))
    ours = failed[Daemonkit.name]
    yield Line("rolling restart of 4 under load: failed requests", failed, "", "0", ours == [0.0] * times)
    least = min(requests[Daemonkit.name]) if ours != "failed" else 0
    yield Line("... of how many", requests, "", ">= 7,000", least >= 7000)
    worst = max(stall[Daemonkit.name]) if ours != "failed" else 1e9
    yield Line("... longest stall", stall, "ms", "<= 50 ms, each time", worst <= 50)
    yield Line("... how long it takes", _column(columns, "seconds"), "s")


def _reloaded(bench: Bench, kind: Kind) -> dict[str, float]:
    app = App(("serve",), 4, port=free_port())
    with bench.staged(kind) as stage:
        old = running(stage, app)
        stage.watch(1.5)
        clients = [client(app.port) for _ in range(2)]
        stage.watch(0.5)
        since, begin = len(stage.reports), time.monotonic()
        stage.peer.reload(app)
        stage.wait_for(4, since=since)
        stage.wait_gone(old)
        seconds = time.monotonic() - begin
        stage.watch(max(0.5, 3 - seconds))
        answers = [client.communicate()[0].split() for client in clients]
    count, failed = (float(sum(int(answer[i]) for answer in answers)) for i in (0, 1))
    stall = max(float(answer[2]) for answer in answers)
    return {"requests": count, "failed": failed, "stall": 1e3 * stall, "seconds": seconds}


def client(port: int | None) -> subprocess.Popen[str]:
    command = [sys.executable, os.path.join(HERE, "load.py"), str(port)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# --- crash loops --------------------------------------------------------------------------------------------------


def _loop_lines(bench: Bench) -> Iterator[Line]:
    """Let a program crash as soon as it starts: from the beginning, and after it has run well for long."""
    seconds, healthy = (3, 2) if bench.quick else (10, 18)
    kinds = [kind for kind in bench.kinds if kind is not InC]
    with contextlib.ExitStack() as stack:
        stages: dict[str, Stage] = {}

        def begin(kind: Kind) -> None:
            stages[kind.name] = stage = stack.enter_context(bench.staged(kind))
            running(stage, _crashing(stage, good=True))

        bench.each("a healthy run", begin, kinds)
        until = time.monotonic() + healthy
        at_boot = bench.each("a crash loop at boot", lambda kind: _loop_at_boot(bench, kind, seconds), kinds)
        time.sleep(max(0, until - time.monotonic()))  # noqa: TID251 - the good run has to last
        later = bench.each("a crash loop later", lambda kind: _loop_later(stages[kind.name], seconds), kinds)
    for what, results in (("at boot", at_boot), (f"after {healthy} healthy seconds or more", later)):
        columns = {name: _columns(found) for name, found in results.items()}
        starts, cpu = _column(columns, "starts"), _column(columns, "cpu")
        holds = middle_of(starts[Daemonkit.name]) <= 8
        yield Line(f"a crash loop {what}, starts in {seconds} s", starts, "", "<= 8", holds)
        yield _limited("... CPU of the supervisor", cpu, "ms", 10)


def _crashing(stage: Stage, *, good: bool) -> App:
    flag = os.path.join(stage.peer.folder, "good")
    if good:
        with open(flag, "x", encoding="ascii"):
            pass
    return App(("crash", flag))


def _loop_at_boot(bench: Bench, kind: Kind, seconds: float) -> list[dict[str, float]]:
    with bench.staged(kind) as stage:
        stage.peer.start(_crashing(stage, good=False))
        stage.wait_for(1)
        return _loop(stage, seconds, since=0)


def _loop_later(stage: Stage, seconds: float) -> list[dict[str, float]]:
    os.unlink(os.path.join(stage.peer.folder, "good"))
    since = len(stage.reports)
    stage.kill(stage.alive()[0])
    return _loop(stage, seconds, since)


def _loop(stage: Stage, seconds: float, since: int) -> list[dict[str, float]]:
    before = stage.effort()
    stage.watch(seconds)
    starts = [report for report in stage.reports[since:] if report.role == "main"]
    after = {thread: used for thread, used in stage.effort().items() if thread in before}
    cpu = spent(before, after)[0]
    return [{"starts": float(len(starts)), "cpu": cpu}]
