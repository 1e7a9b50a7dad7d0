"""What the system itself has, where gevent or eventlet has put something else.

After `gevent.monkey.patch_all()` or `eventlet.monkey_patch()` a wait lets other greenlets run meanwhile. That is wrong
in a process that blocks its signals, or was just forked: those greenlets are the caller's, and may never come back.
Other functions are gone (`select.epoll`), watch and reap children on their own (`os.posix_spawn`), or take effect only
once the greenlets run again (`os.close`), so that whoever reads a pipe waits for its end in vain. The obvious way, to
ask gevent and eventlet for the originals, depends on both and on each of their versions. What lies below the modules
that they change stays as it is: `posix` below `os`, `_signal` below `signal`, a second copy of `select`.
"""

from __future__ import annotations

import _signal
import _thread
import os
import posix
import select
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable
    from types import FrameType, ModuleType
    from typing import TypeVar

    _F = TypeVar("_F", bound=Callable[..., object])
    Handler = Callable[[int, FrameType | None], object] | int | None

close = posix.close
pthread_sigmask: Callable[[int, Iterable[int]], set[int]] = _signal.pthread_sigmask
"""The one of `signal` makes names of the numbers in the old mask: if that has all signals, it takes 0.1 ms."""
RLock = _thread.RLock


def is_green(function: object) -> bool:
    """Tell whether a function or a class is one that gevent or eventlet has put where it is."""
    return str(getattr(function, "__module__", "")).partition(".")[0] in {"gevent", "eventlet"}


def genuine(function: _F) -> _F:
    """Return a function of `os` as the system has it."""
    return getattr(posix, function.__name__, function) if is_green(function) else function


def copy_of(module: ModuleType) -> ModuleType:
    """Return a second copy of a module, in which nobody has changed anything."""
    spec = module.__spec__
    copy = spec.loader.create_module(spec) or type(module)(module.__name__)  # type: ignore[arg-type, union-attr]
    copy.__spec__ = spec
    spec.loader.exec_module(copy)  # type: ignore[union-attr]
    return copy


# Both take epoll away. Where it is, these are the real ones, and stay so in here if a patch comes later.
_select = select if TYPE_CHECKING or hasattr(select, "epoll") else copy_of(select)
poll, epoll, POLLIN = _select.poll, _select.epoll, _select.POLLIN


def get_handler(number: int) -> Handler:
    """Return a signal's handler; gevent has a SIGCHLD of its own."""
    handler: Handler = _signal.getsignal(number)
    return handler


def set_handler(number: int, handler: Handler) -> None:
    """Set a signal's handler, as `signal.signal` does; gevent would only note one of SIGCHLD."""
    _signal.signal(number, int(handler) if isinstance(handler, int) else handler)


def in_main_thread() -> bool:
    """Tell whether this is the main thread. Each greenlet in it counts, whatever `threading` is made to say."""
    import threading  # noqa: PLC0415 - 2 ms, which a look at a pidfile has no use for

    return threading.current_thread() is threading.main_thread() or threading.get_native_id() == os.getpid()


def other_threads() -> list[threading.Thread]:
    """Return Python's other threads. A green one is none: it has no number of its own."""
    import threading  # noqa: PLC0415 - as above

    own, this = threading.get_native_id(), threading.current_thread()
    # In a forked child this thread's object still has its parent's number, up to Python 3.12.
    return [
        thread for thread in threading.enumerate() if thread is not this and getattr(thread, "native_id", own) != own
    ]


def renew_hubs(*, closed: bool = False) -> None:
    """In a forked child: give its greenlets an event loop of their own, as it shares that of the parent.

    With `closed` the loop's descriptors are gone, which gevent's would not survive: it starts anew.
    """
    if gevent := sys.modules.get("gevent"):
        if closed:
            gevent.get_hub().destroy(destroy_loop=True)
        gevent.reinit()
    if hubs := sys.modules.get("eventlet.hubs"):
        if drives_greenlets(running_loop()):
            sys.modules["asyncio"]._set_running_loop(None)  # noqa: SLF001 - meant for those who implement loops
        hubs.use_hub(type(hubs.get_hub()))


def running_loop() -> object:
    """Return the asyncio event loop that runs in this thread, None if there is none."""
    asyncio = sys.modules.get("asyncio")  # whoever runs a loop has imported it
    return asyncio and asyncio._get_running_loop()  # noqa: SLF001 - as above


def drives_greenlets(loop: object) -> bool:
    """Tell whether that loop is the one on which eventlet's asyncio hub runs its greenlets."""
    hubs = sys.modules.get("eventlet.hubs")
    return hubs is not None and loop is not None and getattr(hubs.get_hub(), "loop", None) is loop
