"""Show the apps: `daemonkit ls`, `status` and `top`."""

from __future__ import annotations

import os
import sys

from daemonkit.cli import _app, _json, _report, _say
from daemonkit.cli._app import App

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any, Final

    from daemonkit.cli._report import Report

_NOT_RUNNING: Final = 3
_STATUS: Final = {_report.RUNNING: 0, _report.STARTING: 4, _report.DEGRADED: 4}


def ls(options: argparse.Namespace) -> int:
    reports, status = [], 0
    for app in _app.apps():
        try:
            reports.append(_report.full_report(app) if options.json else _report.report(app))
        except OSError as error:  # not a pidfile
            _say.say(_say.in_one_line(error))
            status = 1
    if _usage_is_shown(options):
        _report.measure_once(reports)
    if options.json:
        print(_json.written([_public(report) for report in reports]))
    else:
        print_lines(table(reports))
    return status


def status(options: argparse.Namespace) -> int:
    if bool(options.name) == bool(options.pidfile):
        raise _say.Usage("give either NAME or --pidfile F; see: daemonkit status --help")
    if options.pidfile:
        from daemonkit.cli import _daemons

        return _daemons.print_status(options.pidfile, as_json=options.json)
    app = App(options.name)
    if not app.is_known:
        _say.say(f"there is no app {app.name}; `daemonkit ls` lists all")
        return _NOT_RUNNING
    report = _report.full_report(app)
    if options.env:
        from daemonkit.cli._settings import environment_in_effect

        print_lines([f"{name}={value}" for name, value in sorted(environment_in_effect(app.settings()).items())])
        return _STATUS.get(report["state"], _NOT_RUNNING)
    if _usage_is_shown(options):
        _report.measure_once([report])
    if options.json:
        print(_json.written(_public(report)))
    else:
        print_lines([*table([report | {"file": None}]), "", *_details(report)])
    return _STATUS.get(report["state"], _NOT_RUNNING)


def _public(report: Report) -> Report:
    return {name: value for name, value in report.items() if name != "file"}


def _usage_is_shown(options: argparse.Namespace) -> bool:
    """Tell whether cpu and memory are shown: on a terminal and in JSON. In a pipe they would only cost time."""
    return options.json or sys.stdout.isatty()


# --- in words --------------------------------------------------------------------------------------------------------

_COLUMNS: Final = ("name", "state", "up", "pid", "restarts", "uptime", "cpu", "memory")
_INSTANCE_COLUMNS: Final = ("#", "pid", "state", "uptime", "restarts", "last exit", "cpu", "memory")
_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-")
"""What a shell takes as it is, as `shlex` has it."""


def table(reports: Sequence[Report]) -> list[str]:
    """Return the table of apps, line by line: those of a file together, below its path."""
    reports = sorted(reports, key=lambda report: report["file"] or "")
    rows = [(_colour(report["state"]), _cells(report)) for report in reports]
    head, *lines = _lines(_COLUMNS, rows, kept=3)
    grouped, file = [head], None
    for report, line in zip(reports, lines, strict=True):
        if report["file"] != file:
            file = report["file"]
            grouped += ["", f"{file}:"]
        grouped.append(line)
    return grouped


def instance_table(report: Report) -> list[str]:
    """Return the table of an app's instances, line by line."""
    rows = [(_colour(one["state"]), _instance_cells(one)) for one in report["instances"]]
    return _lines(_INSTANCE_COLUMNS, rows, kept=3) if rows else []


def _details(report: Report) -> list[str]:
    lines = instance_table(report)
    if lines:
        lines.append("")
    lines.append(f"command    {_typed(report['command'])}")
    lines.append(f"directory  {report['cwd']}")
    if report["file"]:
        lines.append(f"file       {report['file']}")
    lines += [f"{'' if i else 'logs':<10} {path}" for i, path in enumerate(report["logs"])]
    return lines


def _typed(command: Sequence[str]) -> str:
    """Return a command as it is typed in a shell."""
    if all(word and _PLAIN.issuperset(word) for word in command):
        return " ".join(command)
    import shlex  # which loads re, as long as all the rest takes

    return shlex.join(command)


def _cells(report: Report) -> tuple[str, ...]:
    return (
        report["name"],
        report["state"],
        _report.up_of(report),
        str(report["pid"] or "-"),
        str(report["restarts"]),
        _duration(report["uptime"]),
        _percent(report["cpu"]),
        _mebibytes(report["memory"]),
    )


def _instance_cells(one: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(one["index"]),
        str(one["pid"] or "-"),
        one["state"],
        _duration(one["uptime"]),
        str(max(one["starts"] - 1, 0)),
        _last_exit(one),
        _percent(one["cpu"]),
        _mebibytes(one["memory"]),
    )


def _last_exit(one: dict[str, Any]) -> str:
    code = one["exitcode"]
    if code is None:
        return "-"
    import time

    from daemonkit._system.signals import signal_name

    how = f"status {code}" if code >= 0 else signal_name(-code)
    return f"{how}, {_duration(max(time.time() - one['exited_at'], 0))} ago" if one["exited_at"] else how


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} %"


def _mebibytes(value: int | None) -> str:
    return "-" if value is None else f"{value / (1 << 20):.1f} MiB"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


# --- on a terminal ---------------------------------------------------------------------------------------------------

_COLOURS: Final = {
    "running": "32",
    "starting": "33",
    "degraded": "33",
    "backoff": "33",
    "failed": "31",
    "gave-up": "31",
}
_BOLD: Final = "1"


def _colour(state: str) -> str:
    return _COLOURS.get(state, "")


def has_colours() -> bool:
    """Tell whether stdout shows colours: https://no-color.org."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def _lines(head: tuple[str, ...], rows: Sequence[tuple[str, tuple[str, ...]]], *, kept: int) -> list[str]:
    """Return the lines of a table. On a terminal that is too narrow columns are left out, but for the `kept` first."""
    cells = [tuple(name.upper() for name in head), *(row for _, row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    room = _terminal_width()
    while room and len(widths) > kept and sum(widths) + 2 * (len(widths) - 1) > room:
        widths.pop()
    if room and (too_long := sum(widths) + 2 * (len(widths) - 1) - room) > 0:
        widths[0] = max(widths[0] - too_long, 4)
    texts = [
        "  ".join(_fitted(cell, width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in cells
    ]
    if not has_colours():
        return texts
    colours = [_BOLD, *(colour for colour, _ in rows)]
    return [f"\x1b[{colour}m{text}\x1b[0m" if colour else text for colour, text in zip(colours, texts, strict=True)]


def _fitted(cell: str, width: int) -> str:
    return cell.ljust(width) if len(cell) <= width else f"{cell[: width - 2]}.."


def _terminal_width() -> int:
    """Return the columns of the terminal; 0 where stdout is none, or does not tell."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return 0


def print_lines(lines: Sequence[str]) -> None:
    """Print lines."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
