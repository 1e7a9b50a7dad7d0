"""The table of apps, live: `daemonkit top`."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys

from daemonkit.cli import _app, _report, _say, _table

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import Final

    from daemonkit.cli._report import Report

_EVERY: Final = 1.0  # seconds
_TERMINATED: Final = 143  # as a shell has it: 128 + SIGTERM
_KEYS: Final = "q ends it, i shows the instances"
_HOME: Final = "\x1b[H"
_TO_END_OF_LINE: Final = "\x1b[K"
_TO_END_OF_SCREEN: Final = "\x1b[J"


def top(_options: argparse.Namespace) -> int:
    if not sys.stdout.isatty():
        raise _say.Failure("top needs a terminal; where there is none: daemonkit ls")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))  # so that the terminal is restored
    meter = _report.Meter()
    with_instances = False
    with contextlib.suppress(KeyboardInterrupt), _screen():
        while True:
            reports = [_report.full_report(app) for app in _app.apps()]
            meter.measure(reports)
            _draw(reports, with_instances=with_instances)
            match _key(_EVERY):
                case "q" | "Q" | "\x04":
                    break
                case "i" | "I":
                    with_instances = not with_instances
    return 0


def _draw(reports: list[Report], *, with_instances: bool) -> None:
    lines = [*_table.table(reports), "", _KEYS]
    if with_instances:
        for report in reports:
            if table := _table.instance_table(report):
                lines += ["", report["name"], *(f"  {line}" for line in table)]
    height = os.get_terminal_size(sys.stdout.fileno()).lines or len(lines)
    text = "\r\n".join(f"{line}{_TO_END_OF_LINE}" for line in lines[:height])
    sys.stdout.write(f"{_HOME}{text}{_TO_END_OF_SCREEN}")
    sys.stdout.flush()


def _key(seconds: float) -> str:
    """Return the key that was pressed within that time; '' if none was."""
    is_terminal = sys.stdin.isatty()
    ready, _, _ = select.select([0] if is_terminal else [], [], [], seconds)
    return os.read(0, 1).decode(errors="replace") if ready else ""


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    """Show a screen of one's own while the body runs; keys come at once, and are not echoed."""
    import termios
    import tty

    before = termios.tcgetattr(0) if sys.stdin.isatty() else None
    if before:
        tty.setcbreak(0)
    sys.stdout.write("\x1b[?1049h\x1b[?25l")
    try:
        yield
    finally:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()
        if before:
            termios.tcsetattr(0, termios.TCSADRAIN, before)
