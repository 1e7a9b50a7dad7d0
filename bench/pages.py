"""The two pages of the report: what matters to a user, and how far the goals are for those who work on the speed."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from bars import Chart
    from report import Part

_ORDER = ("spawn", "detach", "pidfile", "control", "commands", "supervisors", "growth", "import")
_FOR_GOALS = ("goal", "met")
_MISSED = "Missed: "

# --- what matters -------------------------------------------------------------------------------------------------

_OVERVIEW = (
    ("spawn", "`spawn_detached()`, 20 MB caller"),
    ("spawn", "`spawn_detached()`, 4 GB caller"),
    ("detach", "`detached()`, 20 MB caller"),
    ("control", "`status()` of a held pidfile"),
    ("supervisors", "a crash until it runs again"),
    ("supervisors", "memory (PSS), 100 children"),
)
"""The charts of the first picture, by part and title."""


def _chart(parts: dict[str, Part], part: str, title: str) -> Chart | None:
    charts = parts[part]["charts"] if part in parts else []
    return next((chart for chart in charts if chart["title"] == title), None)


def overview(parts: dict[str, Part]) -> list[Chart]:
    """Return the charts of the first picture, as far as they were measured."""
    return [chart for key in _OVERVIEW if (chart := _chart(parts, *key))]


def _sentences(parts: dict[str, Part]) -> list[str]:
    """Return what the first picture shows, in a sentence for each kind of user."""

    def say(index: int, text: Callable[[dict[str, float]], str]) -> None:
        chart = _chart(parts, *_OVERVIEW[index])
        try:
            found.append(text(chart["values"] if chart else {}))
        except KeyError:  # a contender that was not there
            return

    found: list[str] = []
    say(0, lambda v: (
        "For those who launch programs: `spawn_detached()` takes "
        f"{_times(v['daemonkit'], v['`Popen(start_new_session=True)`'])} as long as `subprocess.Popen`, and tells more."
    ))  # fmt: skip
    say(1, lambda v: (
        "It takes no longer in a program with 4 GB of memory, where Node's `spawn` takes "
        f"{_times(v['Node `spawn` detached'], v['daemonkit'])} as long."
    ))  # fmt: skip
    say(2, lambda v: (
        f"For those who write a daemon: `detached()` takes {v['daemonkit']:.2g} ms, once, python-daemon's context "
        f"{v['`DaemonContext`']:.2g} ms; for the difference the caller learns whether the daemon runs."
    ))  # fmt: skip
    say(
        3,
        lambda v: (
            f"For those who look after one: `status()` takes {v['daemonkit']:.2g} us, so ask as often as you like."
        ),
    )
    say(4, lambda v: (
        f"For those who keep programs running: what crashed runs again after {v['daemonkit']:.2g} ms, with PM2 after "
        f"{v['PM2']:.2g} ms and with supervisord after {v['supervisord']:,.0f} ms{_memory(parts)}."
    ))  # fmt: skip
    return found


def _memory(parts: dict[str, Part]) -> str:
    chart = _chart(parts, *_OVERVIEW[5])
    if not chart or "PM2" not in chart["values"]:
        return ""
    ours, theirs = (chart["values"][name] for name in ("daemonkit", "PM2"))
    return f", and the supervisor of a hundred programs takes {ours:.0f} MiB of memory where PM2's takes {theirs:.0f}"


def _times(one: float, other: float) -> str:
    ratio = one / other
    return f"{ratio:.0f} times" if ratio >= 10 else f"{ratio:.2g} times"


# --- the page for readers -----------------------------------------------------------------------------------------

_HOW = """## How it was measured

`make bench` measures, and writes all of this page. To do it again, on a machine that does nothing else:

```sh
make bench
make bench ARGS="--only spawn supervisors"
make bench ARGS="--quick"
```

