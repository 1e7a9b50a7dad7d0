"""An app's log: `daemonkit logs`."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Final, NoReturn

from daemonkit.cli import _app
from daemonkit.cli._app import App

if TYPE_CHECKING:
    import argparse

_LOOK: Final = 0.1  # seconds between looks at a file that tells no one when it changes


def logs(options: argparse.Namespace) -> int:
    app = App(options.name)
    app.must_be_known()
    path = app.log()
    sys.stdout.writelines(_tail(path, options.lines))
    sys.stdout.flush()
    if options.follow:
        with contextlib.suppress(KeyboardInterrupt):
            _follow(path)
    return 0


def _tail(path: str, count: int) -> list[str]:
    from collections import deque

    try:
        with open(path, encoding="utf-8", errors="backslashreplace", newline="") as file:
            return list(deque(file, maxlen=count))
    except FileNotFoundError:
        return []


def _follow(path: str) -> NoReturn:
    """Print what is added to the log, across rotation and truncation.

    It looks ten times a second: the standard library has no inotify, and a reader is none of the app's business.
    """
    import threading

    pause = threading.Event()
    file, position = None, _app.size_of(path)
    while True:
        if file is None:
            with contextlib.suppress(FileNotFoundError):
                file = open(path, "rb")  # noqa: SIM115 - for as long as it is the log
                file.seek(position)
        if file:
            rotated = not _is_same(file.fileno(), path)  # before the last look, so that it sees all there is
            if os.fstat(file.fileno()).st_size < file.tell():
                file.seek(0)
            while part := file.read(1 << 16):
                sys.stdout.buffer.write(part)
            sys.stdout.buffer.flush()
            if rotated:
                file.close()
                file, position = None, 0
                continue
        pause.wait(_LOOK)


def _is_same(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
