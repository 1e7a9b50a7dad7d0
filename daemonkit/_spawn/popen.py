"""`subprocess.Popen`, also where gevent or eventlet has put another in its place."""

from __future__ import annotations

import os
import subprocess

from daemonkit._system.unpatched import copy_of, genuine, is_green

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

_copy: ModuleType | None = None


def popen() -> type[subprocess.Popen[bytes]]:
    """Return it; where `os` or it was patched, that of a copy of `subprocess` which stands on the genuine `os`.

    A green one would watch the program and take its exit status. The true one, on gevent's `os.close`, would wait for
    the end of a pipe that is not closed yet.
    """
    global _copy  # noqa: PLW0603 - made once
    if not is_green(os.close) and not is_green(subprocess.Popen):
        return subprocess.Popen
    if _copy is None:
        own_os = type(os)("os")
        vars(own_os).update({name: genuine(value) if is_green(value) else value for name, value in vars(os).items()})
        copy = copy_of(subprocess)
        copy.os = own_os  # type: ignore[attr-defined]
        _copy = copy
    return _copy.Popen  # type: ignore[no-any-return]


popen()  # now, as a change of user may put the source of the copy out of reach
