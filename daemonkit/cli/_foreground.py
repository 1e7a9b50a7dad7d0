"""`daemonkit run -f FILE`: all apps of a file in the foreground, as one program.

Each app is a supervisor of its own, as with `daemonkit run NAME`, in a child of this process, which passes on what they
write, keeps their order, and reaps whatever else becomes its child as process 1. What happens is recorded, by signal
handlers and pipes; `_step` then compares what is with what should be, and starts and stops what it can.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import sys
import time

from daemonkit._detach.notify import connect_manager, tell_manager
from daemonkit._system.fork import fork_child
from daemonkit._system.prctl import die_with_parent
from daemonkit._system.process import terminal_has_gone
from daemonkit._system.wait import pause
from daemonkit.cli import _app, _appfile, _mixed, _plan, _say, _start, _tasks
from daemonkit.cli._app import App
from daemonkit.cli._change import reload_app
from daemonkit.cli._mixed import Sink, Source
from daemonkit.cli._settings import present_environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import Final, NoReturn

    from daemonkit.cli._app import Settings
    from daemonkit.cli._appfile import AppFile, Wish

_HEARD: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_LAST_WORDS: Final = 5.0  # seconds that a reader has to take the rest of the output
_BEGIN: Final = 5.0  # seconds, far more than a supervisor takes to begin


def run_file(options: argparse.Namespace) -> int:
    file = _appfile.read(_appfile.find(options.file))
    can_be_seen = True
    try:
        _app.make_home()
        if not os.access(_app.home(), os.W_OK):
            raise PermissionError(errno.EACCES, "it can't be written to", _app.home())
    except OSError as error:  # in a container that can't be written to
        can_be_seen = False
        _say.say(f"{_say.in_one_line(error)}; the apps run, but ls, status and stop do not see them")
    for name in file.apps if can_be_seen else ():
        app = App(name)
        if app.is_known and (settings := app.readable_settings()):
            _plan.refuse_foreign(name, settings, file.path)
        if holder := app.holder():
            raise _say.Failure(f"{name} runs already, as process {holder.pid}; stop it first: daemonkit stop {name}")
    return _Foreground(file, until_any=options.until == "any", can_be_seen=can_be_seen).run()


class _Member:
    """An app that has been started here."""

    def __init__(self, wish: Wish, pid: int, ready: int, sources: tuple[Source, Source]) -> None:
        self.wish = wish
        self.pid = pid
        self.ready: int | None = ready
        """The read end of a pipe that tells when it is up."""
        self.sources = sources
        self.is_up = False
        self.status: int | None = None
        """Its exit status, once it has ended."""
        self.was_told = False
        """Whether it has been told to stop."""
        self.is_obsolete = False
        """Whether the file says something else of it now, or nothing."""
        self.is_reloading = False

    @property
    def runs(self) -> bool:
        return self.status is None

    @property
    def counts_as_up(self) -> bool:
        return self.status == 0 or (self.runs and self.is_up)

    def hear_ready(self) -> None:
        """Take note that it is up, or that it never will be."""
        if self.ready is not None:
            self.is_up = bool(os.read(self.ready, 1))
            os.close(self.ready)
            self.ready = None

    def end(self, status: int) -> None:
        """Take note of its end."""
        if self.ready is not None:
            self.hear_ready()
        self.status = status
        for source in self.sources:
            source.close()

    def tell(self, number: int) -> None:
        """Send it a signal; it is a child that has not been waited for, so the number is its own."""
        self.was_told = True
        os.kill(self.pid, number)


class _Foreground:
    def __init__(self, file: AppFile, *, until_any: bool, can_be_seen: bool) -> None:
        self._file = file
        self._can_be_seen = can_be_seen
        self._until_any = until_any
        self._members: dict[str, _Member] = {}
        self._stopping = False
        self._result: int | None = None
        self._failed = False
        self._told_ready = False
        self._given_up: set[str] = set()
        self._reloads: dict[int, tuple[str, Wish, int]] = {}
        """Of each child that waits for a reload, by its pid: the app, what is wished, and the file for its messages."""
        self._heard: list[int] = []
        out, err = sys.stdout.fileno(), sys.stderr.fileno()
        self._out = Sink(out)
        self._err = self._out if os.path.samestat(os.fstat(out), os.fstat(err)) else Sink(err)
        self._manager = connect_manager()
        self._nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        self._has_terminal = not terminal_has_gone()
        self._colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self._prefixes = _mixed.prefixes(file.apps, colour=self._colour)

    def run(self) -> int:
        """Run them until none is left; return the exit status."""
        sys.stdout.flush()
        sys.stderr.flush()
        _start.share_what_supervisors_load()
        with self._recorded_signals() as wake:
            self._reap()  # what ended before SIGCHLD was heard, of whoever was this process before
            while self._step():
                self._wait(wake)
        self._finish()
        return int(self._failed) if self._result is None else self._result

    @contextlib.contextmanager
    def _recorded_signals(self) -> Iterator[int]:
        """Record signals, and have a descriptor tell that there is one."""
        self._wakers = socket.socketpair()
        for end in self._wakers:
            end.setblocking(False)
        signal.set_wakeup_fd(self._wakers[1].fileno(), warn_on_full_buffer=False)
        for number in _HEARD:
            signal.signal(number, lambda number, _frame: self._heard.append(number))
        yield self._wakers[0].fileno()
        signal.set_wakeup_fd(-1)

    # --- what is done -----------------------------------------------------------------------------------------------

    def _step(self) -> bool:
        """Start and stop what can be; return whether anything is left to wait for."""
        for name in self._to_stop():
            self._members[name].tell(signal.SIGTERM)
        for name in self._to_start():
            self._start(name)
        if not self._stopping and not self._told_ready and self._all_are_up():
            self._told_ready = True
            tell_manager(self._manager, READY="1", STATUS=f"{len(self._file.apps)} up")
        return any(member.runs for member in self._members.values())

    def _to_start(self) -> list[str]:
        """Return those that have not been started, and come after none that is not up."""
        if self._stopping:
            return []
        missing = [name for name in self._file.apps if name not in self._members]
        for name in missing:
            failed = [other for other in self._file.apps[name].after if self._has_failed(other)]
            if failed and name not in self._given_up:
                self._given_up.add(name)
                self._say(f"{name} is not started: it comes after {failed[0]}, which is not up")
        return [name for name in missing if all(map(self._counts_as_up, self._file.apps[name].after))]

    def _to_stop(self) -> list[str]:
        """Return those that are to stop now: the file says so, or all are to, and none that comes after it runs."""
        running = {name: member for name, member in self._members.items() if member.runs}
        waits_for = {other for member in running.values() for other in member.wish.after}
        return [
            name
            for name, member in running.items()
            if not member.was_told and (member.is_obsolete or (self._stopping and name not in waits_for))
        ]

    def _counts_as_up(self, name: str) -> bool:
        return name in self._members and self._members[name].counts_as_up

    def _has_failed(self, name: str) -> bool:
        """Tell whether it has ended for good, and not as wished, or is never started."""
        member = self._members.get(name)
        return name in self._given_up or bool(member and member.status)

    def _all_are_up(self) -> bool:
        return all(map(self._counts_as_up, self._file.apps))

    def _start(self, name: str) -> None:
        wish = self._file.apps[name]
        settings = self._settings_of(wish)
        pipes = [os.pipe() for _ in range(3)]
        pid = fork_child(lambda: self._become(name, settings, [writer for _, writer in pipes]))
        for _, writer in pipes:
            os.close(writer)
        (ready, _), (out, _), (err, _) = pipes
        prefix = self._prefixes[name]
        sources = (Source(out, prefix, self._out), Source(err, prefix, self._err))
        self._members[name] = _Member(wish, pid, ready, sources)

    def _settings_of(self, wish: Wish) -> Settings:
        more = {"file": self._file.path, "after": [*wish.after], "environment": present_environment()}
        return wish.settings | more

    def _become(self, name: str, settings: Settings, writers: list[int]) -> NoReturn:
        """Be an app's supervisor, in the child."""
        parent = os.getppid()
        die_with_parent()
        if os.getppid() != parent:
            os._exit(1)
        os.setsid()  # a Ctrl-C is for the parent, which keeps the order
        signal.set_wakeup_fd(-1)
        for number in _HEARD:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        ready, out, err = writers
        os.dup2(out, 1)
        os.dup2(err, 2)
        self._close_all()
        os.environ.pop("NOTIFY_SOCKET", None)  # the parent's
        status = 1
        try:
            app = App(name) if self._can_be_seen else None
            status = _start.keep_in_foreground(name, settings, lambda: os.write(ready, b"1"), app=app)
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
            if isinstance(error.code, str):
                _say.say(error.code)
        except Exception as error:  # noqa: BLE001 - any failure is one line
            _say.say(_say.in_one_line(error))
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)

    def _close_all(self) -> None:
        """Close, in a child, what is the parent's."""
        for end in self._wakers:
            end.close()
        if self._manager:
            self._manager.close()
        for member in self._members.values():
            if member.ready is not None:
                os.close(member.ready)
            for source in member.sources:
                with contextlib.suppress(OSError):  # closed with its app
                    os.close(source.fd)

    # --- what happens -----------------------------------------------------------------------------------------------

    def _wait(self, wake: int) -> None:
        """Wait until something happens, and take note of it."""
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        running = [member for member in self._members.values() if member.runs]
        sources = {source.fd: source for member in running for source in member.sources if not source.sink.is_full}
        ready = {member.ready: member for member in running if member.ready is not None}
        for fd in (*sources, *ready):
            poll.register(fd, select.POLLIN)
        sinks = {sink.fd: sink for sink in (self._out, self._err) if sink.waits}
        for fd in sinks:
            poll.register(fd, select.POLLOUT)
        for fd, _ in poll.poll():
            if fd in sinks:
                sinks[fd].write()
            elif fd in sources:
                sources[fd].read()
            elif fd in ready:
                ready[fd].hear_ready()
        with contextlib.suppress(BlockingIOError):
            while self._wakers[0].recv(512):
                pass
        heard, self._heard = self._heard, []
        for number in dict.fromkeys(heard):
            self._hear(number, heard.count(number))

    def _hear(self, number: int, times: int) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif number == signal.SIGHUP and self._has_terminal and terminal_has_gone():
            self._has_terminal = False  # so a later SIGHUP is not from it
            if not self._nohup:
                self._stop()
        elif number == signal.SIGHUP:
            self._read_anew()
        else:
            for _ in range(times):
                self._stop()

    def _stop(self) -> None:
        """Have all end, the last one first; asked again, at once."""
        if self._stopping:
            for member in self._members.values():
                if member.runs:
                    member.tell(signal.SIGTERM)
                    member.tell(signal.SIGINT)  # the second one kills; two SIGTERMs can be one
        self._stopping = True

    def _reap(self) -> None:
        """Take the statuses of all children that have ended: those that others have left, too."""
        by_pid = {member.pid: name for name, member in self._members.items() if member.runs}
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if pid in by_pid:
                    self._ended(by_pid[pid], os.waitstatus_to_exitcode(status))
                elif pid in self._reloads:
                    self._reloaded(*self._reloads.pop(pid), well=status == 0)

    def _ended(self, name: str, status: int) -> None:
        member = self._members[name]
        member.end(status)
        if member.was_told and not self._stopping:  # it is obsolete, or was: the file may have it again by now
            del self._members[name]
            return
        self._failed = self._failed or status != 0
        if not self._stopping:
            how = f"with status {status}" if status >= 0 else f"by signal {-status}"
            self._say(f"{name} has ended {how}")
            if self._until_any:
                self._result = status if status >= 0 else 128 - status
                self._stopping = True

    def _read_anew(self) -> None:
        """Take over what the file says now; if it is bad, all stays as it is."""
        try:
            new = _appfile.read(self._file.path)
        except (OSError, ValueError) as error:
            self._say(f"{_say.in_one_line(error)}; everything stays as it is")
            return
        self._file = new
        self._prefixes = _mixed.prefixes(new.apps, colour=self._colour)
        self._given_up.clear()
        for name in [*self._members]:
            self._compare(name)

    def _compare(self, name: str) -> None:
        """Have a member be as the file says, if it is not; one that reloads, or stops, is compared after that."""
        member, wish = self._members[name], self._file.apps.get(name)
        if member.is_reloading or (member.was_told and member.runs):
            return
        if wish and not _plan.differences(wish.settings, member.wish.settings):
            member.wish = wish
            member.is_obsolete = False
        elif member.runs and wish and self._can_be_seen:
            self._reload(name, wish)
        elif member.runs:
            member.is_obsolete = True
        else:
            del self._members[name]

    def _reload(self, name: str, wish: Wish) -> None:
        """Have an app's instances replaced by such as the file asks for now, by a child that waits for them."""
        app, settings = App(name), self._settings_of(wish)
        self._members[name].is_reloading = True

        def task() -> str:
            signal.set_wakeup_fd(-1)
            _wait_until_begun(app)
            reload_app(app, settings)
            return "reloaded"

        done, messages = (os.memfd_create(what) for what in ("done", "messages"))
        pid = fork_child(lambda: _tasks.perform(task, done, messages))
        os.close(done)
        self._reloads[pid] = name, wish, messages

    def _reloaded(self, name: str, wish: Wish, messages: int, *, well: bool) -> None:
        self._err.add(_tasks.content(messages).encode(errors="backslashreplace"))
        os.close(messages)
        member = self._members[name]
        member.is_reloading = False
        if well:
            member.wish = wish
        now = self._file.apps.get(name)
        if not self._stopping and (not member.runs or not now or _plan.differences(now.settings, wish.settings)):
            self._compare(name)

    def _say(self, text: str) -> None:
        self._err.add(f"{_say.OWN}{text}\n".encode(errors="surrogateescape"))  # the file's name may be any bytes

    def _finish(self) -> None:
        """Write the rest, as far as somebody reads it."""
        end = time.monotonic() + _LAST_WORDS
        for sink in (self._out, self._err):
            poll = select.poll()
            poll.register(sink.fd, select.POLLOUT)
            while sink.waits and poll.poll(max(end - time.monotonic(), 0) * 1000):
                sink.write()


def _wait_until_begun(app: App) -> None:
    """Wait until an app that has just been started can be reloaded."""
    end = time.monotonic() + _BEGIN
    while not app.running_state() and time.monotonic() < end:
        pause(_app.LOOK)
