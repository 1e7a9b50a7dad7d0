"""The pidfile's lock protocol keeps its promises in whatever order its system calls come: see scheduler.py.

The planted bugs at the end prove that a broken protocol is found by the same means.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import os
import time
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scheduler import (
    AFTER_ITS_FORK,
    BEFORE,
    CALLS,
    FLOCK,
    FOREIGN,
    HERE,
    HOLDER_RANGE,
    PIDS,
    UNTIL_IT_HOLDS,
    BrokenPromiseError,
    Contender,
    Part,
    Scenario,
    World,
    current,
    here,
    scenarios,
)

from daemonkit._pidfile import hold as hold_module
from daemonkit._pidfile import holder as holder_module
from daemonkit._pidfile import ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# More schedules, and other ones each time: DAEMONKIT_SCHEDULES=20000.
SCHEDULES: Final = int(os.environ.get("DAEMONKIT_SCHEDULES", "0"))

# --- the module under test, driven ----------------------------------------------------------------------------------


class Proxy:
    """A module whose system calls are a contender's, when a contender makes them."""

    def __init__(self, module: Any, calls: frozenset[str], **instead: Any) -> None:
        self.__dict__.update(instead)
        self._module = module
        for name in calls:
            self.__dict__[name] = self._driven(name, getattr(module, name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    @staticmethod
    def _driven(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            me = current()
            return me.world.call(me, name, function, *args, **options) if me else function(*args, **options)

        return call


class HoldsOfEach:
    """The module's set of holds: each contender's own."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own(), name)

    def __iter__(self) -> Iterator[hold_module.Hold]:
        return iter(self._own())

    def __len__(self) -> int:
        return len(self._own())

    def __contains__(self, hold: object) -> bool:
        return hold in self._own()

    def _own(self) -> set[hold_module.Hold]:
        me = current()
        assert me, "only contenders hold"
        return me.holds


def _me() -> Contender:
    me = current()
    assert me, "only contenders have identities"
    return me


def _replace(patch: pytest.MonkeyPatch, name: str, value: object) -> None:
    """Replace a name wherever the protocol's modules have it."""
    having = [module for module in (ranges, holder_module, hold_module) if hasattr(module, name)]
    assert having, name
    for module in having:
        patch.setattr(module, name, value)


@pytest.fixture(autouse=True)
def _driven(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    instead = {
        "os": Proxy(os, CALLS, getpid=lambda: _me().who.pid if current() else os.getpid()),
        "fcntl": Proxy(fcntl, frozenset({"fcntl"})),
        "time": Proxy(time, frozenset(), monotonic=lambda: 0.0),  # patience never ends
        "_holds": HoldsOfEach(),
        "_hook_fork": lambda: None,  # nothing forks here
        "identity": lambda: _me().who,
        "start_of": lambda pid: _me().world.start_of(pid),
        "is_alive": lambda who: _me().world.start_of(who.pid) == who.started,
        "wait_for_end": lambda _pid, _seconds, **_options: _me().wait(),
        "pause": lambda _seconds: _me().wait(),
    }
    for name, value in instead.items():
        _replace(monkeypatch, name, value)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})  # one thread runs at a time: handing over to another core only takes longer
    yield
    os.sched_setaffinity(0, cores)


def explore(strategy: Any, directory: Path, examples: int, *, planted: bool = False) -> None:
    """Play drawn scenarios until one shows a violation, or enough have been played."""
    phases = (Phase.generate,) if planted else (Phase.explicit, Phase.generate, Phase.shrink)

    @settings(
        max_examples=examples if planted else SCHEDULES or examples,
        derandomize=planted or not SCHEDULES,
        phases=phases,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def play(scenario: Scenario) -> None:
        World(scenario, directory).run()

    play()


# --- the promises ---------------------------------------------------------------------------------------------------

# One that is anywhere in its work is overtaken by another; what follows is drawn freely.
OVERTAKEN: Final = st.integers(1, 30).map(lambda calls: ((0, calls), (1, UNTIL_IT_HOLDS)))
DAEMON_OVERTAKEN: Final = st.integers(0, 10).map(
    lambda calls: ((0, UNTIL_IT_HOLDS), (0, 3), *(((-1, calls), (1, 30)) if calls else ()))
)
CONTENDED: Final = scenarios("starter", others=("starter", "starter", "reader"), overtaken=OVERTAKEN)
UNNAMED: Final = CONTENDED.map(lambda scenario: dataclasses.replace(scenario, unnamed=True))
HANDED_OVER: Final = scenarios(
    "launcher", others=("starter", "reader"), before=("none", "stale", "orphan"), overtaken=DAEMON_OVERTAKEN
)
STALE: Final = scenarios(
    "starter", others=("starter",), before=("stale", "empty", "rubbish", "orphan"), overtaken=OVERTAKEN
)
WATCHED: Final = scenarios("launcher", others=("reader",), before=("none",), overtaken=DAEMON_OVERTAKEN)
UNPRIVILEGED: Final = scenarios("unprivileged", others=("starter", "reader"), overtaken=OVERTAKEN)
ANYONE: Final = scenarios(
    "starter",
    "twice",
    others=("starter", "starter", "twice", "unprivileged", "breaker", "reader", "launcher"),
    overtaken=OVERTAKEN,
)


def test_any_number_of_starters_one_holds_and_readers_see_exactly_that_one(tmp_path: Path) -> None:
    explore(CONTENDED, tmp_path, 400)


def test_a_lock_that_is_handed_to_a_daemon_is_never_held_twice_and_never_by_nobody(tmp_path: Path) -> None:
    explore(HANDED_OVER, tmp_path, 400)


def test_starters_readers_breakers_and_daemons_all_at_once(tmp_path: Path) -> None:
    explore(ANYONE, tmp_path, 400)


@pytest.mark.parametrize("before", BEFORE)
def test_a_lone_starter_wins_unless_another_tools_process_lives(tmp_path: Path, before: str) -> None:
    world = World(Scenario(before, (Part(),), ()), tmp_path)
    won: list[int] = []
    plain = world.check
    world.check = lambda: (won.extend(world.published() - {FOREIGN.pid}), plain())[1]  # type: ignore[method-assign]
    world.run()
    assert (PIDS[0] in won) is (before != "foreign")


def test_a_starter_that_is_killed_at_any_system_call_stops_nobody_after_it(tmp_path: Path) -> None:
    for before in BEFORE:
        for dies in range(45):
            for orphan in (False, True):
                World(Scenario(before, (Part(dies=dies, orphan=orphan),), ()), tmp_path).run()


def test_a_hand_over_with_either_side_killed_at_any_system_call_stops_nobody_after_it(tmp_path: Path) -> None:
    deaths = [(dies, None) for dies in range(40)] + [(None, dies) for dies in range(14)]
    for dies, daemon_dies in deaths:
        for daemon_pid in (9, 123456):
            part = Part("launcher", dies=dies, daemon_dies=daemon_dies, daemon_pid=daemon_pid)
            World(Scenario("stale", (part,), ()), tmp_path).run()


def test_a_start_that_is_killed_wholly_leaves_the_file_free_also_while_a_descendant_has_its_lock_open(
    tmp_path: Path,
) -> None:
    for daemon_dies in range(20):
        part = Part("launcher", dies=AFTER_ITS_FORK, orphan=True, daemon_dies=daemon_dies)
        World(Scenario("none", (part,), ()), tmp_path).run()


# --- planted bugs ---------------------------------------------------------------------------------------------------


def _replace_system_call(patch: pytest.MonkeyPatch, module: str, name: str, function: Callable[..., Any]) -> None:
    """Put `function(original, *args)` in the place of a system call, inside the module under test."""
    proxy = getattr(hold_module, module)
    patch.setitem(proxy.__dict__, name, functools.partial(function, getattr(proxy, name)))


def _removal_without_a_look_at_the_inode(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(hold_module.os.__dict__, "path", Proxy(os.path, frozenset(), samestat=lambda _one, _other: True))


def _no_mutex(patch: pytest.MonkeyPatch) -> None:
    def call(original: Callable[..., Any], fd: int, command: int, argument: bytes) -> Any:
        _, _, start, length, _ = FLOCK.unpack(argument)
        return argument if (start, length) == (0, 1) else original(fd, command, argument)

    _replace_system_call(patch, "fcntl", "fcntl", call)


def _a_mutex_that_never_waits(patch: pytest.MonkeyPatch) -> None:
    def call(original: Callable[..., Any], fd: int, command: int, argument: bytes) -> Any:
        with contextlib.suppress(BlockingIOError):
            return original(fd, command, argument)

    _replace_system_call(patch, "fcntl", "fcntl", call)


def _no_second_look_under_the_mutex(patch: pytest.MonkeyPatch) -> None:
    mutex, examine = hold_module._mutex, hold_module.examine

    @contextlib.contextmanager
    def marked(fd: int, path: str) -> Iterator[None]:
        with mutex(fd, path):
            here.inside = True
            try:
                yield
            finally:
                here.inside = False

    patch.setattr(hold_module, "_mutex", marked)
    patch.setattr(
        hold_module, "examine", lambda fd, path: None if getattr(here, "inside", False) else examine(fd, path)
    )


def _a_dead_holders_lock_counts(patch: pytest.MonkeyPatch) -> None:
    _replace(patch, "is_alive", lambda _who: True)


def _published_empty_then_locked_then_written(patch: pytest.MonkeyPatch) -> None:
    _publish_in_order(patch, ("link", "lock", "write"))


def _published_locked_then_written(patch: pytest.MonkeyPatch) -> None:
    _publish_in_order(patch, ("lock", "link", "write"))


def _publish_in_order(patch: pytest.MonkeyPatch, order: tuple[str, ...]) -> None:
    """Publish a new file as ever, with its three steps in another order."""

    def publish(hold: hold_module.Hold) -> bool:
        system, me = hold_module.os, _me().who
        directory = system.open(hold.folder, os.O_PATH | os.O_DIRECTORY)
        fd = system.open(hold.folder, os.O_TMPFILE | os.O_RDWR, 0o644)
        hold.fds += [directory, fd]
        info = system.fstat(fd)
        hold.inode, hold.owner = (info.st_dev, info.st_ino), me
        steps: dict[str, Callable[[], Any]] = {
            "link": lambda: system.link(f"/proc/self/fd/{fd}", hold.name, dst_dir_fd=directory, follow_symlinks=True),
            "lock": lambda: hold_module._lock(fd, fcntl.F_WRLCK, me.token, HERE - me.token),
            "write": lambda: system.write(fd, b"%d\n" % me.pid),
        }
        try:
            for step in order:
                steps[step]()
        except FileExistsError:
            hold.close()
            return False
        return True

    patch.setattr(hold_module, "_publish", publish)


def _a_taken_name_is_replaced(patch: pytest.MonkeyPatch) -> None:
    def link(original: Callable[..., Any], *args: Any, **options: Any) -> Any:
        with contextlib.suppress(FileNotFoundError):
            hold_module.os.unlink(args[1], dir_fd=options["dst_dir_fd"])
        return original(*args, **options)

    _replace_system_call(patch, "os", "link", link)


def _a_claim_without_a_look_at_the_inode(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hold_module.Hold, "is_current", lambda self: bool(self.fds))


def _a_claim_that_unlocks_first(patch: pytest.MonkeyPatch) -> None:
    def lock(fd: int, kind: int, start: int, length: int) -> None:
        original(fd, kind, start, length)

    def cut_first(fd: int, kind: int, start: int, length: int) -> None:
        if kind == fcntl.F_WRLCK and start >= HOLDER_RANGE and _me().parent:
            original(fd, fcntl.F_UNLCK, HOLDER_RANGE, 0)
        lock(fd, kind, start, length)

    original = hold_module._lock
    patch.setattr(hold_module, "_lock", cut_first)


def _a_claim_that_empties_the_file_first(patch: pytest.MonkeyPatch) -> None:
    def pwrite(original: Callable[..., int], fd: int, text: bytes, offset: int) -> int:
        hold_module.os.ftruncate(fd, 0)
        return original(fd, text, offset)

    _replace_system_call(patch, "os", "pwrite", pwrite)


def _a_claim_that_leaves_the_text(patch: pytest.MonkeyPatch) -> None:
    _replace_system_call(patch, "os", "pwrite", lambda _original, _fd, text, _offset: len(text))


def _a_release_that_empties_what_is_still_locked(patch: pytest.MonkeyPatch) -> None:
    def call(original: Callable[..., Any], fd: int, command: int, argument: bytes) -> Any:
        kind, _, *whole, _ = FLOCK.unpack(argument)
        return argument if kind == fcntl.F_UNLCK and whole == [0, 0] else original(fd, command, argument)

    _replace_system_call(patch, "fcntl", "fcntl", call)


PLANTED: Final = {
    _removal_without_a_look_at_the_inode: (STALE, "two hold it|a reader sees None"),
    _no_mutex: (STALE, "two hold it|a reader sees None"),
    _a_mutex_that_never_waits: (STALE, "two hold it|a reader sees None"),
    _no_second_look_under_the_mutex: (HANDED_OVER, "two hold it|a reader sees None"),
    _a_dead_holders_lock_counts: (CONTENDED, "not one of|nobody lives"),
    _published_empty_then_locked_then_written: (UNNAMED, "two hold it|a reader sees"),
    _published_locked_then_written: (UNNAMED, "a reader sees b''"),
    _a_taken_name_is_replaced: (CONTENDED, "two hold it|a reader sees"),
    _a_claim_without_a_look_at_the_inode: (HANDED_OVER, "two hold it|a reader sees"),
    _a_claim_that_unlocks_first: (WATCHED, "held it all along|two hold it|not one of"),
    _a_claim_that_empties_the_file_first: (HANDED_OVER, "a reader sees b''"),
    _a_claim_that_leaves_the_text: (HANDED_OVER, "a reader sees"),
    _a_release_that_empties_what_is_still_locked: (UNPRIVILEGED, "a reader sees b''"),
}


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.__name__.strip("_"))
def test_the_scheduler_finds_a_planted_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bug: Callable[[pytest.MonkeyPatch], None]
) -> None:
    strategy, what = PLANTED[bug]
    bug(monkeypatch)
    with pytest.raises(BrokenPromiseError, match=what):
        explore(strategy, tmp_path, 1500, planted=True)
