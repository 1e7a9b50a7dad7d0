"""An exception that leaves the body: logged, and on stderr once."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import traceback

from daemonkit._system.fork import first_cause

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from types import FrameType


def logger() -> logging.Logger:
    """Return the package's logger. A program that has no other use for `logging` need not load it.

    The module has hooks of its own, which each fork runs in the parent and in the child; the pages that they touch are
    copied.
    """
    import logging  # noqa: PLC0415 - see above

    return logging.getLogger("daemonkit")


def log_crash(error: BaseException) -> None:
    """Log the exception wherever the program's logging goes, but for stderr: the traceback will be there anyway."""
    if "logging" not in sys.modules:  # so it goes nowhere
        return
    import logging  # noqa: PLC0415 - see `logger`

    own = logger()
    if not own.isEnabledFor(logging.CRITICAL):
        return
    message = f"process {os.getpid()} ends: {''.join(traceback.format_exception_only(error)).strip()}"
    info = (type(error), error, error.__traceback__)
    record = own.makeRecord(own.name, logging.CRITICAL, __file__, 0, message, (), info, "log_crash")
    if not own.filter(record):
        return
    source: logging.Logger | None = own
    while source:
        for handler in source.handlers:
            if record.levelno >= handler.level and not _writes_stderr(handler):
                try:
                    handler.handle(record)
                except Exception:  # noqa: BLE001 - whatever it is, it must not take the place of the program's own error
                    handler.handleError(record)
        source = source.parent if source.propagate else None


def show_crash(text: str) -> None:
    """Print the traceback of a start that failed, as the interpreter would at its end."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text)


def hide_exit_from_shutdown(frame: FrameType | None) -> None:
    """Have the interpreter not print the SystemExit that is about to be raised, if it only waits for the last threads.

    Such an exception ends that wait, and the exit handlers run. But the interpreter shows it as an error.
    """
    while frame and frame.f_back:
        frame = frame.f_back
    if not frame or frame.f_globals is not vars(threading):
        return
    show = sys.unraisablehook  # which may be the program's own

    def show_all_but_exits(unraisable: sys.UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, SystemExit):
            show(unraisable)

    sys.unraisablehook = show_all_but_exits


def is_exit_in_a_group(error: BaseException | None) -> bool:
    """Tell whether this is what a SIGTERM has become on its way through task groups, as those of trio and anyio."""
    if not isinstance(error, BaseExceptionGroup):
        return False
    return error.split(lambda one: isinstance(one, SystemExit) and one.code == 0)[1] is None


def _writes_stderr(handler: logging.Handler) -> bool:
    """Tell whether a handler writes to the file that is descriptor 2, by whichever name it opened that.

    A MemoryHandler writes through its target, rich's handler through its console.
    """
    import logging  # noqa: PLC0415 - see `logger`

    if isinstance(target := getattr(handler, "target", None), logging.Handler):
        return _writes_stderr(target)
    stream = getattr(handler, "stream", None) or getattr(getattr(handler, "console", None), "file", None)
    try:
        return os.path.sameopenfile(stream.fileno(), 2)  # type: ignore[union-attr]  # not every one has it
    except (AttributeError, OSError, ValueError):
        return False


def reason_of(error: BaseException) -> str:
    """Return why a start failed: the exception in one line, or the text that `sys.exit` was given."""
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
        return ""  # the exit status tells it all
    if isinstance(error, SystemExit):
        return str(error.code)
    error, others = first_cause(error)
    # Without the note of a StartError, which is a traceback.
    text = "".join(traceback.format_exception_only(error)).partition("\nThe daemon's own traceback:")[0]
    return text.strip() + others
