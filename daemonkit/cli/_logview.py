"""An app's log: `daemonkit logs`."""

from __future__ import annotations

import contextlib
import os
import sys

from daemonkit.cli._app import App

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import BinaryIO, Final, NoReturn

_LOOK: Final = 0.1  # seconds between looks at a file that tells no one when it changes
_BLOCK: Final = 1 << 16


def logs(options: argparse.Namespace) -> int:
    app = App(options.name)
    path = app.log()
    if not os.path.exists(path):  # it is all that is left of a start that failed
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
    """Return where the last `count` lines begin: also in what the log was rotated to, the oldest first."""
    found: list[tuple[BinaryIO, int]] = []
    part: BinaryIO | None = file
    while part:
        position, count = _tail_of(part, count)
        found.insert(0, (part, position))
        part = _open(f"{path}.{len(found)}") if count else None
    return found


def _tail_of(file: BinaryIO, count: int) -> tuple[int, int]:
    """Return where the last `count` lines begin, and how many are missing; what is before them is not read."""
    end = position = file.seek(0, os.SEEK_END)
    while position and count:
        start = max(position - _BLOCK, 0)
        file.seek(start)
        block = file.read(position - start)
        before = len(block) - 1 if position == end else len(block)  # the last line's own end begins no other
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

    It looks ten times a second: the standard library has no inotify, and a reader is none of the app's business.
    """
    import threading

    pause = threading.Event()
    while True:
        rotated = file and not _is_same(file, path)  # before the last look, so that it sees all there is
        if file:
            _show(file, file.tell() if os.fstat(file.fileno()).st_size >= file.tell() else 0)
        if not file or rotated:
            newer = _successor(file, path) if file else _open(path)
            if newer:
                if file:
                    file.close()
                file = newer
                continue
        pause.wait(_LOOK)


def _successor(file: BinaryIO, path: str) -> BinaryIO | None:
    """Return the log that was begun after this one: PATH.2 is followed by PATH.1, that by PATH; None: look again."""
    number = gap = 0
    while gap < 2:  # a rotation that is under way makes one
        number += 1
        old = f"{path}.{number}"
        gap = 0 if os.path.exists(old) else gap + 1
        if _is_same(file, old):
            newer = _open(f"{path}.{number - 1}" if number > 1 else path)
            if newer and _is_same(file, old):
                return newer
            if newer:  # rotated once more meanwhile
                newer.close()
            return None
    return _open(path)


def _is_same(file: BinaryIO, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
