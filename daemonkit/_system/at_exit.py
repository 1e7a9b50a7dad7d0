"""What is done after the program's own exit handlers."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

# Not by an import, which would make a circle that mypy can't follow.
AT_EXIT: Final[list[Callable[[], object]]] = sys.modules["daemonkit"]._AT_EXIT  # noqa: SLF001
"""Functions that are called at the interpreter's exit, the last one first.

Exit handlers run in reverse order, so the one that calls these was registered when daemonkit was imported.
"""
