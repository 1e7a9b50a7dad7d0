"""Curves: how the cost of an operation grows with the caller, with what is run, and with what was logged.

Where a contender's cost is promised to be flat, its curve is to be seen flat.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from peers import App, Daemonkit, InC, Pm2, Supervisord
from spawns import in_node, in_python
from stage import running, staged
from table import SMALL, compile_helper, compile_program, free_gigabytes, log, take_turns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from peers import Peer
    from plots import Plot

    Curves = dict[str, list[list[float]]]

_MEGABYTES = (SMALL, 100, 1 << 10, 4 << 10, 8 << 10)
_DESCRIPTORS = (10, 100, 1_000, 10_000, 20_000)
_INSTANCES = (1, 10, 100, 500, 2_000)
_APPS = (1, 10, 100, 500)
_LINES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
_PEERS_UP_TO = 500
"""Instances; PM2 and supervisord take minutes for more."""
_GIGABYTES_PER_APP = 0.02
_LINE = b"2026-01-01 12:00:00 INFO a line of a log as a program writes it, eighty bytes..\n"


def growth_plots(folder: str, *, quick: bool) -> tuple[list[Plot], list[str]]:
    """Return the curves, and notes on what was left out; a quick look has the first two points of each."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    growth = _Growth(folder, 2 if quick else None)
    measures: list[Callable[[], list[Plot]]] = [
        lambda: [growth.launches_by_memory()],
        lambda: [growth.launches_by_descriptors(hard)],
        lambda: [growth.starts_by_memory()],
        growth.instances,
        lambda: [growth.apps()],
        lambda: [growth.log_lines()],
    ]
    if reason := compile_program("child", folder) or compile_program("supervisor", folder):
        growth.notes.append(f"instances, apps, logs: {reason}")
        measures = measures[:3]
    plots: list[Plot] = []
    for measure in measures:
        try:
            plots += measure()
        except (Exception, SystemExit) as error:  # the other curves are there all the same
            growth.notes.append(f"failed: {error}")
    return plots, growth.notes


def _plot(title: str, x: str, y: str, series: Curves) -> Plot:
    return {"title": title, "x": x, "y": y, "series": series}


