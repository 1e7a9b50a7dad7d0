"""The files that become 0, 1 and 2 of the program, and the caller's ends of its pipes."""

from __future__ import annotations

import os

from daemonkit._constants import DEVNULL, INHERIT, PIPE, STDOUT, stands_for
from daemonkit._system.descriptors import inode
from daemonkit._system.streams import STREAM_NAMES, check_stream, open_source, remove_if_empty
from daemonkit._system.unpatched import close

TYPE_CHECKING = False
if TYPE_CHECKING:
    import contextlib
    from typing import IO

    from daemonkit._system.streams import StreamOption
    from daemonkit._system.users import Owner

    Streams = tuple[StreamOption, StreamOption, StreamOption]
    """What `stdin`, `stdout` and `stderr` are given as."""


def check_streams(options: Streams, data: object) -> None:
    """Refuse streams and an input that can't be used: TypeError, ValueError."""
    for name, value in zip(STREAM_NAMES, options, strict=True):
        if value is not None and not stands_for(value, PIPE, INHERIT):
            check_stream(name, value)
    if data is None:
        return
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"input must be bytes, not {data!r}")
    if options[0] is not None:
        raise ValueError("input goes to stdin, so stdin can't be given too")


def open_streams(  # noqa: PLR0913, PLR0917 - options, and what closes or undoes what is opened for them
    options: Streams,
    data: bytes | bytearray | memoryview | None,
    null: int,
    umask: int | None,
    owner: Owner | None,
    opened: list[int],
    undo: contextlib.ExitStack,
) -> tuple[tuple[int, ...], dict[str, IO[bytes]]]:
    """Return the descriptors that become 0, 1 and 2, and the caller's ends of the pipes by name.

    The former are put into `opened`. `undo` closes the latter, and removes a log that was created for a start that
    failed.
    """
    fds: list[int] = []
    pipes: dict[str, IO[bytes]] = {}
    for number, value in enumerate(options):
        if number == 0 and data is not None:
            fd = input_file(data)
        elif value is None or stands_for(value, DEVNULL):
            fds.append(null)
            continue
        elif stands_for(value, STDOUT) and number == 2:
            fds.append(fds[1])
            continue
        elif stands_for(value, PIPE):
            fd, pipe = _pipe(number)
            pipes[STREAM_NAMES[number]] = pipe
            undo.callback(pipe.close)
        else:
            given = number if stands_for(value, INHERIT) else value
            source = open_source(STREAM_NAMES[number], given, umask, owner)
            fd = source.fd
            if source.created and source.path:
                undo.callback(remove_if_empty, source.path, inode(fd))
        fds.append(fd)
        opened.append(fd)
    return tuple(fds), pipes


def input_file(data: bytes | bytearray | memoryview) -> int:
    """Return a file in memory with the data, at its start. Unlike a pipe it is complete when the caller ends."""
    fd = os.memfd_create("daemonkit-input")
    try:
        with memoryview(data).cast("B") as rest:
            done = 0
            while done < len(rest):
                done += os.write(fd, rest[done:])
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        close(fd)
        raise
    return fd


def _pipe(number: int) -> tuple[int, IO[bytes]]:
    reader, writer = os.pipe()
    if number == 0:
        return reader, open(writer, "wb")
    return writer, open(reader, "rb")
