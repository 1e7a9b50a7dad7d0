"""JSON read by the scanner of `json`, without that module: it loads `re` and `enum`, as long as the rest of `ls`."""

from __future__ import annotations

import contextlib
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_SPACE: Final = " \t\n\r"


class _Plain:
    """How the scanner is to read: as `json.loads` has it."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float


def read(text: str) -> object:
    """Return the value of a text; ValueError for what is not JSON, RecursionError for what is too deep."""
    text = text.strip(_SPACE)
    if not hasattr(sys, "gettotalrefcount"):  # a debug build aborts where the scanner fails
        with contextlib.suppress(ImportError, StopIteration, SystemError):  # its own errors are in json.decoder
            from _json import make_scanner

            value, end = make_scanner(_Plain)(text, 0)  # type: ignore[arg-type]  # a JSONDecoder, its stub says
            if end == len(text):
                return value
    import json  # which says what is wrong

    return json.loads(text)


def written(value: object, indent: int | None = None) -> str:
    """Return a value as JSON."""
    import json

    return json.dumps(value, indent=indent)
