"""What the caller wants: the arguments of `supervise`, and what `on_reload` changes of them.

Changed settings are a trial until the worker has rolled them in. If they do not come up, the old ones stay in force.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from daemonkit._supervise.plumbing import Logs
from daemonkit._supervise.settings import Kept, Settings, check, end_what_is_left, settle
from daemonkit._system.record import record
from daemonkit._system.sockets import is_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable
    from typing import Any, Final

    from daemonkit._supervise.logs import Sink
    from daemonkit._supervise.pump import Pump

_logger = logging.getLogger("daemonkit")
REFUSED: Final = "the new settings are refused, so the old ones stay in force: %s"
"""A line of the log."""


class RefusedError(Exception):
    """`on_reload` raised, or what it returned is refused: it was logged, and the old settings stay."""


@record(frozen=True)
class Trial:
    """Settings that are to be rolled in."""

    serial: int
    options: dict[str, Any]
    settings: Settings
    kept: Kept
    only_scale: bool
    """Whether nothing but the number of instances changes, so that those that run are left alone."""


class Wishes:
    """The settings in force, and those on trial."""

    def __init__(
        self,
        options: dict[str, Any],
        on_reload: Callable[[], Mapping[str, Any]] | None,
        stack: contextlib.ExitStack,
    ) -> None:
        """Check the options and open what they need; the stack closes it."""
        self._options, self._on_reload, self._stack = _read_once(options), on_reload, stack
        end_what_is_left(check(self._options))
        self.settings, self._kept = settle(self._options, Kept(), stack)
        self._trials: dict[int, Trial] = {}
        self._serial = 0

    def ask(self) -> Trial | None:
        """Ask `on_reload`; return what is to be rolled in, None if nothing changes. RefusedError."""
        if self._on_reload is None:
            return None
        try:
            changes = self._on_reload()
        except Exception as error:
            _logger.exception("on_reload raised, so the old settings stay in force")
            raise RefusedError from error
        try:
            latest = self._latest()
            options = _changed(latest, changes)
            if options == latest:
                return None
            settings, kept = settle(options, self._all_kept(), self._stack)
        except Exception as error:
            _logger.error(REFUSED, error)  # noqa: TRY400 - The error says what is wrong with the settings.
            raise RefusedError from error
        self._serial += 1
        same = {name for name in options if options[name] == latest[name]}
        trial = Trial(self._serial, options, settings, kept, only_scale=options.keys() - same == {"instances"})
        self._trials[trial.serial] = trial
        return trial

    def _latest(self) -> dict[str, Any]:
        """Return the options that were wished last, in force or on trial."""
        return self._trials[self._serial].options if self._serial in self._trials else self._options

    def settled(self, serial: int, *, good: bool) -> None:
        """Put a trial in force, or forget it."""
        trial = self._trials.pop(serial)
        before = {**trial.kept.sockets, **self._kept.sockets}
        if good:
            self._options, self.settings, self._kept = trial.options, trial.settings, trial.kept
        used = self._all_kept().sockets
        for given, sock in before.items():
            if given not in used and sock is not given:
                sock.close()
        if good:
            self._kept.logs.put_in_force()
            _logger.info("the new settings are in force")
        elif serial == self._serial:  # if not, a later trial took its place
            _logger.warning("the new settings did not come up, so the old ones stay in force")

    def _all_kept(self) -> Kept:
        """Return what the settings in force keep open, and those on trial."""
        all_kept = [self._kept, *(trial.kept for trial in self._trials.values())]
        sockets = {given: sock for kept in all_kept for given, sock in kept.sockets.items()}
        sinks = {key: sink for kept in all_kept for key, sink in kept.logs.sinks.items()}
        pumps = {key: pump for kept in all_kept for key, pump in kept.logs.pumps.items()}
        in_use = frozenset().union(*(kept.logs.in_use for kept in all_kept))
        return Kept(sockets, Logs(sinks, pumps, in_use))

    def drop_trials(self) -> bool:
        """Forget all trials, as the worker that had them was killed; return whether there was one."""
        serials = list(self._trials)
        for serial in serials:
            self.settled(serial, good=False)
        return bool(serials)

    def count(self) -> int:
        """Return the highest number of instances there may be."""
        return max(self.settings.instances, *(trial.settings.instances for trial in self._trials.values()), 0)

    def pumps(self) -> set[Pump]:
        """Return all pumps, also those of earlier settings: runs of theirs may still print."""
        return {pump for logs in self._logs() for pump in logs.pumps.values()}

    def pumps_of(self, index: int) -> set[Pump]:
        """Return the pumps of one instance."""
        found = {logs.by_stream.get((number, index)) for logs in self._logs() for number in (1, 2)}
        return {pump for pump in found if pump}

    def sinks(self) -> set[Sink]:
        """Return all logs that are written to."""
        return {pump.log for logs in self._logs() for pump in logs.by_stream.values()}

    def _logs(self) -> list[Any]:
        return [self._kept.logs, *(trial.kept.logs for trial in self._trials.values())]


def _changed(options: Mapping[str, Any], changes: object) -> dict[str, Any]:
    """Return the options with the changes; TypeError."""
    if not isinstance(changes, Mapping):
        raise TypeError(f"on_reload must return a mapping of arguments of supervise(), not {changes!r}")
    unknown = [name for name in changes if name not in options]
    if unknown:
        raise TypeError(f"on_reload: {unknown[0]!r} is not an argument of supervise() that can be changed")
    before, target = options["target"], changes.get("target", options["target"])
    if (callable(before) or callable(target)) and target is not before:
        raise TypeError(
            "on_reload can change a target only where it is a command; a callable is in the worker process already"
        )
    return _read_once({**options, **changes})


def _read_once(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with lists where an iterator could be read only once; what can't be is refused later."""
    found = dict(options)
    listen, codes = found["listen"], found["success_codes"]
    if isinstance(listen, Iterable) and not isinstance(listen, str) and not is_socket(listen):
        found["listen"] = list(listen)
    if isinstance(codes, Iterable) and not isinstance(codes, (str, bytes)):
        found["success_codes"] = list(codes)
    return found
