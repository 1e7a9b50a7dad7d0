"""A program of its own: set back the signals that were ignored or blocked, change the user, become another program.

It is run by `sys.executable -I -S -c`, never imported. Its arguments are two descriptors: one to read what to become
from, and one to report on. The report is "+" once the signals are set back, and then the errno of whatever failed; the
exec closes it.
"""

from __future__ import annotations

import marshal
import os
import signal
import sys


def main() -> None:
    """Become the program; return only by an exit with 127."""
    spec, report = map(int, sys.argv[1:])
    os.set_inheritable(spec, False)
    os.set_inheritable(report, False)
    with open(spec, "rb") as file:
        path, argv, env, umask, owner = marshal.load(file)  # noqa: S302 - its parent wrote it
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.write(report, b"+")
    try:
        if umask is not None:
            os.umask(umask)
        if owner:
            uid, gid, groups = owner
            if groups is not None:
                os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        os.execve(path, argv, env)  # noqa: S606 - no shell is what is wanted
    except OSError as error:
        os.write(report, str(error.errno).encode())
    os._exit(127)


if __name__ == "__main__":
    main()
