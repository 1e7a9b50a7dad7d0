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
