"""Bar charts as SVG, in colours that can be read on a light and on a dark page."""

from __future__ import annotations

from html import escape
from typing import TypedDict

_WIDTH, _COLUMNS = 440, 2
_BAR, _GAP, _HEAD = 18, 6, 34
_LABEL, _VALUE = 190, 70
_OURS, _OTHERS, _TEXT = "#2f8f6b", "#8a93a0", "#767d88"
"""Each has a contrast of 3 and more with white and with black: WCAG 1.4.11; the text of 4."""
_LEAST = 1
"""The width of a bar whose value is too small beside the others to be seen."""


class Chart(TypedDict):
    """One chart: a bar for each contender."""

    title: str
    unit: str
    values: dict[str, float]


def draw(charts: list[Chart]) -> str:
    """Return all of them in one picture, side by side in two columns."""
    rows = [charts[i : i + _COLUMNS] for i in range(0, len(charts), _COLUMNS)]
    parts, top = [], 0
    for row in rows:
        parts += [_chart(chart, column * _WIDTH, top) for column, chart in enumerate(row)]
        top += max(_height(chart) for chart in row)
    style = f"font: 13px system-ui, sans-serif; fill: {_TEXT}"
    size = f'width="{_WIDTH * _COLUMNS}" height="{top}" viewBox="0 0 {_WIDTH * _COLUMNS} {top}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="{style}">\n{"".join(parts)}</svg>\n'


def _height(chart: Chart) -> int:
    return _HEAD + len(chart["values"]) * (_BAR + _GAP) + 12


def _chart(chart: Chart, left: int, top: int) -> str:
    most = max(chart["values"].values()) or 1
    title = escape(f"{chart['title'].replace('`', '')}, {chart['unit']}")
    lines = [f'<g transform="translate({left},{top})">\n<text x="0" y="18" font-weight="600">{title}</text>\n']
    for number, (name, value) in enumerate(chart["values"].items()):
        y = _HEAD + number * (_BAR + _GAP)
        colour = _OURS if name == "daemonkit" else _OTHERS
        width = max(value / most * (_WIDTH - _LABEL - _VALUE), _LEAST if value else 0)
        lines += [
            f'<text x="{_LABEL - 8}" y="{y + 13}" text-anchor="end">{escape(_short(name))}</text>\n',
            f'<rect x="{_LABEL}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2" fill="{colour}"/>\n',
            f'<text x="{_LABEL + width + 6:.1f}" y="{y + 13}">{_number(value)}</text>\n',
        ]
    return "".join([*lines, "</g>\n"])


def _short(name: str) -> str:
    name = name.replace("`", "")
    return name if len(name) <= 24 else f"{name[:23]}…"


def _number(value: float) -> str:
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"