The second measures some parts and leaves the others as they are; the third is a look whether it all works, and
changes nothing here. What can't be had on the machine is left out, and said so. What the project aims at, and why an
aim is missed, is in `bench/README.md` of the source.

Contenders take turns. A time is a median, with the fastest and the slowest in brackets; a ratio is the median of the
ratios of neighbours, so that a machine that drifts slows both.
"""


_CURVES = (
    "Both axes are logarithmic. A flat curve is a cost that does not grow: that of a launch with the caller's memory, of a "
    "crash with the number of instances, of `daemonkit logs` with the length of the log. A fork copies page tables, so "
    "`detached()` takes longer in a caller with much memory, as every fork does. A launch closes each descriptor that is "
    "open in the caller, as `Popen` does."
)


def page(parts: dict[str, Part], machine: str) -> str:
    """Return the page for readers."""
    head = ["# Benchmarks", "", *textwrap.wrap(" ".join(_sentences(parts)), 120), ""]
    if overview(parts):
        head += ["![What matters most, as bars](benchmarks/overview.svg)", ""]
    body = [render(name, parts[name]) for name in _ORDER if name in parts]
    return "\n".join(["\n".join(head), *body, _HOW, machine])


def render(name: str, part: Part, *, hidden: tuple[str, ...] = _FOR_GOALS) -> str:
    """Return a part as Markdown, without the columns that are hidden."""
    lines = [f"## {part['title']}", "", f"Measured {part['measured']}.", ""]
    if part["charts"] or part.get("plots"):
        lines += [f"![{part['title']}, as {'bars' if part['charts'] else 'curves'}](benchmarks/{name}.svg)", ""]
    if part.get("plots"):
        lines += [*textwrap.wrap(_CURVES, 120), ""]
    if part["rows"]:
        # What is between the two comments other pages include.
        shown = [number for number, title in enumerate(part["head"]) if title not in hidden]
        rows = [part["head"], ["---"] * len(part["head"]), *part["rows"]]
        table = [_row([row[number] for number in shown]) for row in rows]
        lines += [f"<!-- {name}: table -->", "", *table, "", f"<!-- {name}: end -->", ""]
    lines += [f"- {note}" for note in part["notes"] if not (hidden and note.startswith(_MISSED))]
    return "\n".join(lines).rstrip() + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


# --- the page for those who work on it ----------------------------------------------------------------------------

_GOALS = """# How fast it is to be

`make bench` has written this page: each row of the [benchmarks](../docs/benchmarks.md) that has a goal, whether it is
met, and the reason where it is not. No test asserts a goal, as no clock can be trusted on a shared machine;
`tests/test_cost.py` counts what can be counted.

A part is one module: `spawns.py`, `control.py`, `commands.py`, `supervisors.py`, `growth.py`, and `run.py` for the others.
`reasons.py` has the reasons, `report.py` and `pages.py` write, `bars.py` and `plots.py` draw. `python bench/report.py` writes
all pages and pictures again from the figures in `docs/benchmarks/results.json`.
"""


def goals(parts: dict[str, Part]) -> str:
    """Return the page with the goals and the misses."""
    texts = [_GOALS]
    for part in (parts[name] for name in _ORDER if name in parts):
        if "goal" not in part["head"]:
            continue
        at, head = part["head"].index("goal"), part["head"]
        # Of a table with a column per contender, only the project's own.
        shown = [n for n in range(len(head)) if n < 2 or head[n] in {"against", "ratio", *_FOR_GOALS}]
        rows = [head, ["---"] * len(head), *(row for row in part["rows"] if row[at])]
        lines = [f"## {part['title']}", "", f"Measured {part['measured']}.", ""]
        lines += [_row([row[number] for number in shown]) for row in rows]
        notes = [f"- {note}" for note in part["notes"] if note.startswith(_MISSED)]
        texts.append("\n".join([*lines, *([""] if notes else []), *notes]) + "\n")
    return "\n".join(texts)
