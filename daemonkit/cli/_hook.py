"""What `--on-event` runs when something happens to an app."""

from __future__ import annotations

import logging

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from daemonkit._supervise import Event

_logger = logging.getLogger("daemonkit")
_MOST: Final = 8  # at once; a crash loop is not to start more and more of them
_SCRIPT: Final = """
timeout -s KILL 60 /bin/sh -c "$1"
status=$?
[ $status = 0 ] || echo "daemonkit: the command of --on-event ended with status $status, at $DAEMONKIT_EVENT" >&2
"""
_TOLD: Final = frozenset({"gave-up", "memory", "watchdog", "unhealthy", "reload-failed"})


class Hook:
    """A command that is run at events: launched and left alone, it neither holds up the app nor ends with it."""

    def __init__(  # noqa: PLR0913, PLR0917 - what a run of it is made of
        self,
        command: str,
        app: str,
        environment: Mapping[str, str],
        cwd: str,
        log: str | None,
        number: str | None = None,
    ) -> None:
        """Take the command, for /bin/sh; its output goes to the log, None for the supervisor's own streams.

        `number` is that of the only instance, None to count from 0 on.
        """
        self._command, self._app, self._environment, self._cwd, self._log = command, app, environment, cwd, log
        self._number = number
        self._running: list[object] = []

    def tell(self, event: Event, *, wished: bool) -> None:
        """Run the command, if the event is one to be told: an exit that was wished is none."""
        if event.kind not in _TOLD and (event.kind != "exit" or wished):
            return
        from daemonkit import INHERIT, STDOUT, spawn_detached

        self._running = [process for process in self._running if process.running]  # type: ignore[attr-defined]
        if len(self._running) >= _MOST:
            _logger.warning("the command of --on-event is not run, as %d of its runs have not ended yet", _MOST)
            return
        variables = {
            "DAEMONKIT_APP": self._app,
            "DAEMONKIT_EVENT": event.kind,
            "DAEMONKIT_INSTANCE": "" if event.instance < 0 else self._number or str(event.instance),
            "DAEMONKIT_PID": str(event.pid or ""),
            "DAEMONKIT_EXITCODE": "" if event.exitcode is None else str(event.exitcode),
        }
        try:
            process = spawn_detached(
                ["/bin/sh", "-c", _SCRIPT, "sh", self._command],
                env={**self._environment, **variables},
                cwd=self._cwd,
                stdout=self._log or INHERIT,
                stderr=STDOUT if self._log else INHERIT,
            )
        except OSError as error:
            _logger.warning("the command of --on-event could not be run: %s", error)
        else:
            self._running.append(process)
