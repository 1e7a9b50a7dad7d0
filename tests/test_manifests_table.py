"""The page "When one machine is not enough" has the table that the manifests are made by."""

from __future__ import annotations

from pathlib import Path

from daemonkit.cli._manifest.mapping import ENGINES, Cell, cell, fields

PAGE = Path(__file__).parent.parent / "docs" / "howto" / "elsewhere.md"


def _shown(one: Cell) -> str:
    return ", ".join([f"`{one.field}`"] * bool(one.field) + ["inside"] * one.inside) or "lost"


def table() -> str:
    rows = [
        f"| option | {' | '.join(engine.capitalize() for engine in ENGINES)} |",
        f"| --- |{' --- |' * len(ENGINES)}",
    ]
    rows += [f"| `{name}` | {' | '.join(_shown(cell(name, engine)) for engine in ENGINES)} |" for name in fields()]
    return "\n".join(rows)


def test_the_page_has_a_row_for_each_option_as_the_manifests_are_made() -> None:
    assert table() in PAGE.read_text(), f"the table is now:\n{table()}"
