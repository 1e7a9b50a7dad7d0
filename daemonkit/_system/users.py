"""Users and groups: the user that a process becomes, looked up before anything is started."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
from collections import namedtuple

from daemonkit._system.check import check_number
from daemonkit._system.unpatched import close

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Final, TypeVar

    _T = TypeVar("_T")

_CAP_SETGID: Final = 6  # capabilities(7), linux/capability.h
_CAP_SETUID: Final = 7
_HIGHEST: Final = 2**32 - 2  # of user and group numbers; one more means "leave it": setresuid(2)
_LOGIN: Final = (b"HOME", b"USER", b"LOGNAME", b"SHELL")


class Owner(namedtuple("Owner", ("uid", "gid", "groups", "login"))):
    """The user and the groups that a process becomes."""

    __slots__ = ()
    uid: int
    gid: int
    groups: tuple[int, ...] | None
    """None leaves the supplementary groups alone."""
    login: dict[bytes, bytes] | None
    """HOME, USER, LOGNAME and SHELL of another user; None: the user stays the same."""

    def environment(self, env: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        """Return the environment as it is for that user, as systemd.exec(5) sets it.

        A user without an entry in the user database has HOME=/, and none of the others.
        """
        if self.login is None:
            return dict(env)
        return {name: value for name, value in env.items() if name not in _LOGIN} | self.login


def owner_of(
    uid: int | str | None,
    gid: int | str | None,
    groups: Iterable[int | str] | None = None,
    *,
    initgroups: bool = True,
    names: tuple[str, str, str] = ("uid", "gid", "groups"),
) -> Owner:
    """Return the user and groups to become; LookupError for an unknown name, PermissionError where it is not allowed.

    A user alone brings its own primary group. A change of user also brings the user's supplementary groups, or none
    without `initgroups`, or `groups`; the caller's are never kept. `names` are the options' names, for messages.
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
    owner = Owner(number, group_number, numbers, _login(user) if changes else None)
    _check_rights(owner, names, uid, gid)
    _check_mapped(owner, names)
    return owner


def _login(user: pwd.struct_passwd | None) -> dict[bytes, bytes]:
    if user is None:
        return {b"HOME": b"/"}
    values = (user.pw_dir, user.pw_name, user.pw_name, user.pw_shell or "/bin/sh")
    return dict(zip(_LOGIN, map(os.fsencode, values), strict=True))


def _group_number(name: str, value: int | str) -> int:
    entry = _entry(name, value, "group", grp.getgrnam, grp.getgrgid)
    if entry is None and value is None:
        raise TypeError(f"{name} must be numbers and names of groups, not None")
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
            raise_if_no_descriptor_left()
            raise LookupError(f"{name}: there is no {kind} {value!r}") from None
        except ValueError as error:
            raise ValueError(f"{name}: invalid name {value!r}: {error}") from None
    check_number(name, value, _HIGHEST)
    try:
        return by_number(value)
    except KeyError:
        raise_if_no_descriptor_left()
        return None  # a number needs no entry


def raise_if_no_descriptor_left() -> None:
    """Raise OSError if no file can be opened: the user database then seems to have no entry for anybody."""
    close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


def _check_rights(owner: Owner, names: tuple[str, str, str], uid: object, gid: object) -> None:
    if owner.uid not in os.getresuid() and not has_capability(_CAP_SETUID):
        raise PermissionError(
            errno.EPERM, f"{names[0]}: only root (CAP_SETUID) can become {uid!r}; start as root, or as that user"
        )
    if (owner.groups is not None or owner.gid not in os.getresgid()) and not has_capability(_CAP_SETGID):
        who = uid if gid is None else gid
        text = f"{names[1]}: only root (CAP_SETGID) can join the groups of {who!r}; start as root"
        raise PermissionError(errno.EPERM, text)


def _check_mapped(owner: Owner, names: tuple[str, str, str]) -> None:
    """Refuse users and groups that do not exist in this user namespace: user_namespaces(7)."""
    if owner.uid not in os.getresuid():
        _check_map("uid", names[0], owner.uid)
    for gid in {owner.gid, *(owner.groups or ())}.difference(os.getresgid()):
        _check_map("gid", names[1], gid)
    if owner.groups is not None and _read("/proc/self/setgroups").strip() == "deny":
        text = f"{names[0]}: this user namespace can't set supplementary groups (/proc/self/setgroups: deny)"
        raise PermissionError(errno.EPERM, f"{text}; start outside of it, or map the groups by newgidmap(1)")


def _check_map(kind: str, name: str, number: int) -> None:
    ranges = [tuple(map(int, line.split())) for line in _read(f"/proc/self/{kind}_map").splitlines()]
    if ranges and not any(first <= number < first + count for first, _, count in ranges):
        text = f"{name}: {number} is not mapped in this user namespace (/proc/self/{kind}_map)"
        raise PermissionError(errno.EPERM, f"{text}; start outside of it, or map the number by new{kind}map(1)")


def _read(path: str) -> str:
    """Return the text of a file in /proc; nothing where there is none, as without /proc or without namespaces."""
    try:
        with open(path) as file:
            return file.read()
    except (FileNotFoundError, PermissionError):
        return ""


def has_capability(number: int) -> bool:
    """Tell whether this process has a capability in effect: capabilities(7)."""
    with contextlib.suppress(OSError), open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"CapEff:"):
                return bool(int(line.split()[1], 16) >> number & 1)
    return os.geteuid() == 0


def is_own(owner: Owner) -> bool:
    """Tell whether this process is that user already, for good."""
    return owner.groups is None and {*os.getresuid()} == {owner.uid} and {*os.getresgid()} == {owner.gid}


def change_owner(owner: Owner) -> None:
    """Become that user for good, with the HOME, USER, LOGNAME and SHELL of that user."""
    if owner.groups is not None:
        os.setgroups(owner.groups)
    os.setresgid(owner.gid, owner.gid, owner.gid)
    os.setresuid(owner.uid, owner.uid, owner.uid)
    if owner.login is not None:
        for name in _LOGIN:
            os.environb.pop(name, None)
        os.environb.update(owner.login)
