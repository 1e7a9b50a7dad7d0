"""The command line of a service: words and exit statuses, which are those of an init script (LSB)."""

from __future__ import annotations

import os
import sys

from daemonkit._service.service import INTERRUPTED, Report, run, start
from daemonkit._system.unpatched import close

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from typing import Final, TextIO

    from daemonkit._service.service import Service

_FAILED: Final = 1
_NOT_RUNNING: Final = 3

COMMANDS: Final = {
    "start": "Start the program in the background; return once it has started.",
    "stop": "Stop it; return once it has ended.",
    "restart": "Stop it if it runs, and start it.",
    "reload": "Have it read its settings again (SIGHUP).",
    "status": "Show whether it runs; the exit status is 0 if it does, else 3.",
    "run": "Run it in the foreground, on this terminal.",
}


def main(service: Service, argv: Sequence[str] | None) -> int:
    """Run the command line; return the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if len(arguments) == 1 and arguments[0] in COMMANDS:  # argparse takes as long to load as `status` to run
        return _carry_out(service, arguments[0], is_program=argv is None)
    try:
        options = _parser(service).parse_args(arguments)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return _carry_out(service, options.command, debug=options.debug, is_program=argv is None)


def commands_of(service: Service) -> dict[str, Callable[[], None]]:
    """Return the commands as functions, named and documented for what makes a command line of them."""

    def command_of(name: str, text: str) -> Callable[[], None]:
        def command() -> None:
            if status := _carry_out(service, name):
                sys.exit(status)

        command.__name__ = command.__qualname__ = name
        command.__doc__ = text
        return command

    return {name: command_of(name, text) for name, text in COMMANDS.items()}


def _parser(service: Service) -> argparse.ArgumentParser:
    import argparse  # noqa: PLC0415 - see above

    parser = argparse.ArgumentParser(
        prog=service.name,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {name:8} {text}" for name, text in COMMANDS.items()),
    )
    parser.description = f"Start {_name(service)}, stop it, and see whether it runs.\n\n  {parser.prog} start"
    parser.add_argument("command", choices=list(COMMANDS), help="one of these:")
    parser.add_argument("--debug", action="store_true", help="show the traceback of what fails")
    return parser


def _carry_out(service: Service, name: str, *, debug: bool = False, is_program: bool = False) -> int:
    report = Report()
    report.is_program = is_program
    try:
        return _DOES[name](service, report)
    except KeyboardInterrupt:
        if not report.started:
            _tell(sys.stderr, f"{_name(service)}: interrupted")
        return INTERRUPTED
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, it is told
        return _fail(service, report, error, debug=debug)


def _fail(service: Service, report: Report, error: BaseException, *, debug: bool) -> int:
    """Say why; return the exit status. What had started, in the foreground, ends as any program."""
    from daemonkit._service.words import words_of  # noqa: PLC0415 - see above

    if report.started and isinstance(error, SystemExit) and not isinstance(error.code, str):
        from daemonkit._system.fork import exit_status_of  # noqa: PLC0415 - see above

        return exit_status_of(error)
    if debug or (report.started and not isinstance(error, SystemExit)):
        import traceback  # noqa: PLC0415 - see above

        told = getattr(error, "traceback", "") or "".join(traceback.format_exception(error))
        _tell(sys.stderr, told.rstrip())
        if report.started:
            return _FAILED
    words = report.words or words_of(error)
    _tell(sys.stderr, words.text if words.alone else f"{_name(service)}: {words.text}")
    return words.status


def _start(service: Service, report: Report) -> int:
    from daemonkit.errors import AlreadyRunningError  # noqa: PLC0415 - see above

    try:
        pid = start(service, report)
    except AlreadyRunningError as error:
        if error.pid is None:
            raise
        _tell(sys.stdout, f"already running as process {error.pid}")
        return 0
    if pid != os.getpid():
        _tell(sys.stdout, f"started as process {pid}")
    return 0


def _stop(service: Service, _report: Report) -> int:
    from daemonkit.errors import NotRunningError  # noqa: PLC0415 - see above

    try:
        on_request = service.stop()
    except NotRunningError:
        if service.status():  # another tool's, or out of reach: the exception says so
            raise
        _tell(sys.stdout, "not running")
        return 0
    _tell(sys.stdout, "stopped" if on_request else f"killed: it did not end within {service.stop_timeout:g} s")
    return 0


def _restart(service: Service, report: Report) -> int:
    _stop(service, report)
    return _start(service, report)


def _reload(service: Service, _report: Report) -> int:
    from daemonkit.errors import NotRunningError  # noqa: PLC0415 - see above

    try:
        service.reload()
    except NotRunningError:
        if service.status():
            raise
        _tell(sys.stderr, f"{_name(service)}: not running")
        return _NOT_RUNNING
    return 0


def _status(service: Service, _report: Report) -> int:
    status = service.status()
    if not status:
        _tell(sys.stdout, "not running")
        return _NOT_RUNNING
    from daemonkit._service.underway import is_starting  # noqa: PLC0415 - see above

    _tell(sys.stdout, f"{'starting' if is_starting(service.path) else 'running'} as process {status.pid}")
    return 0


def _run(service: Service, report: Report) -> int:
    run(service, report)
    return 0


_DOES: Final = {
    "start": _start,
    "stop": _stop,
    "restart": _restart,
    "reload": _reload,
    "status": _status,
    "run": _run,
}


def _name(service: Service) -> str:
    """Return the program's name: its file's, its package's, or its pidfile's."""
    if service.name:
        return service.name
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec and spec.parent:  # python -m package
        return str(spec.parent)
    name = os.path.basename(getattr(main, "__file__", None) or "")
    if not name:
        name = os.path.basename(service.path)
    return os.path.splitext(name)[0]


def _tell(stream: TextIO, text: str) -> None:
    """Print it; a stream that is closed or full changes nothing else."""
    try:
        print(text, file=stream, flush=True)
    except OSError:
        # What is left in the stream would be tried again at Python's end, and fail with a message of its own.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        close(null)
