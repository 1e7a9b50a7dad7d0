"""Values that stand for a stream, the same numbers as in `subprocess`, which need not be loaded for them."""

from __future__ import annotations

from typing import Final

STDOUT: Final = -2
"""For stderr: where stdout goes."""
DEVNULL: Final = -3
"""The null device."""