class _Growth:
    """What is measured, and how far."""

    def __init__(self, folder: str, points: int | None) -> None:
        self.folder, self._points = folder, points
        self.notes: list[str] = []
        self._no_c = {name: compile_helper(name, folder) for name in ("spawn", "double_fork")}
        self._no_node = None if shutil.which("node") else "skipped: not installed"

    def _sizes(self, what: str, sizes: tuple[int, ...], gigabytes: float = 0) -> Iterator[int]:
        """Yield the sizes that this machine has the memory for."""
        for size in sizes[: self._points]:
            if size * gigabytes > free_gigabytes():
                self.notes.append(f"{what}, {size:,} and more: skipped: {free_gigabytes():.1f} GB of memory are free")
                return
            log(f"{what}: {size:,}")
            yield size

    # --- launches and starts

    def launches_by_memory(self) -> Plot:
        """Launch from callers of more and more memory."""
        curves: Curves = {}
        for size in self._sizes("launches, MB", _MEGABYTES, 1.3 / 1024):
            with in_python(size, self.folder) as caller:
                self._launch(curves, size, caller.measure)
            if not self._no_node:
                with in_node(size) as caller:
                    results = take_turns(7, {"node": partial(caller.measure, "/bin/true", 1)})
                _add(curves, "Node `spawn` detached", size, 1e6 * statistics.median(results["node"]))
        return _plot("`spawn_detached()`", "MB of memory in the caller", "us", curves)

    def launches_by_descriptors(self, hard: int) -> Plot:
        """Launch from callers with more and more open descriptors."""
        curves: Curves = {}
        for size in self._sizes("launches, descriptors", _DESCRIPTORS):
            with in_python(SMALL, self.folder, min(size, hard - 100)) as caller:
                self._launch(curves, size, caller.measure)
        return _plot("`spawn_detached()`", "open descriptors in the caller", "us", curves)

    def _launch(self, curves: Curves, size: int, measure: Callable[..., float]) -> None:
        names = {"daemonkit": "daemonkit", "popen": "`Popen(start_new_session=True)`"}
        if not self._no_c["spawn"]:
            names["c"] = "C `posix_spawn` with SETSID"
        results = take_turns(30, {name: partial(measure, name, "-", 5) for name in names})
        for name, label in names.items():
            _add(curves, label, size, 1e6 * statistics.median(results[name]))

    def starts_by_memory(self) -> Plot:
        """Become a daemon from callers of more and more memory."""
        from run import Starts  # which imports this module

        names = {"daemonkit": "daemonkit", "python_daemon": "`DaemonContext`"}
        if not self._no_c["double_fork"]:
            names["double_fork"] = "C double fork"
        curves: Curves = {}
        starts = Starts(os.path.join(self.folder, "starts"))
        os.mkdir(starts.folder)
        compile_helper("double_fork", starts.folder)
        for size in self._sizes("starts, MB", _MEGABYTES, 1.3 / 1024):
            rounds = 15 if size < 1 << 10 else 5
            results = take_turns(rounds, {name: partial(starts.measure, name, size) for name in names})
            for name, label in names.items():
                _add(curves, label, size, 1e3 * statistics.median(results[name]))
        return _plot("`detached()`", "MB of memory in the caller", "ms", curves)

    # --- what runs

    def instances(self) -> list[Plot]:
        """Start more and more instances; crash one, and reload all."""
        curves: dict[str, Curves] = {what: {} for what in ("start", "one crash", "reload of all")}
        kinds: list[type[Peer]] = [Daemonkit, *(kind for kind in (Pm2, Supervisord) if not kind.missing()), InC]
        for size in self._sizes("instances", _INSTANCES):
            for kind in kinds if size <= _PEERS_UP_TO else [Daemonkit, InC]:
                try:
                    for what, seconds in self._instances(kind, size).items():
                        _add(curves[what], kind.name, size, 1e3 * seconds)
                except (OSError, TimeoutError) as error:
                    self.notes.append(f"{kind.name}, {size:,} instances: {error}")
        return [_plot(f"`supervise()`: {what}", "instances", "ms", found) for what, found in curves.items()]

    def _instances(self, kind: type[Peer], size: int) -> dict[str, float]:
        app = App(("ready",) if kind is Daemonkit else ("sleep",), size)
        with staged(kind, self.folder) as stage:
            begin = time.monotonic()
            reports = running(stage, app)
            found = {"start": max(report.time for report in reports) - begin}
            stage.watch(1.5)
            crashes = []
            for report in reports[:5]:
                since, begin = len(stage.reports), time.monotonic()
                stage.kill(report)
                crashes.append(stage.wait_for(1, since=since)[0].time - begin)
                stage.watch(0.3)
            found["one crash"] = statistics.median(crashes)
            if kind is Daemonkit:
                since, begin = len(stage.reports), time.monotonic()
                stage.peer.reload(app)
                found["reload of all"] = stage.wait_for(size, since=since, patience=300)[-1].time - begin
        return found

    def apps(self) -> Plot:
        """List more and more apps, and one app with as many instances."""
        curves: Curves = {}
        for size in self._sizes("apps", _APPS, _GIGABYTES_PER_APP):
            with self._home() as (run, child):
                for number in range(size):
                    run("start", f"app{number}", "--wait-ready", "--", *child)
                _add(curves, "`daemonkit ls`, so many apps", size, 1e3 * run("ls"))
        for size in self._sizes("instances of an app", _INSTANCES):
            with self._home() as (run, child):
                run("start", "app", "-i", size, "--wait-ready", "--", *child)
                _add(curves, "`daemonkit ls`, one app with so many instances", size, 1e3 * run("ls"))
        return _plot("`daemonkit ls`", "apps, or instances", "ms", curves)

    @contextmanager
    def _home(self) -> Iterator[tuple[Callable[..., float], list[str]]]:
        """Yield the command, with apps of its own, and what an app is to run."""
        from commands import run_command

        os.environ["DAEMONKIT_HOME"] = os.path.join(self.folder, "growth")
        with staged(InC, self.folder) as stage:
            try:
                yield run_command, [os.path.join(self.folder, "child"), stage.peer.fifo, "ready"]
            finally:
                run_command("delete", "--all")
                shutil.rmtree(os.environ.pop("DAEMONKIT_HOME"), ignore_errors=True)

    def log_lines(self) -> Plot:
        """Show the end of longer and longer logs."""
        curves: Curves = {}
        path = os.path.join(self.folder, "lines.log")
        with self._home() as (run, _):
            run("start", "app", "--stdout", path, "--", "sleep", 1_000_000)
            for size in self._sizes("log lines", _LINES):
                with open(path, "wb") as file:
                    for _ in range(size // 1_000):
                        file.write(_LINE * 1_000)
                contenders = {"ours": partial(run, "logs", "app"), "tail": partial(_tail, path)}
                results = take_turns(9, contenders)
                _add(curves, "`daemonkit logs`", size, 1e3 * statistics.median(results["ours"]))
                _add(curves, "`tail`", size, 1e3 * statistics.median(results["tail"]))
        return _plot("the last lines of a log", "lines in the log", "ms", curves)


def _add(curves: Curves, name: str, x: float, y: float) -> None:
    curves.setdefault(name, []).append([x, round(y, 3)])


def _tail(path: str) -> float:
    begin = time.perf_counter()
    subprocess.run(["tail", "-n", "10", path], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin
