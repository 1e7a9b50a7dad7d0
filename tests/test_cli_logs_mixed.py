"""`daemonkit logs` over several logs: of several apps, of stdout and stderr, of instances; and emptying them."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from harness import PATIENCE, eventually
from shell import COMMAND, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shell import Shell


def own(shell: Shell, *words: object) -> list[str]:
    """Return what `logs` shows, without the supervisors' own lines."""
    return [line for line in shell("logs", *words).stdout.splitlines() if "daemonkit: " not in line]


def test_stdout_stderr_and_each_instance_are_shown(shell: Shell) -> None:
    command = ("sh", "-c", "echo out $DAEMONKIT_INSTANCE; echo err >&2; exec sleep 1000")
    shell.start("web", "-i", 2, "--stdout", "out.{instance}.log", "--stderr", "err.log", command=command)
    eventually(lambda: sorted(own(shell, "web", "-n", 50)) == ["err", "err", "out 0", "out 1"])
    assert own(shell, "web", "--err") == ["err", "err"]
    assert {str(shell.folder / name) for name in ("out.0.log", "out.1.log", "err.log")} < set(
        shell.report("web")["logs"]
    )


def test_a_log_of_each_instance(shell: Shell) -> None:
    shell.start(
        "web", "-i", 2, "--log", "log.{instance}", command=("sh", "-c", "echo $DAEMONKIT_INSTANCE; exec sleep 1000")
    )
    eventually(lambda: sorted(own(shell, "web", "-n", 50)) == ["0", "1"])
    assert (shell.folder / "log.1").read_text() == "1\n"


def lay(shell: Shell, name: str, *lines: str) -> Path:
    """Put lines into the log of a stopped app."""
    shell("start", name, "--", "true")
    path = shell.home / f"{name}.log"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_several_apps_are_mixed_by_time_each_line_with_its_app(shell: Shell) -> None:
    lay(shell, "web", "daemonkit: 2026-01-01 10:00:01,500 one", "its own", "2026-01-01T10:00:04.000+01:00 four")
    lay(shell, "mailer", "2026-01-01 10:00:02 two", "also two", "2026-01-01 10:00:03.250 three")
    shown = shell("logs", "web", "mailer").stdout.splitlines()
    assert [line.split()[-1] for line in shown] == ["one", "own", "two", "two", "three", "four"]
    assert shown[0].startswith("web    | daemonkit: ") and shown[2].startswith("mailer | ")
    assert shell("logs", "-n", 2).stdout.splitlines() == shown[-2:]
    assert shell("logs", "m*").stdout.splitlines()[0] == "2026-01-01 10:00:02 two"


def test_a_log_without_times_stands_where_it_was_written_last(shell: Shell) -> None:
    lay(shell, "old", "long ago")
    path = lay(shell, "new", f"{time.strftime('%Y-%m-%d %H:%M:%S')} just now")
    assert path.exists()
    import os

    os.utime(shell.home / "old.log", (0, 0))
    assert [line.split()[-1] for line in shell("logs").stdout.splitlines()] == ["ago", "now"]


@contextlib.contextmanager
def following(shell: Shell, *words: str) -> Iterator[Path]:
    seen = shell.folder / "seen"
    with open(seen, "wb") as file:
        follower = subprocess.Popen([*COMMAND, "logs", *words, "-f", "-n", "0"], env=shell.environment, stdout=file)
    try:
        yield seen
    finally:
        follower.send_signal(signal.SIGINT)
        assert follower.wait(PATIENCE) == 0


def test_following_several_apps_keeps_lines_whole(shell: Shell) -> None:
    first, second = lay(shell, "a"), lay(shell, "b")
    with following(shell, "a", "b") as seen:
        with open(first, "ab", buffering=0) as one, open(second, "ab", buffering=0) as two:
            eventually(lambda: [one.write(b"begun\n"), b"a | begun\n" in seen.read_bytes()][-1])
            one.write(b"half of a ")
            two.write(b"a whole\n")
            eventually(lambda: b"b | a whole\n" in seen.read_bytes())
            one.write(b"line\n")
            eventually(lambda: b"a | half of a line\n" in seen.read_bytes())
        second.rename(shell.folder / "rotated")
        second.write_text("anew\n")
        eventually(lambda: b"b | anew\n" in seen.read_bytes())


