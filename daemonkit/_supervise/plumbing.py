"""What the descriptors 0, 1 and 2 of an instance are: files, pipes to a pump, or what the supervisor itself has."""

from __future__ import annotations

import contextlib
import os
import resource
import stat
import time

from daemonkit._constants import INHERIT, PIPE, STDOUT, stands_for
from daemonkit._supervise.logs import Descriptor, Log
from daemonkit._supervise.pump import Pump
from daemonkit._system.check import absolute_path, check_path
from daemonkit._system.record import field, record, replace
from daemonkit._system.streams import check_stream, open_log, open_source
from daemonkit._system.unpatched import close, genuine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Final

    from daemonkit._supervise.logs import Sink
    from daemonkit._system.streams import StreamOption
    from daemonkit._system.users import Owner

_READ: Final = 1 << 18  # bytes
_SPARE: Final = 64  # descriptors that the calling process keeps for other things than pipes


@record(frozen=True)
class Stream:
    """Where one of an instance's descriptors 0, 1, 2 comes from, at each start anew."""

    fd: int | None = None
    """A descriptor of the supervisor's; its own 0, 1 or 2 where it is inherited."""
    path: str | None = None
    """May have {instance} in it."""
    blocking: bool = True
    """How the descriptor was before a run could set O_NONBLOCK, which all that have it open share."""

    def path_of(self, index: int) -> str | None:
        """Return the path for one instance."""
        return None if self.path is None else of_instance(self.path, index)


@record(frozen=True)
class LogOptions:
    """How logs are kept."""

    max_bytes: int | None
    backups: int
    format: str | None
    umask: int | None
    owner: Owner | None


@record(frozen=True)
class Pipe:
    """The descriptors of a pump, as the worker and the instances need them."""

    reader: int
    writer: int
    log: int
    path: str | None
    """Of the log; None if that was handed in open."""


@record(frozen=True)
class Plumbing:
    """What the instances are given."""

    streams: tuple[Stream, Stream, Stream] = (Stream(), Stream(), Stream())
    pipes: dict[tuple[int, int], Pipe] = field(default_factory=dict)
    """By (descriptor, instance)."""

    def descriptors(self) -> set[int]:
        """Return all that was opened for them, above 2."""
        found = {fd for pipe in self.pipes.values() for fd in (pipe.reader, pipe.writer, pipe.log)}
        return {fd for fd in found | {stream.fd for stream in self.streams if stream.fd is not None} if fd > 2}

    def moved(self, to: Mapping[int, int]) -> Plumbing:
        """Return the same with other numbers for the descriptors above 2."""
        streams = [
            stream if stream.fd is None else replace(stream, fd=to.get(stream.fd, stream.fd)) for stream in self.streams
        ]
        pipes = {
            key: Pipe(to[pipe.reader], to[pipe.writer], to.get(pipe.log, pipe.log), pipe.path)
            for key, pipe in self.pipes.items()
        }
        return Plumbing((streams[0], streams[1], streams[2]), pipes)

    def drain(self, umask: int | None, owner: Owner | None) -> None:
        """Write what the pipes hold; for the worker, once the calling process was killed. Nothing is rotated then."""
        for pipe in set(self.pipes.values()):
            with contextlib.suppress(OSError):
                while data := genuine(os.read)(pipe.reader, _READ):
                    fd = pipe.log if pipe.path is None else open_log(pipe.path, umask, owner)[0]
                    genuine(os.write)(fd, data)
                    if pipe.path is not None:
                        close(fd)


@record(frozen=True)
class Logs:
    """The calling process's side: where lines come from, and go to."""

    sinks: dict[object, Sink] = field(default_factory=dict)
    """By path, or by device and inode."""
    pumps: dict[tuple[object, int], Pump] = field(default_factory=dict)
    """By the key of the sink, and instance."""
    in_use: frozenset[Pump] = frozenset()
    """Those that runs print to."""
    by_stream: dict[tuple[int, int], Pump] = field(default_factory=dict)
    """The same by (descriptor, instance)."""
    options: LogOptions | None = None
    shared: frozenset[object] = frozenset()
    """The keys of sinks that several instances write to."""

    def put_in_force(self) -> None:
        """Have logs and pumps go by these options from now on."""
        if self.options:
            for sink in self.sinks.values():
                sink.configure(self.options.max_bytes, self.options.backups, self.options.umask, self.options.owner)
            for (key, index), pump in self.pumps.items():
                pump.configure(whole_lines=key in self.shared, prefix=_prefix(self.options.format, index))


def of_instance(template: str, index: int) -> str:
    """Return a text whose ``{instance}`` is the instance's number."""
    return template.replace("{instance}", str(index))


