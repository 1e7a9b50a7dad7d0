"""What a daemon may need that it can't import any more."""

from __future__ import annotations

import contextlib
import sys
import traceback
from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# Modules that this package, and Python's own account of an exception, import only where they are needed.
_NEEDED: Final = (
    "ast",
    "ctypes",
    "dataclasses",
    "datetime",
    "linecache",
    "logging",
    "subprocess",
    "tokenize",
    "unicodedata",
)


def load_ahead() -> None:
    """Load it before a change of user or root: Python, or this package, may lie where the daemon can't read.

    An import would fail there with "No module named ...", which hides the real cause. It takes 0.1 s, so it is done
    only then.
    """
    with contextlib.suppress(ImportError):  # this program has given up its rights itself: then it is too late
        for name in _NEEDED:
            import_module(name)
        package = sys.modules["daemonkit"]
        for name in package.__all__:
            getattr(package, name)
    try:
        import_module("daemonkit" + ".absent")
    except ImportError as error:
        traceback.format_exception(error)  # which loads the rest of what that takes
