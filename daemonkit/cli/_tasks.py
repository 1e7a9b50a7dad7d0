"""What is done to several apps side by side: each task in a process of its own, as early as the order allows."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections import namedtuple

from daemonkit._system.fork import fork_child
from daemonkit._system.prctl import die_with_parent
from daemonkit.cli import _say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Final, NoReturn

    from daemonkit.cli._plan import Schedule

    Task = Callable[[], str]
    """Returns what it has done, in a word or two; raises, or says why not on stderr and returns ""."""

_REDRAW: Final = 0.25  # seconds
_INTERRUPTED: Final = 130


class Outcome(namedtuple("Outcome", ("done", "messages"))):
    """How a task ended."""

    __slots__ = ()
    done: str
    """What it has done; empty if it failed."""
    messages: str
    """What it wrote to stderr."""


class _Process:
    """A task that is under way."""

    def __init__(self, task: Task) -> None:
        """Fork."""
        sys.stdout.flush()
        sys.stderr.flush()
        self.begun = time.monotonic()
        self._done, self._messages = (os.memfd_create(name) for name in ("done", "messages"))
        self._pid = fork_child(lambda: perform(task, self._done, self._messages))
        self.pidfd = os.pidfd_open(self._pid)

    def interrupt(self) -> None:
        """Have it end what it does."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGINT)

    def outcome(self) -> Outcome:
        """Return how it ended, once it has."""
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        done, messages = (content(number) for number in (self._done, self._messages))
        for number in (self._done, self._messages, self.pidfd):
            os.close(number)
        if status not in {0, 1, _INTERRUPTED}:
            messages += f"daemonkit: it ended unexpectedly, with status {status}\n"
        return Outcome("" if status else done, messages)


def content(number: int) -> str:
    """Return what is in such a file."""
    return os.pread(number, os.fstat(number).st_size, 0).decode(errors="backslashreplace")


def perform(task: Task, done: int, messages: int) -> NoReturn:
    """Do it, in a child; put what was done, and what is said of it, into these files."""
    parent = os.getppid()
    die_with_parent()  # whoever types the command again is not to meet what is left of this one
    if os.getppid() != parent:
        os._exit(_INTERRUPTED)
    signal.signal(signal.SIGINT, interrupt_once)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(messages, 2)
    status = 1
    try:
        text = task()
        os.write(done, text.encode(errors="surrogateescape"))
        status = 0 if text else 1
    except (KeyboardInterrupt, _say.Interrupted):
        status = _INTERRUPTED
    except Exception as error:  # noqa: BLE001 - any failure is one line
        _say.fail(error)
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(status)


def interrupt_once(number: int, _frame: object) -> NoReturn:
    """Handle a SIGINT: the terminal and the parent may send one each."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def carry_out(
    tasks: Mapping[str, tuple[str, Task]], schedule: Schedule, tell: Callable[[str, Outcome], None]
) -> tuple[dict[str, Outcome], dict[str, str]]:
    """Do all tasks; return how they ended, and those that were left out, each with the one that it comes after.

    A task is given with the word for what it does. `tell` is called with each that has ended. After a Ctrl-C the tasks
    under way end what they do, and none is begun.
    """
    outcomes: dict[str, Outcome] = {}
    left_out: dict[str, str] = {}
    running: dict[str, _Process] = {}
    lines, interrupted = _Lines(), False
    while True:
        try:
            if not interrupted:
                ready, never = schedule.begin()
                left_out |= never
                for name in ready:
                    running[name] = _Process(tasks[name][1])
            if not running:
                break
            lines.show(tasks, running, schedule.left)
            for name in _ended(running, lines):
                outcomes[name] = running.pop(name).outcome()
                schedule.done(name, well=bool(outcomes[name].done))
                lines.erase()
                tell(name, outcomes[name])
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one could only leave the rest unsaid
            interrupted = True
            for process in running.values():
                process.interrupt()
    lines.erase()
    if interrupted:
        raise KeyboardInterrupt
    return outcomes, left_out


def _ended(running: Mapping[str, _Process], lines: _Lines) -> list[str]:
    """Wait until one has ended, or the terminal's lines are to be drawn anew."""
    poll = select.poll()
    for process in running.values():
        poll.register(process.pidfd, select.POLLIN)
    found = {number for number, _ in poll.poll(_REDRAW * 1000 if lines.shown_at_all else None)}
    return [name for name, process in running.items() if process.pidfd in found]


class _Lines:
    """On a terminal: a line for each task that has not ended, below what has been told."""

    def __init__(self) -> None:
        self.shown_at_all = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._count = 0

    def erase(self) -> None:
        if self._count:
            with contextlib.suppress(OSError):  # the terminal has gone, and what is done goes on
                sys.stderr.write(f"\r\x1b[{self._count}A\x1b[J")
                sys.stderr.flush()
            self._count = 0

    def show(self, tasks: Mapping[str, tuple[str, Task]], running: Mapping[str, _Process], left: set[str]) -> None:
        if not self.shown_at_all:
            return
        now = time.monotonic()
        texts = [f"{name}: {tasks[name][0]}, {now - process.begun:.0f} s" for name, process in running.items()]
        texts += [f"{name}: waits" for name in tasks if name in left and name not in running]
        try:
            size = os.get_terminal_size(sys.stderr.fileno())
        except OSError:
            return
        if len(texts) >= size.lines > 1:
            texts = [*texts[: size.lines - 2], f"and {len(texts) - size.lines + 2} more"]
        self.erase()
        with contextlib.suppress(OSError):
            sys.stderr.write("".join(f"{text[: max((size.columns or 80) - 1, 1)]}\n" for text in texts))
            sys.stderr.flush()
        self._count = len(texts)
