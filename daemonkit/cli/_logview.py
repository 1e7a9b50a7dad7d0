"""Show and follow an app's log: `daemonkit logs`."""

from __future__ import annotations

import contextlib
import os
import sys

from daemonkit.cli._app import App

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import BinaryIO, Final, NoReturn

_LOOK: Final = 0.1  # seconds between two looks: the standard library can't wait for a change (inotify)
_BLOCK: Final = 1 << 16


def logs(options: argparse.Namespace) -> int:
    app = App(options.name)
    path = app.log()
    if not os.path.exists(path):  # a start that failed leaves a log, and nothing else
        app.must_be_known()
    file = _open(path)
    if file:
        for part, position in _tails(path, file, options.lines):
            _show(part, position)
    if options.follow:
        with contextlib.suppress(KeyboardInterrupt):
            _follow(path, file)
    return 0


def _open(path: str) -> BinaryIO | None:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        return None


def _tails(path: str, file: BinaryIO, count: int) -> list[tuple[BinaryIO, int]]:
    """Return the files that hold the last `count` lines, the oldest first, and where the lines begin in each."""
    found: list[tuple[BinaryIO, int]] = []
    part: BinaryIO | None = file
    while part:
        position, count = _tail_of(part, count)
        found.insert(0, (part, position))
        part = _open(f"{path}.{len(found)}") if count else None
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


def _show(file: BinaryIO, position: int) -> None:
    file.seek(position)
    try:
        while part := file.read(_BLOCK):
            sys.stdout.buffer.write(part)
        sys.stdout.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def _follow(path: str, file: BinaryIO | None) -> NoReturn:
    """Print what is added to the log, across rotation and truncation.

    Only a log that is rotated twice between two looks loses the lines of the file in between.
    """
    import threading

    pause = threading.Event()
    while True:
        newer = None if file and _is_same(file, path) else _open(path)
        if file:  # after the look at the path: so the last lines before a rotation are in it
            _show(file, file.tell() if os.fstat(file.fileno()).st_size >= file.tell() else 0)
        if newer:
            if file:
                file.close()
            file = newer
        else:
            pause.wait(_LOOK)


def _is_same(file: BinaryIO, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
