"""The report: parts that are kept as data, and the pages and the pictures that are drawn from them."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import time
from collections import defaultdict
from importlib.metadata import version
from typing import TYPE_CHECKING, TypedDict

import plots
from bars import Chart, draw
from pages import goals, overview, page
from reasons import reason_for
from table import HERE, MISSED, Line, Row, met, middle_of

if TYPE_CHECKING:
    from collections.abc import Iterable

_DOCS = os.path.join(os.path.dirname(HERE), "docs")
_PICTURES = os.path.join(_DOCS, "benchmarks")
_KEPT = os.path.join(_PICTURES, "results.json")
_PLOTTED = {"ms", "MiB", "MB/s"}


class Part(TypedDict):
    """What one part of the report consists of."""

    title: str
    measured: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str]
    charts: list[Chart]
    plots: list[plots.Plot]


class Kept(TypedDict):
    """All that was measured, and on which machine the last of it."""

    machine: str
    parts: dict[str, Part]


def part_of_rows(title: str, rows: Iterable[Row]) -> Part:
    """Make a part out of comparisons with one peer per row."""
    head = ["what", "daemonkit: median (range)", "against", "ratio", "goal", "met"]
    part, charts = _new(title, head), defaultdict(dict)
    for row in rows:
        part["rows"].append([row.what, row.ours, row.against, row.ratio, row.goal, row.met])
        _explain(part, row.what, row.met)
        if row.medians:
            charts[row.what] |= {"daemonkit": row.medians[0], row.peer: row.medians[1]}
    for what, seconds in charts.items():
        if len(seconds) > 2:
            factor, unit = (1e3, "ms") if seconds["daemonkit"] >= 1e-3 else (1e6, "us")
            values = {name: factor * value for name, value in seconds.items()}
            part["charts"].append({"title": what, "unit": unit, "values": values})
    return part


def part_of_plots(title: str, found: list[plots.Plot], notes: list[str]) -> Part:
    """Make a part out of curves."""
    return {**_new(title, []), "notes": notes, "plots": found}


def part_of_lines(title: str, lines: Iterable[Line]) -> Part:
    """Make a part out of lines with a column per contender."""
    lines = list(lines)
    names = list(dict.fromkeys(name for line in lines for name in line.results))
    part = _new(title, ["what", *names, "goal", "met"])
    before = ""
    for line in lines:
        part["notes"] += line.notes
        if not line.results:
            continue
        unit = f", {line.unit}" if line.unit else ""
        verdict = "" if line.holds is None else met(line.holds)
        part["rows"].append([line.what + unit, *(line.cell(name) for name in names), line.goal, verdict])
        before = before if line.what.startswith("...") else line.what
        _explain(part, line.what if line.what == before else f"{before} {line.what}", verdict)
        values = {name: middle_of(found) for name, found in line.results.items() if not isinstance(found, str)}
        if line.unit in _PLOTTED and len(values) > 2:
            more = "" if line.what == before else f": {line.what.removeprefix('... ')}"
            title = before if not more else re.split("[:,]", before)[0] + more
            part["charts"].append({"title": title, "unit": line.unit, "values": values})
    return part


def _new(title: str, head: list[str]) -> Part:
    now = time.strftime("%Y-%m-%d %H:%M %Z")
    return {"title": title, "measured": now, "head": head, "rows": [], "notes": [], "charts": [], "plots": []}


def _explain(part: Part, what: str, verdict: str) -> None:
    reason = reason_for(what)
    if verdict == MISSED and not any(note.endswith(reason) for note in part["notes"]):
        part["notes"].append(f"Missed: {what}: {reason}")


def keep(name: str, part: Part) -> None:
    """Put a part into the report in place of what was measured before, and write all of it anew."""
    kept = _kept()
    kept["machine"] = _machine()
    kept["parts"][name] = part
    write(kept)


def write(kept: Kept) -> None:
    """Write the data, the pictures, the page for readers and the page for those who work on the speed."""
    parts = kept["parts"]
    os.makedirs(_PICTURES, exist_ok=True)
    _write(_KEPT, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    charts = {key: part["charts"] for key, part in parts.items()} | {"overview": overview(parts)}
    for key, found in charts.items():
        if found:
            _write(os.path.join(_PICTURES, f"{key}.svg"), draw(found))
    if "growth" in parts:
        _write(os.path.join(_PICTURES, "growth.svg"), plots.draw(parts["growth"]["plots"]))
    _write(os.path.join(_DOCS, "benchmarks.md"), page(parts, kept["machine"]))
    _write(os.path.join(HERE, "README.md"), goals(parts))


def _kept() -> Kept:
    try:
        with open(_KEPT, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return {"machine": "", "parts": {}}


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _machine() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    with open("/proc/meminfo", encoding="ascii") as file:
        memory = int(file.readline().split()[1]) / (1 << 20)
    packages = ("python-daemon", "lockfile")
    lines = {
        "processors": f"{os.cpu_count()}, {models[0] if models else platform.machine()}",
        "memory": f"{memory:.1f} GiB",
        "kernel": platform.release(),
        "Python": f"{platform.python_version()} ({sys.implementation.name})",
        "libraries": ", ".join(f"{package} {version(package)}" for package in packages),
    }
    return "| the machine | |\n| --- | --- |\n" + "".join(f"| {key} | {value} |\n" for key, value in lines.items())


if __name__ == "__main__":
    write(_kept())  # the pages again, from the figures that are there
