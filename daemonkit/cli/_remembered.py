"""What an app file said when it was last read, so that an `up` with nothing to do need not read it again.

tomllib takes nearly as long to load as Python to start, python-dotenv longer. What is remembered is used only if
all that it was made of is the same: the texts of the files, this program, the variables that matter.
"""

from __future__ import annotations

import contextlib
import os

from daemonkit.cli import _app, _json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

_MATTER: Final = ("HOME", "PORT")
# The modules that read an app file.
_CODE: Final = ("_appfile.py", "_toml.py", "_kinds.py", "_options.py")


def path_for(file: str, what: str) -> str:
    """Return where something about an app file is kept; two files of one number are told apart by the content."""
    import zlib

    return os.path.join(_app.home(), f".{zlib.crc32(os.fsencode(file)):08x}.{what}")


def recall(file: str) -> dict[str, Any] | None:
    """Return what `remember` was given for this file, None if anything has changed since."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        kept: Any = _app.read_json(path_for(file, "read"))
        if kept["of"] == _of(file) and all(_text(path) == text for path, text in kept["texts"].items()):
            return dict(kept["said"])
    return None


def remember(file: str, texts: Mapping[str, str], said: Mapping[str, Any]) -> None:
    """Keep what the file said, and the texts of all files that were read for it."""
    if any("$" in text for path, text in texts.items() if path != file):
        return  # python-dotenv puts a variable of the environment there
    with contextlib.suppress(OSError, ValueError):
        _app.replace(path_for(file, "read"), _json.written({"of": _of(file), "texts": texts, "said": said}))


def _of(file: str) -> list[Any]:
    """Return what else the result depends on."""
    folder = os.path.dirname(__file__)
    code = [os.stat(os.path.join(folder, name)).st_mtime_ns for name in _CODE]
    return [file, code, [os.environ.get(name) for name in _MATTER], os.path.exists(f"{os.path.dirname(file)}/.env")]


def _text(path: str) -> str:
    with open(path, encoding="utf-8", newline="") as stream:
        return stream.read()
