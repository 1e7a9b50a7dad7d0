"""Rows for the `daemonkit` command, as whole processes, beside the commands of other supervisors."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from peers import App, InC, Peer, Pm2, Supervisord
from stage import Stage, running, staged
from table import Row, against, compile_program, take_turns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_APPS = 20
_COMMAND = os.path.join(os.path.dirname(sys.executable), "daemonkit")


def command_rows(folder: str) -> Iterator[Row]:
    """Ask for one app and for a list of twenty; start one more."""
    reason = compile_program("child", folder) or compile_program("supervisor", folder)
    if not reason and not shutil.which(_COMMAND):
        reason = "skipped: there is no daemonkit command"
    if reason:
        yield Row("the `daemonkit` command", against=reason)
        return
    with ExitStack() as stack:
        stage = stack.enter_context(_apps(folder))
        asked = {
            "status": partial(_run, [_COMMAND, "status", "app0"]),
            "ls": partial(_run, [_COMMAND, "ls"]),
            "pass": partial(_run, [sys.executable, "-c", "pass"]),
        }
        peers = {kind: _begin(stack, kind, folder) for kind in (Pm2, Supervisord)}
        asked |= {kind.name: ask for kind, ask in peers.items() if not isinstance(ask, str)}
        yield from _asking_rows(
            take_turns(25, asked), {k.name: ask for k, ask in peers.items() if isinstance(ask, str)}
        )
        yield from _start_rows(stack, stage, folder, Pm2.missing())


@contextmanager
def _apps(folder: str) -> Iterator[Stage]:
    """Have twenty apps run under the command, in a home of its own."""
    os.environ["DAEMONKIT_HOME"] = os.path.join(folder, "home")
    with staged(InC, folder) as stage:
        try:
            child = [os.path.join(folder, "child"), stage.peer.fifo, "ready"]
            for number in range(_APPS):
                _run([_COMMAND, "start", f"app{number}", "--wait-ready", "--", *child])
            stage.wait_for(_APPS)
            yield stage
        finally:
            subprocess.run([_COMMAND, "delete", "--all"], check=False, stdout=subprocess.DEVNULL)


def run_command(*arguments: object) -> float:
    """Run `daemonkit` with these arguments; return the seconds that it took."""
    return _run([_COMMAND, *map(str, arguments)])


def _run(command: list[str]) -> float:
    begin = time.perf_counter()
    done = subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    elapsed = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}: {done.stderr.decode()}")
    return elapsed


def _begin(stack: ExitStack, kind: type[Peer], folder: str) -> Callable[[], float] | str:
    """Have a peer run as many; return what asks it for the list, or why not."""
    if reason := kind.missing():
        return reason
    stage = stack.enter_context(staged(kind, folder))
    running(stage, App(("sleep",), _APPS))
    stage.watch(2)  # until supervisord counts them as running
    return partial(_timed_listing, stage.peer)


def _timed_listing(peer: Peer) -> float:
    begin = time.perf_counter()
    peer.list()
    return time.perf_counter() - begin


def _asking_rows(results: dict[str, list[float]], missing: dict[str, str]) -> Iterator[Row]:
    for key, what in (("status", "`daemonkit status NAME`"), ("ls", f"`daemonkit ls`, {_APPS} apps")):
        yield against(what, results[key], "`python -c pass`", results["pass"], 2.0)
        for name, label in ((Pm2.name, "`pm2 ls`"), (Supervisord.name, "`supervisorctl status`")):
            if name in results:
                yield against(what, results[key], f"{label}, as many", results[name])
            else:
                yield Row(what, against=f"{label}: skipped: {missing[name]}")


def _start_rows(stack: ExitStack, stage: Stage, folder: str, no_pm2: str | None) -> Iterator[Row]:
    what = "`daemonkit start NAME` until it is up"
    if no_pm2:
        yield Row(what, against=f"`pm2 start`: skipped: {no_pm2}")
        return
    pm2 = stack.enter_context(staged(Pm2, folder)).peer
    numbers = itertools.count()
    ready = [os.path.join(folder, "child"), stage.peer.fifo, "ready"]

    def start(*options: str) -> float:
        return _run([_COMMAND, "start", f"more{next(numbers)}", *options, "--", *ready])

    def start_in_pm2() -> float:
        begin = time.perf_counter()
        pm2.run("start", ready[0], "--name", f"more{next(numbers)}", "--interpreter", "none", "--", *ready[1:])
        return time.perf_counter() - begin

    results = take_turns(7, {"ready": partial(start, "--wait-ready"), "plain": start, "pm2": start_in_pm2})
    label = "`pm2 start`, its daemon running"
    yield against(f"{what}, `--wait-ready`", results["ready"], label, results["pm2"], 0.3)
    yield against(f"{what}: it has lived for a second", results["plain"], label, results["pm2"])
