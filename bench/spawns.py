"""Rows about `spawn_detached()`, beside what else launches a program.

The callers live as long as their rows take and launch on request, so that neighbours are milliseconds apart, also
where they are in callers of different sizes.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from table import HERE, SMALL, Row, against, compile_helper, free_gigabytes, met, take_turns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

_PR_SET_THP_DISABLE = 41
_REPEAT = 5
"""Launches per measurement, of which the median counts."""
_IN_A_ROW = 1000
_GROWTH_KB = 256
"""Less than what 6,000 launches would leave behind if each left a hundred bytes."""
_OPTIONS = ("cwd", "umask", "env", "pass_fds", "logs", "pidfile")


class Caller:
    """A process that launches on request: see spawner.py and spawn.js."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Take the process, which may still be growing."""
        self._process = process

    def ask(self, *words: object) -> str:
        """Return its answer to one line."""
        print(*words, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"the caller ended instead of answering {words}")
        return answer

    def measure(self, *words: object) -> float:
        """Return a time in seconds."""
        return float(self.ask(*words)) / 1e9


@contextmanager
def _running(command: list[str]) -> Iterator[Caller]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Caller(process)
        process.stdin.close()  # at which it ends


def in_python(megabytes: int, folder: str, descriptors: int = 0) -> AbstractContextManager[Caller]:
    """Start a caller in Python, of that size and with so many descriptors open."""
    return _running([sys.executable, os.path.join(HERE, "spawner.py"), str(megabytes), folder, str(descriptors)])


@contextmanager
def in_node(megabytes: int) -> Iterator[Caller]:
    """Start a caller in Node, in small pages: huge ones would make its fork cheap; V8 can't be told so."""
    prctl = ctypes.CDLL(None).prctl
    with ExitStack() as stack:
        prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)  # which a child has too: prctl(2)
        try:
            caller = stack.enter_context(_running(["node", os.path.join(HERE, "spawn.js"), str(megabytes)]))
        finally:
            prctl(_PR_SET_THP_DISABLE, 0, 0, 0, 0)
        yield caller


def _ask_node(caller: Caller, repeat: int) -> Callable[[], float]:
    return partial(caller.measure, "/bin/true", repeat)


# --- default arguments --------------------------------------------------------------------------------------------


def _small_rows(small: Caller, no_c: str | None, no_node: str | None) -> Iterator[Row]:
    peers = {
        "c": ("C `posix_spawn` with SETSID", 1.35),
        "posix_spawn": ("`os.posix_spawn(setsid=True)`", None),
        "popen": ("`Popen(start_new_session=True)`", 1.15),
        "node": ("Node `spawn` detached", 0.25),
        "setsid": ("`setsid -f`", None),
        "start-stop-daemon": ("`start-stop-daemon -b`", None),
    }
    reasons = {"c": no_c, "node": no_node}
    reasons |= {
        tool: None if shutil.which(tool) else "skipped: not installed" for tool in ("setsid", "start-stop-daemon")
    }
    with ExitStack() as stack:
        names = ["daemonkit", *(name for name in peers if not reasons.get(name) and name != "node")]
        contenders = {name: partial(small.measure, name, "-", _REPEAT) for name in names}
        if not no_node:
            contenders["node"] = _ask_node(stack.enter_context(in_node(SMALL)), _REPEAT)
        results = take_turns(100, contenders)
    what = f"`spawn_detached()`, {SMALL} MB caller"
    for name, (label, goal) in peers.items():
        if name in results:
            yield against(what, results["daemonkit"], label, results[name], goal)
        else:
            yield Row(what, against=f"{label}: {reasons[name]}")


def _large_rows(small: Caller, large: Caller, gigabytes: int, no_c: str | None, no_node: str | None) -> Iterator[Row]:
    what = f"`spawn_detached()`, {gigabytes} GB caller"
    contenders = {
        "large": partial(large.measure, "daemonkit", "-", _REPEAT),
        "small": partial(small.measure, "daemonkit", "-", _REPEAT),
    }
    if not no_c:
        contenders["c"] = partial(large.measure, "c", "-", _REPEAT)
    results = take_turns(100, contenders)
    yield against(what, results["large"], f"itself, {SMALL} MB caller", results["small"], 1.25)
    if not no_c:
        yield against(what, results["large"], "C `posix_spawn` with SETSID", results["c"])
    if no_node:
        yield Row(what, against=f"Node `spawn` detached: {no_node}")
        return
    with in_node(gigabytes << 10) as node:
        contenders = {"large": contenders["large"], "node": _ask_node(node, 1)}
        results = take_turns(20, contenders)
    yield against(what, results["large"], "Node `spawn` detached", results["node"], 1 / 300 if gigabytes >= 4 else None)


def _too_large(gigabytes: int) -> Row | None:
    free = free_gigabytes()
    if free >= 2 * 1.2 * gigabytes:  # one in Python, one in Node
        return None
    return Row(f"`spawn_detached()`, {gigabytes} GB caller", against=f"skipped: {free:.1f} GB of memory are free")


