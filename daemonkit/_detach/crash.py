"""An exception that leaves the body: logged, and on stderr once."""

from __future__ import annotations

import contextlib
import logging
import os
import traceback

_logger = logging.getLogger("daemonkit")


def log_crash(error: BaseException) -> None:
    """Log the exception, and see to it that its traceback is on stderr, once."""
    message = f"process {os.getpid()} ends: {''.join(traceback.format_exception_only(error)).strip()}"
    _logger.critical("%s", message, exc_info=error)
    if not _on_stderr():
        with contextlib.suppress(OSError, ValueError):
            traceback.print_exception(error)


def _on_stderr() -> bool:
    """Tell whether a critical record reached the file that is descriptor 2, whichever handler took it there."""
    if not _logger.isEnabledFor(logging.CRITICAL) or _logger.filters:
        return False
    if not _logger.hasHandlers():
        return logging.lastResort is not None
    logger: logging.Logger | None = _logger
    while logger:
        if any(_writes_stderr(handler) for handler in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False


def _writes_stderr(handler: logging.Handler) -> bool:
    stream = getattr(handler, "stream", None)
    try:
        takes_it = handler.level <= logging.CRITICAL and not handler.filters
        return takes_it and stream is not None and os.path.sameopenfile(stream.fileno(), 2)
    except (AttributeError, OSError, ValueError):
        return False


def reason_of(error: BaseException) -> str:
    """Return why a start failed: the exception in one line, or the text that `sys.exit` was given."""
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
        return ""  # the exit status tells it all
    if isinstance(error, SystemExit):
        return str(error.code)
    # Without the note of a StartError, which is a traceback.
    return "".join(traceback.format_exception_only(error)).partition("\nThe daemon's own traceback:")[0].strip()