def test_clear_empties_what_there_is_and_the_app_writes_on(shell: Shell) -> None:
    shell.start(
        "web", command=("sh", "-c", "echo before; while ! [ -e go ]; do sleep 0.05; done; echo after; exec sleep 1000")
    )
    eventually(lambda: "before" in own(shell, "web", "-n", 50))
    (shell.home / "web.log.1").write_text("rotated\n")
    shell("logs", "web", "--clear")
    assert shell("logs", "web").stdout == "" and not (shell.home / "web.log.1").exists()
    (shell.folder / "go").touch()
    eventually(lambda: shell("logs", "web").stdout == "after\n")


def test_clear_leaves_what_stands_beside_a_log_that_the_user_named(shell: Shell) -> None:
    (shell.folder / "mine.log.1").write_text("of last year\n")
    shell.start("web", "--log", "mine.log")
    shell("logs", "web", "--clear")
    assert (shell.folder / "mine.log.1").read_text() == "of last year\n"


@pytest.mark.parametrize("option", ["--log", "--stdout", "--stderr"])
def test_the_log_of_a_start_that_failed_is_shown_wherever_it_is(shell: Shell, option: str) -> None:
    shell("start", "bad", option, "f.log", "--", "sh", "-c", "echo no database; echo at all >&2; exit 3", status=1)
    shown = shell("logs", "bad", "-n", 50).stdout
    assert "no database" in shown and "at all" in shown
    shell("delete", "bad")
    assert list(shell.home.iterdir()) == [] and (shell.folder / "f.log").exists()
    assert "no app bad" in one_line(shell("logs", "bad", status=1).stderr)


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/stderr", "/dev/fd/1", "/proc/self/fd/2"])
@pytest.mark.parametrize("verb", ["start", "run"])
def test_a_log_that_is_the_supervisors_own_stream_is_to_be_left_out(shell: Shell, verb: str, path: str) -> None:
    for option in ("--log", "--stdout", "--stderr"):
        said = one_line(shell(verb, "web", option, path, "--", "true", status=2).stderr)
        assert path in said and "leave it out" in said


def test_logs_are_rotated_at_10_mb_unless_told_otherwise(shell: Shell) -> None:
    program = "head -c 11000000 /dev/zero | tr '\\0' x | fold -w 99; echo; echo end; exec sleep 1000"
    for name, *options in (("web",), ("never", "--log-max-bytes", "max")):
        shell.start(name, *options, command=("sh", "-c", program))
        eventually(lambda name=name: "end" in own(shell, name))
        assert (shell.home / f"{name}.log.1").exists() == (not options)


@pytest.mark.parametrize(
    ("text", "size"), [("200", 200), ("200M", 200 << 20), ("200m", 200 << 20), ("200MB", 200 << 20), ("200MiB", 200 << 20),
                       ("1.5G", 3 << 29), ("1T", 1 << 40), ("10 MB", 10 << 20), ("max", "max")]
)  # fmt: skip
def test_sizes_are_understood_as_people_write_them(shell: Shell, text: str, size: object) -> None:
    import json

    shell("start", "web", "--max-memory", text, "--", "true")
    assert json.loads((shell.home / "web.json").read_text())["max_memory"] == size


@pytest.mark.parametrize("text", ["0", "-5", "0.1", "many", "", "5X", "M", "1e9", "nan", "inf"])
def test_a_size_that_is_none_is_answered_with_what_one_is(shell: Shell, text: str) -> None:
    assert "200M" in one_line(shell("start", "web", f"--max-memory={text}", "--", "true", status=2).stderr)