def settle_streams(
    options: Mapping[str, StreamOption], count: int, umask: int | None, stack: contextlib.ExitStack
) -> tuple[Stream, Stream, Stream]:
    """Return what the options `stdin`, `stdout`, `stderr` mean; the stack closes what was opened."""
    found: list[Stream] = []
    for number, (name, value) in enumerate(options.items()):
        if stands_for(value, PIPE):
            raise ValueError(f"{name}: PIPE can't be used here, as nobody reads it; give a path or a descriptor")
        if isinstance(value, (str, bytes, os.PathLike)):
            check_path(name, value)
            if name == "stdin":
                for index in range(count):
                    close(open_source(name, of_instance(os.fsdecode(value), index), umask).fd)
            found.append(Stream(path=absolute_path(os.fsdecode(value))))
        elif stands_for(value, INHERIT) or (value is None and number):
            found.append(_handed_on(number))
        else:
            check_stream(name, value)
            if stands_for(value, STDOUT) and name == "stderr":
                found.append(found[1])
                continue
            source = open_source(name, value, umask)
            stack.callback(close, source.fd)
            found.append(_handed_on(source.fd))
    return found[0], found[1], found[2]


def _handed_on(fd: int) -> Stream:
    return Stream(fd=fd, blocking=os.get_blocking(fd))


def lay(
    streams: tuple[Stream, Stream, Stream], count: int, options: LogOptions, known: Logs, stack: contextlib.ExitStack
) -> tuple[Plumbing, Logs]:
    """Open the logs, and a pipe for each instance and log, but those that are known; the stack closes them. OSError."""
    sinks, pumps = dict(known.sinks), dict(known.pumps)
    keys: dict[tuple[int, int], object] = {}
    for number in (1, 2):
        for index in range(count):
            key, sink = _sink(streams[number], index, options, sinks)
            if key is not None and sink:
                keys[number, index] = key
                if key not in sinks:
                    sinks[key] = sink
                    stack.callback(sink.close)
    users: dict[object, set[int]] = {}
    for (_, index), key in keys.items():
        users.setdefault(key, set()).add(index)
    shared = frozenset(key for key, indexes in users.items() if len(indexes) > 1)
    by_stream: dict[tuple[int, int], Pump] = {}
    for (number, index), key in keys.items():
        if (key, index) not in pumps:
            if isinstance(sinks[key], Descriptor) and not options.format and not _has_room(len(pumps)):
                continue  # as it was handed in, it can be handed on
            pumps[key, index] = Pump(sinks[key], whole_lines=key in shared, prefix=_prefix(options.format, index))
            stack.callback(pumps[key, index].close)
        elif pumps[key, index] not in known.in_use:
            pumps[key, index].configure(whole_lines=key in shared, prefix=_prefix(options.format, index))
        by_stream[number, index] = pumps[key, index]
    pipes = {
        place: Pipe(pump.reader, pump.writer, pump.log.fd, getattr(pump.log, "path", None))
        for place, pump in by_stream.items()
    }
    return Plumbing(streams, pipes), Logs(sinks, pumps, frozenset(by_stream.values()), by_stream, options, shared)


def _sink(stream: Stream, index: int, options: LogOptions, known: Mapping[object, Sink]) -> tuple[object, Sink | None]:
    """Return where the pump of a stream writes, and its key; None if the stream needs no pump."""
    path = stream.path_of(index)
    if path is not None:
        if path in known:
            return path, known[path]
        if options.max_bytes is None and not options.format and _is_special(path):
            close(open_log(path, options.umask, options.owner)[0])  # a device is opened at each start
            return None, None
        return path, Log(path, options.max_bytes, options.backups, options.umask, options.owner)
    if stream.fd is None:
        return None, None
    info = os.fstat(stream.fd)
    if not stat.S_ISREG(info.st_mode) and not options.format:
        return None, None
    key = (info.st_dev, info.st_ino)
    return key, known.get(key) or Descriptor(stream.fd)


def _is_special(path: str) -> bool:
    """Tell whether there is something else than a regular file."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def _has_room(pumps: int) -> bool:
    """Tell whether the limit of descriptors allows another pipe."""
    return 2 * pumps + _SPARE < resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _prefix(template: str | None, index: int) -> Callable[[], bytes] | None:
    """Return a function that returns what is put before each line now."""
    if template is None:
        return None
    text = of_instance(template, index)
    if "{time}" not in text:
        return lambda: text.encode(errors="surrogateescape")
    return lambda: text.replace("{time}", local_time(time.time())).encode(errors="surrogateescape")


def local_time(seconds: float) -> str:
    """Return a time as ISO 8601 has it, in local time, with milliseconds and the offset."""
    whole, milliseconds = divmod(int(seconds * 1000), 1000)
    parts = time.localtime(whole)
    offset = time.strftime("%z", parts)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', parts)}.{milliseconds:03}{offset[:3]}:{offset[3:]}"
