"""Curves as an SVG picture: how a cost grows, on two logarithmic axes, so that a straight line is flat or it is not."""

from __future__ import annotations

import math
from typing import TypedDict
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT, _COLUMNS = 430, 300, 2
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 40, 34, 40
_LEGEND, _GAP = 18, 12
_TEXT, _GRID = "#767d88", "#8a93a0"
_OWN, _C, _OTHERS = "#2f8f6b", "#b0713a", ("#8a93a0", "#5b7fb5", "#9a5aa0")
"""Each has a contrast of 3 and more with white and with black: WCAG 1.4.11."""


class Plot(TypedDict):
    """One plot: a curve of points for each contender."""

    title: str
    x: str
    y: str
    series: dict[str, list[list[float]]]


def draw(plots: list[Plot]) -> str:
    """Return all of them in one picture, in two columns."""
    height = max((_LEGEND * len(plot["series"]) for plot in plots), default=0) + _HEIGHT + _GAP
    parts = [_plot(plot, number % _COLUMNS * _WIDTH, number // _COLUMNS * height) for number, plot in enumerate(plots)]
    width, tall = _WIDTH * _COLUMNS, math.ceil(len(plots) / _COLUMNS) * height
    style = f"font: 13px system-ui, sans-serif; fill: {_TEXT}"
    size = f'width="{width}" height="{tall}" viewBox="0 0 {width} {tall}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="{style}">\n{"".join(parts)}</svg>\n'


def _decades(values: list[float]) -> tuple[int, int]:
    """Return the powers of ten around all of them, at least one apart."""
    low, high = (math.log10(bound) for bound in (min(values), max(values)))
    return (first := math.floor(low)), max(math.ceil(high), first + 1)


def _number(power: int) -> str:
    return f"{10**power:,}" if power >= 0 else f"{10.0**power:g}"


def _colours(names: list[str]) -> dict[str, str]:
    """Return the colour of each contender: daemonkit, which comes first, and C have theirs in all plots."""
    others = iter(_OTHERS)
    return {name: _OWN if name == names[0] else _C if name.split()[0] == "C" else next(others) for name in names}


def _plot(plot: Plot, left: int, top: int) -> str:
    points = [point for curve in plot["series"].values() for point in curve if min(point) > 0]
    if not points:
        return ""
    columns, rows = _decades([x for x, _ in points]), _decades([y for _, y in points])

    def across(x: float) -> float:
        return _LEFT + (math.log10(x) - columns[0]) / (columns[1] - columns[0]) * (_WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        return _HEIGHT - _BOTTOM - (math.log10(y) - rows[0]) / (rows[1] - rows[0]) * (_HEIGHT - _TOP - _BOTTOM)

    title = escape(f"{plot['title']}, {plot['y']}".replace("`", ""))
    lines = [f'<g transform="translate({left},{top})">\n<text x="0" y="18" font-weight="600">{title}</text>\n']
    for power in range(rows[0], rows[1] + 1):
        y = down(10.0**power)
        lines.append(_line(_LEFT, y, _WIDTH - _RIGHT, y))
        lines.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(power)}</text>\n')
    for power in range(columns[0], columns[1] + 1):
        x = across(10.0**power)
        lines.append(_line(x, _TOP, x, _HEIGHT - _BOTTOM))
        lines.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{_number(power)}</text>\n')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    lines.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(plot["x"])}</text>\n')
    colours = _colours([*plot["series"]])
    for number, (name, curve) in enumerate(plot["series"].items()):
        colour = colours[name]
        places = [(across(x), down(y)) for x, y in curve if x > 0 and y > 0]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>\n')
        lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>\n' for x, y in places]
        y = _HEIGHT + _GAP + number * _LEGEND
        lines.append(f'<rect x="{_LEFT}" y="{y}" width="18" height="4" rx="2" fill="{colour}"/>\n')
        lines.append(f'<text x="{_LEFT + 26}" y="{y + 7}">{escape(name.replace("`", ""))}</text>\n')
    return "".join([*lines, "</g>\n"])


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{_GRID}" stroke-width="0.5" stroke-opacity="0.4"/>\n'
