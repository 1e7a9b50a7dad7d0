"""Show and follow the logs of apps: `daemonkit logs`."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys

from daemonkit.cli import _app

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from typing import BinaryIO, Final, NoReturn

    from daemonkit.cli._app import App

_BLOCK: Final = 1 << 16
_MORE: Final = 100  # lines that are read too, as one of them may tell the time of the first that is shown
_TIME: Final = re.compile(rb"(?:daemonkit: )?(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)[.,]?(\d*)")


def logs(options: argparse.Namespace) -> int:
    apps = _app.select(options.names) if options.names else _app.apps()
    followed: list[_Log] = []
    for app in apps:
        paths = _paths(app, only_errors=options.err)
        if not any(map(os.path.exists, paths)):  # a start that failed leaves a log, and nothing else
            app.must_be_known()
        if options.clear:
            _clear(app, paths)
        label = f"{app.name:<{max(len(one.name) for one in apps)}} | " if len(apps) > 1 else ""
        followed += [_Log(path, label.encode()) for path in paths]
    if not options.clear:
        _show_ends(followed, options.lines)
    if options.follow:
        with contextlib.suppress(KeyboardInterrupt):
            _follow(followed)
    return 0


def _paths(app: App, *, only_errors: bool) -> list[str]:
    settings = app.readable_settings()
    if only_errors and "stderr" in settings:
        paths = (settings["stderr"].replace("{instance}", str(i)) for i in range(_app.count_of(settings)))
        return [*dict.fromkeys(paths)]
    return app.logs()


def _clear(app: App, paths: Sequence[str]) -> None:
    """Empty the logs; those that the default one was rotated to go."""
    for path in _app.rotated(app.default_log):
        if path not in paths:
            os.unlink(path)
    for path in paths:
        if os.path.isfile(path):
            os.truncate(path, 0)


# --- one log ---------------------------------------------------------------------------------------------------------


class _Log:
    """A log that is shown: where it is, how far it was read, and what is before each of its lines."""

    def __init__(self, path: str, label: bytes = b"") -> None:
        self.path = path
        self.label = label
        self.file = _open(path)
        self._part = b""
        """The beginning of a line whose end has not been written yet."""

    def skip(self) -> None:
        """Leave out what there is."""
        if self.file:
            self.file.seek(0, os.SEEK_END)

    def read(self) -> Iterator[bytes]:
        """Return what has been added since, across rotation and truncation.

        Only a log that is rotated twice between two looks loses the lines of the file in between.
        """
        while True:
            newer = None if self.file and _is_same(self.file, self.path) else _open(self.path)
            if self.file:  # after the look at the path: so the last lines before a rotation are in it
                if os.fstat(self.file.fileno()).st_size < self.file.tell():
                    self.file.seek(0)
                while block := self.file.read(_BLOCK):
                    yield block
            if not newer:
                return
            if self.file:
                self.file.close()
            self.file = newer

    def whole_lines(self) -> Iterator[bytes]:
        """Return the lines that have been finished since, each with its label."""
        for block in self.read():
            *lines, self._part = (self._part + block).split(b"\n")
            yield b"".join(b"%s%s\n" % (self.label, line) for line in lines)


def _open(path: str) -> BinaryIO | None:
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a FIFO would keep us waiting
            return None
        return open(path, "rb")
    except FileNotFoundError:
        return None


def _is_same(file: BinaryIO, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


# --- the last lines --------------------------------------------------------------------------------------------------


def _show_ends(shown: Sequence[_Log], count: int) -> None:
    """Print the last lines: of several logs mixed by time."""
    if len(shown) == 1:
        for file, position in _tails(shown[0], count):
            file.seek(position)
            while block := file.read(_BLOCK):
                _write(block)
    elif count:
        lines = [line for log in shown for line in _timed_lines(log, count)]
        lines.sort(key=lambda line: line[0])  # a stable sort: those of one time stay in their order
        _write(b"".join(text for _, text in lines[-count:]))
    sys.stdout.flush()


def _timed_lines(log: _Log, count: int) -> list[tuple[bytes, bytes]]:
    """Return the last lines of a log, each with its label and the time that it says, or that of the line before it."""
    data = b""
    for file, position in _tails(log, count + _MORE):
        file.seek(position)
        data += file.read()
    found = [(_time_of(line), b"%s%s\n" % (log.label, line)) for line in data.splitlines()]
    time = next((time for time, _ in found if time), _last_change(log))
    timed = []
    for own, text in found:
        time = own or time
        timed.append((time, text))
    return timed


def _time_of(line: bytes) -> bytes:
    """Return the time at the beginning of a line, so that times can be compared as text; b'' if there is none."""
    found = _TIME.match(line)
    return b"%s %s.%s" % (found[1], found[2], found[3][:3].ljust(3, b"0")) if found else b""


def _last_change(log: _Log) -> bytes:
    import time

    seconds = os.fstat(log.file.fileno()).st_mtime if log.file else 0.0
    return time.strftime("%Y-%m-%d %H:%M:%S.000", time.localtime(seconds)).encode()


def _tails(log: _Log, count: int) -> list[tuple[BinaryIO, int]]:
    """Return the files that hold the last `count` lines, the oldest first, and where the lines begin in each."""
    found: list[tuple[BinaryIO, int]] = []
    part = log.file
    while part:
        position, count = _tail_of(part, count)
        found.insert(0, (part, position))
        part = _open(f"{log.path}.{len(found)}") if count else None
    return found


def _tail_of(file: BinaryIO, count: int) -> tuple[int, int]:
    """Return where the last `count` lines begin, and how many of them are missing. Nothing before them is read."""
    end = position = file.seek(0, os.SEEK_END)
    while position and count:
        start = max(position - _BLOCK, 0)
        file.seek(start)
        block = file.read(position - start)
        before = len(block) - 1 if position == end else len(block)  # no line begins after the end of the last one
        while (found := block.rfind(b"\n", 0, before)) >= 0:
            count -= 1
            if not count:
                return start + found + 1, 0
            before = found
        position = start
    return (0, count - 1) if end and count else (end, count)


def _write(data: bytes) -> None:
    try:
        sys.stdout.buffer.write(data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


# --- what is added ---------------------------------------------------------------------------------------------------


def _follow(followed: Sequence[_Log], until: int | None = None) -> None:
    """Print what is added to the logs, until the descriptor has met its end."""
    from daemonkit.cli._watch import Watch

    with Watch(os.path.dirname(log.path) for log in followed) as watch:
        done = False
        while True:
            for log in followed:
                for data in log.read() if len(followed) == 1 else log.whole_lines():
                    _write(data)
            try:
                sys.stdout.flush()
            except OSError as error:
                raise OSError(error.errno, error.strerror, "standard output") from error
            if done:
                return
            done = watch.wait(until)


@contextlib.contextmanager
def shown_meanwhile(paths: Sequence[str]) -> Iterator[None]:
    """Print what is added to the logs while the body runs, and all of it: by a child, so that no stdout holds it up."""
    from daemonkit._system.fork import fork_child

    followed = [_Log(path) for path in paths]
    for log in followed:
        log.skip()
    reader, writer = os.pipe()
    child = fork_child(lambda: _show_until(followed, reader, writer))
    os.close(reader)
    for log in followed:
        if log.file:
            log.file.close()
    try:
        yield
    finally:
        os.close(writer)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def _show_until(followed: Sequence[_Log], reader: int, writer: int) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a terminal sends them to its whole group
        signal.signal(number, signal.SIG_IGN)
    os.close(writer)  # the supervisor's end, and a worker's that was forked from it
    with contextlib.suppress(OSError):
        _follow(followed, reader)
    os._exit(0)
