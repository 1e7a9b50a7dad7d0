"""Show the apps: `daemonkit ls`, `status` and `top`."""

from __future__ import annotations

import contextlib
import json
import os
import sys

from daemonkit.cli import _app, _say
from daemonkit.cli._app import App

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any, Final

_NOT_RUNNING: Final = 3
_TERMINATED: Final = 143  # as a shell has it: 128 + SIGTERM
_TOP_EVERY: Final = 1.0  # seconds


def ls(options: argparse.Namespace) -> int:
    reports, status = [], 0
    for app in _app.apps():
        try:
            reports.append(_report(app, usage=_is_shown(options)))
        except OSError as error:  # not a pidfile
            _say.say(_say.in_one_line(error))
            status = 1
    _show(reports, as_json=options.json)
    return status


def status(options: argparse.Namespace) -> int:
    app = App(options.name)
    if not app.is_known:
        _say.say(f"there is no app {app.name}")
        return _NOT_RUNNING
    report = _report(app, usage=_is_shown(options))
    if options.json:
        print(json.dumps(report))
    else:
        _show([report], as_json=False)
    return 0 if report["pid"] else _NOT_RUNNING


def _report(app: App, *, usage: bool) -> dict[str, Any]:
    report = app.report() | {"cpu": None, "memory": None}
    if usage and report["pid"] and (found := _usage(report["pid"])):
        report["cpu"], report["memory"] = found
    return report


def _is_shown(options: argparse.Namespace) -> bool:
    """Tell whether cpu and memory are shown: on a terminal and in JSON. In a pipe they would only cost time."""
    return options.json or sys.stdout.isatty()


def _usage(pid: int) -> tuple[float, int] | None:
    """Return the cpu (percent since they started) and memory (bytes) of the supervisor and its instances."""
    try:
        import psutil  # the extra "cli"
    except ImportError:
        return None
    import time

    try:
        root = psutil.Process(pid)
        cpu, memory = 0.0, 0
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error), process.oneshot():
                spent = process.cpu_times()
                cpu += 100 * (spent.user + spent.system) / max(time.time() - process.create_time(), 0.1)
                memory += process.memory_info().rss
    except psutil.Error:
        return None
    return round(cpu, 1), memory


_COLUMNS: Final = ("name", "state", "up", "pid", "restarts", "uptime", "cpu", "memory")


def _show(reports: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(reports))
        return
    rows = [_cells(report) for report in reports]
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR") and (table := _rich_table(rows)):
        table()
        return
    widths = [max(len(row[i]) for row in (_COLUMNS, *rows)) for i in range(len(_COLUMNS))]
    for row in (tuple(name.upper() for name in _COLUMNS), *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cells(report: dict[str, Any]) -> tuple[str, ...]:
    memory = report["memory"]
    return (
        report["name"],
        report["state"],
        _app.up_of(report),
        str(report["pid"] or "-"),
        str(report["restarts"]),
        _duration(report["uptime"]),
        "-" if report["cpu"] is None else f"{report['cpu']:.1f} %",
        "-" if memory is None else f"{memory / (1 << 20):.1f} MiB",
    )


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


_COLOURS: Final = {"running": "green", "starting": "yellow", "failed": "red"}


def _rich_table(rows: list[tuple[str, ...]]) -> Callable[[], None] | None:
    """Return a function that prints the table in colour; None without the extra "cli"."""
    try:
        from rich.console import Console
    except ImportError:
        return None
    return lambda: Console().print(_table(rows))


def _table(rows: list[tuple[str, ...]]) -> Any:  # noqa: ANN401 - rich's Table
    from rich.table import Table

    table = Table(*_COLUMNS, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*row, style=_COLOURS.get(row[1]))
    return table


def top(_options: argparse.Namespace) -> int:
    try:
        import psutil  # noqa: F401 - without it, cpu and memory would be missing
        from rich.live import Live
    except ImportError:
        raise _say.Failure("top needs more than the base install: pip install 'daemonkit[cli]'") from None
    if not sys.stdout.isatty():
        raise _say.Failure("top needs a terminal; where there is none: daemonkit ls")
    import signal
    import threading

    done = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))  # so that the terminal is restored
    with contextlib.suppress(KeyboardInterrupt), Live(auto_refresh=False, screen=True) as live:
        while True:
            live.update(_table([_cells(_report(app, usage=True)) for app in _app.apps()]), refresh=True)
            done.wait(_TOP_EVERY)
    return 0
