"""What runs in the daemon, or in the foreground: the target, with its context, its event loop and its end."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import inspect
import io
import logging
import os
import signal
import sys
import threading
import traceback

from daemonkit._detach import DetachedContext
from daemonkit._system.descriptors import inode
from daemonkit._system.fork import exit_status_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine
    from types import FrameType
    from typing import Any, NoReturn

    from daemonkit._service.service import Report, Service, Target

_logger = logging.getLogger("daemonkit")


class Context(DetachedContext):
    """A context that tells when it counts as started."""

    on_start: Callable[[], None] | None = None

    def ready(self, status: str | None = None) -> None:
        """Do the same, and tell."""
        super().ready(status)
        self.has_started()

    def has_started(self) -> None:
        if tell := self.on_start:
            self.on_start = None
            tell()


def context_of(service: Service, **overrides: Any) -> Context:  # noqa: ANN401 - options of several types
    """Return the context for a service's options; the first of them that is of no use is an exception."""
    options: dict[str, Any] = {**service.options, "pidfile": service.pidfile, **overrides}
    if signal_map := options.get("signal_map"):
        options["signal_map"] = {
            key: _in_loop(action) if inspect.iscoroutinefunction(action) else action
            for key, action in signal_map.items()
        }
    if inspect.iscoroutinefunction(service.target):
        import asyncio  # noqa: F401, PLC0415 - now: after a change of user or root nothing can be imported for certain
    return Context(**options)


def run_here(service: Service, report: Report) -> None:
    """Run the target in the foreground."""
    context = context_of(service, detach_process=False, stdin=None, stdout=None, stderr=None)
    context.on_start = functools.partial(setattr, report, "started", True)
    with context:
        if not context.wait_ready:
            context.has_started()
        perform(service.target, context)


def perform(target: Target, context: DetachedContext) -> None:
    """Call the target, and run the coroutine that it may return."""
    try:
        result = target(context) if _takes_argument(target) else target()  # type: ignore[call-arg]  # as was found out
        if inspect.iscoroutine(result):
            _run_coroutine(result, context)
    except Exception as error:
        status = getattr(error, "exit_code", None)  # click.ClickException, typer.Exit
        if isinstance(status, int):
            raise SystemExit(status) from error
        raise


def _takes_argument(function: Callable[..., object]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a function in C that does not tell
        return False
    kinds = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    )
    return any(parameter.kind in kinds for parameter in parameters)


# --- coroutines -----------------------------------------------------------------------------------------------------


def _run_coroutine(coroutine: Coroutine[Any, Any, object], context: DetachedContext) -> None:
    """Run it in an event loop; SIGTERM cancels it, unless the program handles SIGTERM itself."""
    import asyncio  # noqa: PLC0415 - it takes 60 ms

    asked_to_end = False

    def cancel(task: asyncio.Task[object]) -> None:
        nonlocal asked_to_end
        asked_to_end = True
        task.cancel()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        before = signal.getsignal(signal.SIGTERM)
        if before == context.terminate:
            # The loop's own way wakes it up in any case; a handler of `signal` may come just before it sleeps.
            loop.add_signal_handler(signal.SIGTERM, cancel, asyncio.current_task())  # type: ignore[arg-type]  # there is one
        try:
            await coroutine
        finally:
            if before == context.terminate:
                signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # in between it would be at its default
                loop.remove_signal_handler(signal.SIGTERM)
                signal.signal(signal.SIGTERM, before)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])

    try:
        asyncio.run(main())
    except asyncio.CancelledError:
        if not asked_to_end:
            raise


def _in_loop(function: Callable[..., Coroutine[Any, Any, object]]) -> Callable[[int, FrameType | None], None]:
    """Return a handler that runs a coroutine function in the event loop of the main thread, whoever runs that."""
    import asyncio  # noqa: PLC0415 - as above

    tasks = set()  # the loop itself keeps only weak references
    takes_arguments = _takes_argument(function)

    def start(loop: asyncio.AbstractEventLoop, number: int) -> None:
        task = loop.create_task(function(number, None) if takes_arguments else function())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    @functools.wraps(function)
    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler's arguments
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            _logger.warning("%s came while no event loop ran: %s was not called", signal.Signals(number).name, function)
            return
        loop.call_soon_threadsafe(start, loop, number)

    return handle


# --- the daemon's end -----------------------------------------------------------------------------------------------


def take_exit_handlers() -> None:
    """Forget the caller's exit handlers, in its copy; keep what looks after this very process."""
    atexit._clear()  # noqa: SLF001 - as multiprocessing does in its own forks
    if pool := sys.modules.get("multiprocessing.util"):
        children: Any = sys.modules.get("multiprocessing.process")
        children._children.clear()  # noqa: SLF001 - as above: those are the caller's
        pool._finalizer_registry.clear()  # noqa: SLF001 - as above
        atexit.register(pool._exit_function)  # noqa: SLF001 - as above
    if weakref := sys.modules.get("weakref"):
        weakref.finalize._registry.clear()  # noqa: SLF001 - a TemporaryDirectory of the caller's is not ours to remove
        weakref.finalize._registered_with_atexit = False  # noqa: SLF001 - so that the daemon's own are run
    atexit.register(logging.shutdown)


def conclude(error: BaseException | None) -> int:
    """Report an exception as Python does at a program's end; return the exit status."""
    if isinstance(error, SystemExit):
        if error.code is not None and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)  # noqa: T201 - as Python does it
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
    return exit_status_of(error)


def end(status: int, context: DetachedContext, callers: dict[int, tuple[int, int]]) -> NoReturn:
    """End the daemon as Python ends a program, but for the caller's frames, which this process has a copy of.

    Those must not be left, as their ``finally`` blocks are the caller's; so the process ends here. `callers` are the
    files that the caller had open, by descriptor: what it has not written yet is not written twice.
    """
    steps = (threading._shutdown, atexit._run_exitfuncs, functools.partial(_flush_files, callers), context.close)  # type: ignore[attr-defined]  # noqa: SLF001 - as multiprocessing ends its processes
    try:
        for step in steps:
            try:
                step()
            except BaseException:  # noqa: BLE001 - a SIGTERM ends the step that it finds, as at Python's own end
                traceback.print_exc()
    finally:
        os._exit(status)


def _flush_files(callers: dict[int, tuple[int, int]]) -> None:
    """Write what the daemon's own files have not written yet, as Python's end would."""
    gc.collect()
    for thing in gc.get_objects():
        if isinstance(thing, (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)):
            with contextlib.suppress(OSError, ValueError):
                fd = thing.fileno()
                if fd in {1, 2} or callers.get(fd) != inode(fd):
                    thing.flush()
