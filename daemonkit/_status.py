"""Look at a pidfile: `status`.

A program may ask often, or only to show the answer once, so this loads little: `lockfile` and `dataclasses` each take
as long as all the rest, and so does `datetime`, which only `Status.started` needs.
"""

from __future__ import annotations

from daemonkit._pidfile.holder import find_holder, pidfile_path
from daemonkit._system.process import wall_clock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime
    from typing import Never

    from daemonkit._pidfile.pidfile import PidFile
    from daemonkit._system.streams import Path


class Status:
    """The state of a pidfile at one moment; true if it was held. Frozen, as a dataclass can be.

    >>> with daemonkit.PidFile("app.pid"):
    ...     status = daemonkit.status("app.pid")
    >>> status.running, status.pid == os.getpid(), bool(daemonkit.status("app.pid"))
    (True, True, False)
    """

    __slots__ = ("_ticks", "pid", "running")
    __match_args__ = ("running", "pid")

    if TYPE_CHECKING:  # so that type checkers refuse to set them

        @property
        def running(self) -> bool:
            """Whether a live process held it."""

        @property
        def pid(self) -> int | None:
            """The holder's, None if there was none."""

    def __init__(self, running: bool, pid: int | None, _ticks: int | None = None) -> None:  # noqa: FBT001 - a field
        """Set the fields, once and for all."""
        object.__setattr__(self, "running", running)
        object.__setattr__(self, "pid", pid)
        object.__setattr__(self, "_ticks", _ticks)

    @property
    def started(self) -> datetime | None:
        """When the holder started, by today's clock, in UTC; None if nothing ran, or where /proc hides it."""
        from datetime import UTC, datetime  # noqa: PLC0415 - Importing datetime takes as long as status() itself.

        ticks: int | None = self._ticks  # type: ignore[attr-defined]  # a slot
        return datetime.fromtimestamp(wall_clock(ticks), UTC) if ticks else None

    def _fields(self) -> tuple[bool, int | None, int | None]:
        return self.running, self.pid, self._ticks  # type: ignore[attr-defined]  # a slot

    def __bool__(self) -> bool:
        """Whether it was held."""
        return self.running

    def __repr__(self) -> str:
        """Show all three."""
        return f"Status(running={self.running}, pid={self.pid}, started={self.started!r})"

    def __eq__(self, other: object) -> bool:
        """Compare the fields, the holder's start time among them."""
        return self._fields() == other._fields() if isinstance(other, Status) else NotImplemented

    def __hash__(self) -> int:
        """Hash the fields."""
        return hash(self._fields())

    def __reduce__(self) -> tuple[type[Status], tuple[bool, int | None, int | None]]:
        """Pickle and copy by the fields, as nothing may be set later."""
        return Status, self._fields()

    def __setattr__(self, name: str, _value: object) -> Never:
        """Raise `dataclasses.FrozenInstanceError`, an AttributeError."""
        from dataclasses import FrozenInstanceError  # noqa: PLC0415 - Importing dataclasses takes as long as the rest.

        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> Never:
        """Raise the same."""
        self.__setattr__(name, None)


def status(pidfile: Path | PidFile) -> Status:
    """Tell whether the pidfile is held, and by which process.

    Reads only, and disturbs nobody who starts or stops. A file that another tool wrote, and that names a live process
    which started before, counts as held. Raises OSError, with the path, for what cannot be a pidfile.
    """
    holder = find_holder(pidfile_path(pidfile))
    return Status(running=True, pid=holder.pid, _ticks=holder.started) if holder else Status(running=False, pid=None)
