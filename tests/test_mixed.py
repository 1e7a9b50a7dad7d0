"""The lines of several apps on one stream: none is split, mixed or lost, whatever the writes were."""

from __future__ import annotations

import os
import select
import threading
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from daemonkit.cli import _mixed
from daemonkit.cli._mixed import Sink, Source, prefixes

if TYPE_CHECKING:
    import pytest

writes = st.lists(
    st.tuples(
        st.sampled_from([0, 1]),
        st.binary(max_size=9).map(lambda part: part.replace(b"\0", b"\n").replace(b"\x1e", b"")),
    )
)  # without the mark, which an app's supervisor puts before each line


def written(sink: Sink, fd: int) -> bytes:
    while sink.waits:
        sink.write()
    os.close(sink.fd)
    with open(fd, "rb") as file:
        return file.read()


@settings(deadline=None)
@given(parts=writes)
def test_whatever_is_written_in_whatever_parts_comes_out_in_lines(parts: list[tuple[int, bytes]]) -> None:
    out, sink_fd = os.pipe()
    sink = Sink(sink_fd)
    pipes = [os.pipe() for _ in range(2)]
    sources = [Source(pipe[0], prefix, sink) for pipe, prefix in zip(pipes, (b"a | ", b"b | "), strict=True)]
    for which, part in parts:
        os.write(pipes[which][1], part)
        sources[which].read()
    for pipe, source in zip(pipes, sources, strict=True):
        os.close(pipe[1])
        source.close()
    lines = written(sink, out).split(b"\n")[:-1]
    for which, prefix in enumerate((b"a | ", b"b | ")):
        told = b"".join(part for one, part in parts if one == which)
        expected = told.split(b"\n") if told else [b""]
        if not expected[-1]:
            expected.pop()
        assert [line.removeprefix(prefix) for line in lines if line.startswith(prefix)] == expected
    assert all(line[:4] in {b"a | ", b"b | "} for line in lines)


def test_a_line_of_ten_megabytes_is_whole() -> None:
    out, sink_fd = os.pipe()
    read, write = os.pipe()
    sink = Sink(sink_fd)
    source = Source(read, b"a | ", sink)
    line = b"x" * 10_000_000
    seen: list[bytes] = []

    def reader() -> None:
        with open(out, "rb") as file:
            seen.append(file.read())

    def writer() -> None:
        with open(write, "wb") as file:
            file.write(line + b"\n" + line)

    threads = [threading.Thread(target=reader), threading.Thread(target=writer)]
    for thread in threads:
        thread.start()
    poll = select.poll()
    poll.register(read)
    while poll.poll() and source.read():
        while sink.is_full:
            sink.write()
    source.close()
    while sink.waits:
        sink.write()
    os.close(sink_fd)
    for thread in threads:
        thread.join()
    assert seen[0] == b"a | " + line + b"\na | " + line + b"\n"


def test_what_nobody_reads_any_more_is_dropped_and_the_work_goes_on() -> None:
    out, sink_fd = os.pipe()
    sink = Sink(sink_fd)
    os.close(out)
    sink.add(b"a\n")
    sink.write()
    assert not sink.waits
    sink.add(b"b\n")
    assert not sink.waits
    os.close(sink_fd)


def test_a_line_without_an_end_does_not_take_all_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mixed, "_LONGEST", 10)
    out, sink_fd = os.pipe()
    read, write = os.pipe()
    sink = Sink(sink_fd)
    source = Source(read, b"a | ", sink)
    for _ in range(3):
        os.write(write, b"12345678")
        source.read()
    os.close(write)
    source.close()
    assert written(sink, out) == b"a | 1234567812345678\na | 12345678\n"


def test_each_name_has_a_place_of_one_width_and_a_colour_of_its_own() -> None:
    assert prefixes(["web", "worker"], colour=False) == {"web": b"web    | ", "worker": b"worker | "}
    coloured = prefixes(["web", "worker"], colour=True)
    assert coloured["web"] == b"\x1b[36mweb    | \x1b[0m" != coloured["worker"]
