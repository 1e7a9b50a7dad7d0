"""Values that stand for a stream, the same numbers as in `subprocess`, which need not be loaded for them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


PIPE: Final = -1
"""A pipe to or from the caller."""
STDOUT: Final = -2
"""For stderr: where stdout goes."""
DEVNULL: Final = -3
"""The null device."""
INHERIT: Final = -4
"""The caller's own stream."""


def stands_for(value: object, *constants: int) -> bool:
    """Tell whether a stream was given as one of these; a path in bytes must not be compared with them (python -bb)."""
    return isinstance(value, int) and value in constants
