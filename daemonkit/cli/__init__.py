"""The `daemonkit` command: argparse, text and exit statuses; what it does is the library's.

Exit status: 0 done; 1 failed, with one line on stderr; 2 usage; 3 the app of `status` does not run; 130 Ctrl-C.
Each command loads what it needs, and no more: `status` and `ls` are to be quick.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import SimpleNamespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Final

_INTERRUPTED: Final = 130  # as a shell has it: 128 + SIGINT


def _quick(arguments: Sequence[str]) -> SimpleNamespace | None:
    """Return the options of a plain `ls` or `status NAME`: with argparse they would take half as long again."""
    match arguments:
        case ["ls" as verb, *rest] if rest in ([], ["--json"]):
            name = ""
        case ["status" as verb, name, *rest] if rest in ([], ["--json"]) and not name.startswith("-"):
            pass
        case _:
            return None
    return SimpleNamespace(name=name, json=bool(rest), debug=False, version=False, where=("_table", verb))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    from daemonkit.cli import _parser

    return _parser.parse(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    from daemonkit.cli import _say

    _say.open_streams()
    try:
        status = _run(sys.argv[1:] if argv is None else argv)
    except SystemExit as error:  # argparse's, after --help or an error; and that of `run`
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    return _say.flush(status)


def _run(arguments: Sequence[str]) -> int:
    from daemonkit.cli import _say

    options: argparse.Namespace | SimpleNamespace = SimpleNamespace(debug=False)
    try:
        options = (None if "_ARGCOMPLETE" in os.environ else _quick(arguments)) or _parse(arguments)
        if options.version:
            from daemonkit import __version__

            print(f"daemonkit {__version__}")
            return 0
        module, name = options.where
        return int(getattr(import_module(f"daemonkit.cli.{module}"), name)(options))
    except _say.Usage as error:
        options.refuse(str(error))
        raise
    except BrokenPipeError:  # whoever read it, as head(1), has seen enough
        return 1
    except (KeyboardInterrupt, _say.Interrupted) as error:
        _say.say(f"interrupted; {error}" if str(error) else "interrupted")
        return _INTERRUPTED
    except Exception as error:
        if options.debug:
            raise
        _say.say(_say.in_one_line(error))
        return 1
