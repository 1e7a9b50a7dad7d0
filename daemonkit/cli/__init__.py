"""The `daemonkit` command: words, text and exit statuses; what it does is the library's.

Exit status: 0 done; 1 failed, with one line on stderr; 2 usage; 3 the app of `status` does not run; 130 Ctrl-C.
Each command loads only what it needs, so that `status` and `ls` are quick.
"""

from __future__ import annotations

import os
import sys

from daemonkit import _is_available

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final, NoReturn

_USAGE: Final = 2
_INTERRUPTED: Final = 130  # as a shell has it: 128 + SIGINT


def script() -> NoReturn:
    """Run as the program `daemonkit`; does not return.

    Everything is flushed by then. To take the interpreter apart as well would take longer than `ls`.
    """
    os._exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    from daemonkit.cli import _say

    _say.open_streams()
    try:
        status = _run(sys.argv[1:] if argv is None else argv)
    except SystemExit as error:  # argparse's, after --help; and that of `run`
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    return _say.flush(status)


def _run(arguments: Sequence[str]) -> int:
    from daemonkit.cli import _say

    if not _is_available():
        from daemonkit._system.elsewhere import unavailable

        _say.say(unavailable("it"))
        return 1
    from daemonkit.cli import _typed

    debug = False
    try:
        options = _typed.parse(arguments)
        debug = options.debug
        module, _, name = options.where.partition(".")
        room = __import__(f"daemonkit.cli.{module}", fromlist=[name])  # importlib would be loaded for it
        return int(getattr(room, name)(options))
    except _say.Usage as error:
        _say.say(str(error))
        return _USAGE
    except BrokenPipeError:  # the reader, such as head(1), has seen enough
        return 1
    except (KeyboardInterrupt, _say.Interrupted) as error:
        _say.say(f"interrupted; {error}" if str(error) else "interrupted")
        return _INTERRUPTED
    except Exception as error:
        if debug:
            raise
        _say.fail(error)
        return 1
