"""The public names on a system that is not Linux, where a cross-platform program may import daemonkit too."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def unavailable(name: str) -> str:
    """Return what to say of something that is called here all the same."""
    return (
        f"{name} needs Linux, and a Python that has os.pidfd_open and fcntl.F_OFD_SETLK; this is {sys.platform}. "
        "Run the program in a Linux container (Docker, Podman) or virtual machine"
    )


def stand_in(name: str) -> object:
    """Return a class or function for the public `name` that raises NotImplementedError when it is called.

    A class stays one, so that it can stand in annotations, ``isinstance`` and ``except``.
    """

    def refuse(*_arguments: object, **_options: object) -> NoReturn:
        raise NotImplementedError(unavailable(f"daemonkit.{name}"))

    if name[0].isupper():
        return type(name, (), {"__new__": refuse, "__module__": "daemonkit"})
    refuse.__name__ = refuse.__qualname__ = name
    return refuse
