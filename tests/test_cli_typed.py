"""A plain command line is read without argparse, and as argparse would read it."""

from __future__ import annotations

import contextlib
import itertools

import pytest

from daemonkit.cli import _parser, _say
from daemonkit.cli._commands import COMMANDS
from daemonkit.cli._typed import Words

PARTS = (
    "web",
    "mail",
    "",
    "-",
    "-1",
    "--json",
    "--debug",
    "--all",
    "-f",
    "--file",
    "-n",
    "--pidfile=x",
    "--wait-ready",
)


def read_by_words(verb: str, line: tuple[str, ...]) -> dict[str, object] | None:
    words = Words()
    for arguments in COMMANDS[verb].arguments:
        arguments(words)
    options = words.read(line)
    return vars(options) if options else None


def read_by_argparse(verb: str, line: tuple[str, ...]) -> dict[str, object] | None:
    with contextlib.suppress(_say.Usage):
        options = vars(_parser.parse_command(verb, line))
        if not options.pop("stray", None):  # a word too many: refused later
            return options
    return None


@pytest.mark.parametrize("verb", COMMANDS)
def test_what_is_read_without_argparse_is_read_as_argparse_does(verb: str) -> None:
    lines = [line for count in range(3) for line in itertools.product(PARTS, repeat=count)]
    lines += [("web", *line) for line in itertools.permutations(("-f", "x", "--debug"))]
    found = {line: options for line in lines if (options := read_by_words(verb, line)) is not None}
    assert found == {line: read_by_argparse(verb, line) for line in found}


@pytest.mark.parametrize(
    "line",
    [
        "ls", "ls --json", "status web", "status web --json", "status --pidfile job.pid", "up", "up -f site.toml web", "top",
        "stop web mail", "stop --all", "restart web", "reload web", "start web", "start web --wait-ready", "logs web -f",
    ],
)  # fmt: skip
def test_the_usual_command_lines_take_no_argparse(line: str) -> None:
    verb, *words = line.split()
    assert read_by_words(verb, tuple(words)) is not None


@pytest.mark.parametrize("line", ["ls web", "ls --js", "status web --jsn", "scale web", "logs -n x", "ls -h"])
def test_what_is_wrong_or_shortened_is_left_to_argparse(line: str) -> None:
    verb, *words = line.split()
    assert read_by_words(verb, tuple(words)) is None
