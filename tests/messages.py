"""List every text of the package that a user may read, with its place: `python tests/messages.py [PATH...]`.

Errors, warnings, log lines, `--help` and the lines of the command are best read in one sitting, by somebody who asks of
each: what happened, why, what to do? Left out are docstrings and texts of fewer than three words.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(__file__).resolve().parents[1] / "daemonkit"


def texts(node: ast.AST, kind: str = "") -> Iterator[tuple[int, str, str]]:
    """Yield line, kind (what the text is given to) and text of all texts below a node."""
    if isinstance(node, ast.Call):
        kind = ast.unparse(node.func).rpartition(".")[2]
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):  # a docstring
            continue
        if isinstance(child, ast.Constant | ast.JoinedStr):
            text = shown(child)
            if len(text.split()) > 2:
                yield child.lineno, kind, text
        else:
            yield from texts(child, kind)


def shown(node: ast.Constant | ast.JoinedStr) -> str:
    """Return a text as it is written, with the names of what is put in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    parts = (
        str(part.value) if isinstance(part, ast.Constant) else "{" + ast.unparse(part.value) + "}"  # type: ignore[attr-defined]
        for part in node.values
    )
    return "".join(parts)


def main() -> None:
    """Print them, file by file."""
    for path in map(Path, sys.argv[1:] or sorted(PACKAGE.rglob("*.py"))):
        found = sorted(texts(ast.parse(path.read_text())))
        if found:
            print(f"\n## {path.relative_to(PACKAGE) if path.is_relative_to(PACKAGE) else path}\n")
        for line, kind, text in found:
            print(f"{line:>4}  {kind:<24}  {text!r}")


if __name__ == "__main__":
    main()