# --- options and signals ------------------------------------------------------------------------------------------


def _flat(what: str, results: dict[str, list[float]]) -> Row:
    return against(f"{what}, 1 GB caller", results["large"], f"itself, {SMALL} MB caller", results["small"], 1.25)


def _compare(
    options: str, peer: str | None, small: Caller, large: Caller | None, rounds: int
) -> dict[str, list[float]]:
    contenders = {"small": partial(small.measure, "daemonkit", options, _REPEAT)}
    if peer:
        contenders["peer"] = partial(small.measure, peer, options, _REPEAT)
    if large:
        contenders["large"] = partial(large.measure, "daemonkit", options, _REPEAT)
    return take_turns(rounds, contenders)


def _option_rows(small: Caller, large: Caller | None) -> Iterator[Row]:
    titles = {option: f"... with `{option}`" for option in _OPTIONS} | {
        "logs": "... with logs",
        "pidfile": "... with a pidfile",
    }
    for options, what in [*titles.items(), ("+".join(_OPTIONS), "... with all of these")]:
        peer = "`Popen` + `PIDLockFile`" if "pidfile" in options else "`Popen`"
        results = _compare(options, "popen", small, large, 80)
        yield against(
            what, results["small"], f"{peer}, the same", results["peer"], 1.3 if "pidfile" in options else 1.15
        )
        if large:
            yield _flat(what, results)


def _signal_rows(small: Caller, large: Caller | None) -> Iterator[Row]:
    peer = "`os.posix_spawn` with `setsid`, `setsigmask`, `setsigdef`"
    for options, what in (
        ("ignored", "... SIGHUP ignored in the caller"),
        ("blocked", "... SIGTERM blocked in the caller"),
        ("ignored+blocked", "... both"),
    ):
        results = _compare(options, "posix_spawn", small, large, 80)
        yield against(what, results["small"], peer, results["peer"], 1.5)
    if large:
        yield _flat(what, results)
        for option in ("cwd", "umask"):
            results = _compare(f"ignored+blocked+{option}", None, small, large, 20)
            yield _flat(f"... both, with `{option}`", results)


# --- many ---------------------------------------------------------------------------------------------------------


def _row_rows(folder: str, no_c: str | None) -> Iterator[Row]:
    """Launch a thousand in a row, some times over, in a caller of its own.

    Nobody waits for the programs, which take the same cores: C's own figures, and the time from a launch to the end of
    the program, tell what of it is theirs.
    """
    with in_python(SMALL, folder) as caller:
        names = ["daemonkit", *([] if no_c else ["c"])]
        contenders = {name: partial(caller.measure, name, "dropped", _IN_A_ROW) for name in names}
        contenders["daemonkit"]()  # what it makes once and keeps is no growth
        before = [int(number) for number in caller.ask("facts").split()]
        for name in names:
            contenders[f"{name} single"] = partial(caller.measure, name, "-", 200)
        contenders["ended"] = partial(caller.measure, "daemonkit", "ended", 200)
        results = take_turns(5, contenders)
        after = [int(number) for number in caller.ask("facts").split()]
    what = f"... {_IN_A_ROW:,} in a row, handles dropped, each"
    yield against(what, results["daemonkit"], "itself, one at a time", results["daemonkit single"])
    yield against(what, results["daemonkit"], "itself, one at a time up to the program's end", results["ended"])
    if not no_c:
        label = "C `posix_spawn`, `waitpid(-1, WNOHANG)`"
        yield against(what, results["daemonkit"], f"{label} in a row", results["c"], 1.1)
        yield against(f"{label}: {_IN_A_ROW:,} in a row, each", results["c"], "one at a time", results["c single"])
    descriptors, threads, _, resident = (new - old for old, new in zip(before, after, strict=True))
    zombies = after[2]
    yield Row(
        f"... left by {6 * _IN_A_ROW:,} of them, after one more call",
        f"descriptors {descriptors:+}, threads {threads:+}, zombies {zombies}, resident {resident:+} KB",
        goal=f"none; < {_GROWTH_KB} KB",
        met=met(descriptors == threads == zombies == 0 and resident < _GROWTH_KB),
    )


def spawn_rows(folder: str) -> Iterator[Row]:
    """Compare launches of detached programs."""
    no_c = compile_helper("spawn", folder)
    no_node = None if shutil.which("node") else "skipped: not installed"
    with in_python(SMALL, folder) as small:
        yield from _small_rows(small, no_c, no_node)
        with ExitStack() as stack:
            large = None
            if too_large := _too_large(1):
                yield too_large
            else:
                large = stack.enter_context(in_python(1 << 10, folder))
                yield from _large_rows(small, large, 1, no_c, no_node)
            yield from _option_rows(small, large)
            yield from _signal_rows(small, large)
        if too_large := _too_large(4):
            yield too_large
        else:
            with in_python(4 << 10, folder) as large:
                yield from _large_rows(small, large, 4, no_c, no_node)
    yield from _row_rows(folder, no_c)
