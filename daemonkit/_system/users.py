"""Users and groups: who a process becomes, settled before anything is started."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
from dataclasses import dataclass

from daemonkit._system.check import check_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Final, TypeVar

    _T = TypeVar("_T")

_CAP_SETGID: Final = 6  # capabilities(7), linux/capability.h
_CAP_SETUID: Final = 7
_HIGHEST: Final = 2**32 - 2  # of user and group numbers; one more means "leave it": setresuid(2)


@dataclass(frozen=True)
class Owner:
    """Who a process runs as; `groups` None leaves the supplementary groups alone."""

    uid: int
    gid: int
    groups: tuple[int, ...] | None


def owner_of(
    uid: int | str | None,
    gid: int | str | None,
    groups: Iterable[int | str] | None = None,
    *,
    initgroups: bool = True,
    names: tuple[str, str, str] = ("uid", "gid", "groups"),
) -> Owner:
    """Return who to become; LookupError for a name nobody has, PermissionError without the right to.

    A user alone brings its own primary group. A change of user brings its supplementary groups too (without
    `initgroups`, none), unless `groups` says which: those of the caller are never kept. `names` are for messages.
    """
    user = _entry(names[0], uid, "user", pwd.getpwnam, pwd.getpwuid)
    group = _entry(names[1], gid, "group", grp.getgrnam, grp.getgrgid)
    number = os.getuid() if uid is None else user.pw_uid if user else int(uid)
    changes = uid is not None and {number} != {os.getuid(), os.geteuid()}
    if gid is not None:
        group_number = group.gr_gid if group else int(gid)
    elif user:
        group_number = user.pw_gid
    elif not changes:
        group_number = os.getgid()
    else:
        raise LookupError(
            f"{names[0]}: {uid!r} has no entry in the user database, so no group of its own; give {names[1]} too"
        )
    numbers = None
    if groups is not None:
        numbers = tuple(_group_number(names[2], one) for one in groups)
    elif changes:
        numbers = tuple(os.getgrouplist(user.pw_name, group_number)) if user and initgroups else ()
    owner = Owner(number, group_number, numbers)
    _check_rights(owner, names, uid, gid)
    return owner


def _group_number(name: str, value: int | str) -> int:
    entry = _entry(name, value, "group", grp.getgrnam, grp.getgrgid)
    if entry is None and value is None:
        raise TypeError(f"{name}: numbers and names of groups, not None")
    return entry.gr_gid if entry else int(value)


def _entry(
    name: str, value: int | str | None, kind: str, by_name: Callable[[str], _T], by_number: Callable[[int], _T]
) -> _T | None:
    if value is None:
        return None
    if isinstance(value, str):
        try:
            return by_name(value)
        except KeyError:
            _check_room()
            raise LookupError(f"{name}: there is no {kind} {value!r}") from None
        except ValueError as error:
            raise ValueError(f"{name}: {value!r} is no name: {error}") from None
    check_number(name, value, _HIGHEST)
    try:
        return by_number(value)
    except KeyError:
        _check_room()
        return None  # a number needs no entry


def _check_room() -> None:
    """Raise OSError if no file can be opened: then the user database could not be asked, which looks like a no."""
    os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


def _check_rights(owner: Owner, names: tuple[str, str, str], uid: object, gid: object) -> None:
    if owner.uid not in os.getresuid() and not has_capability(_CAP_SETUID):
        raise PermissionError(
            errno.EPERM, f"{names[0]}: only root (CAP_SETUID) can become {uid!r}; start as root, or as that user"
        )
    if (owner.groups is not None or owner.gid not in os.getresgid()) and not has_capability(_CAP_SETGID):
        who = uid if gid is None else gid
        text = f"{names[1]}: only root (CAP_SETGID) can join the groups of {who!r}; start as root"
        raise PermissionError(errno.EPERM, text)


def has_capability(number: int) -> bool:
    """Tell whether this process has a capability in effect: capabilities(7)."""
    with contextlib.suppress(OSError), open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"CapEff:"):
                return bool(int(line.split()[1], 16) >> number & 1)
    return os.geteuid() == 0


def change_owner(owner: Owner) -> None:
    """Become that user, for good."""
    if owner.groups is not None:
        os.setgroups(owner.groups)
    os.setresgid(owner.gid, owner.gid, owner.gid)
    os.setresuid(owner.uid, owner.uid, owner.uid)
