"""The decisions about an instance, as a state machine: no process, no clock."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from daemonkit._supervise.policy import FINAL, Action, Emit, Instance, Kill, Run, Start, Stop
from daemonkit._supervise.rules import Backoff, Rules


class World:
    """Carries out the actions on runs that exist only here."""

    def __init__(self, rules: Rules) -> None:
        self.now = 0.0
        self.instance = Instance(0, rules)
        self.alive: list[Run] = []
        self.killed: set[Run] = set()
        self.stopped: set[Run] = set()
        self.events: list[tuple[str, Run]] = []
        self.starts: list[float] = []
        self.do(self.instance.begin())

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Start():
                    run = Run(self.instance, len(self.starts), 1000 + len(self.starts), self.now)
                    self.starts.append(self.now)
                    self.alive.append(run)
                    self.instance.started(run)
                case Stop(run):
                    self.stopped.add(run)
                case Kill(run):
                    self.killed.add(run)
                case Emit(kind, run):
                    self.events.append((kind, run))
                case _:
                    raise AssertionError(action)

    def end(self, run: Run, code: int) -> None:
        self.do(self.instance.exited(run, code))
        self.alive.remove(run)
        self.do(self.instance.emptied(run, self.now))

    def until(self, time: float, code: int | None = None) -> None:
        """Let time pass to then; each run ends at once with `code`, if that is given."""
        while True:
            while code is not None and self.alive:
                self.end(self.alive[0], code)
            for run in [run for run in self.alive if run in self.killed]:
                self.end(run, -9)
            due = self.instance.next_time()
            if due > time:
                self.now = time
                return
            self.now = max(self.now, due)
            self.do(self.instance.tick(self.now))


def test_the_first_restart_has_no_delay_and_a_loop_backs_off() -> None:
    world = World(Rules())
    world.until(10.0, code=1)
    assert len(world.starts) <= 8
    gaps = [later - before for before, later in zip(world.starts, world.starts[1:], strict=False)]
    assert gaps == pytest.approx([0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2][: len(gaps)])


def test_a_crash_after_a_good_run_restarts_at_once_and_a_loop_after_it_backs_off_again() -> None:
    world = World(Rules())
    world.until(18.0)
    world.end(world.alive[0], 1)
    assert world.starts == [0.0, 18.0]
    world.until(28.0, code=1)
    assert len(world.starts) <= 9


@pytest.mark.parametrize(
    ("restart", "code", "starts", "state"),
    [
        ("never", 0, 1, "exited"),
        ("never", 1, 1, "failed"),
        ("on-failure", 0, 1, "exited"),
        ("on-failure", 3, 1, "exited"),
        ("on-failure", 1, 4, "gave-up"),
        ("on-failure", -9, 4, "gave-up"),
        ("always", 0, 4, "gave-up"),
    ],
)
def test_what_follows_an_end(restart: str, code: int, starts: int, state: str) -> None:
    world = World(Rules(restart=restart, max_restarts=3, success_codes=frozenset({0, 3})))
    world.until(100.0, code=code)
    assert (len(world.starts), world.instance.state, world.instance.exitcode) == (starts, state, code)
    assert world.instance.done and world.instance.next_time() == math.inf


def test_an_idle_instance_wants_no_wake_up() -> None:
    world = World(Rules())
    world.until(5.0)
    assert world.instance.next_time() == math.inf and world.events == [("ready", world.alive[0])]


def test_a_start_that_never_gets_ready_is_killed_and_counts_as_a_failure() -> None:
    world = World(Rules(wait_ready=True, start_timeout=5.0, max_restarts=0))
    world.until(6.0)
    assert world.instance.state == "gave-up" and not world.alive


def test_a_watchdog_that_falls_silent_is_killed_and_restarted() -> None:
    world = World(Rules(watchdog=2.0, wait_ready=True))
    first = world.alive[0]
    world.now = 1.0
    world.do(world.instance.ready(first, 1.0))
    world.instance.heartbeat(first, 2.5)
    world.until(4.0)
    assert world.alive == [first]
    world.until(4.6)
    assert ("watchdog", first) in world.events and len(world.starts) == 2


def test_a_watchdog_counts_from_the_start_where_nothing_is_said_of_readiness() -> None:
    instance = Instance(0, Rules(watchdog=0.3))
    run = Run(instance, 0, 1, born=10.0)
    instance.started(run)
    instance.heartbeat(run, 10.2)
    assert instance.next_time() == 10.5 and not instance.tick(10.4)
    assert instance.tick(10.5) == [Emit("watchdog", run), Kill(run)]  # and it was never up


def test_a_run_that_was_not_looked_at_in_time_was_good_all_the_same() -> None:
    instance = Instance(0, Rules(), in_row=7)
    run = Run(instance, 0, 1, born=10.0)
    instance.started(run)
    instance.exited(run, 1)
    assert instance.emptied(run, 20.5) == [Start(instance)]  # at once


def test_stopping_escalates() -> None:
    world = World(Rules(stop_timeout=3.0))
    run = world.alive[0]
    world.do(world.instance.stop(1.0))
    world.now = 1.0
    assert run in world.stopped and run not in world.killed
    world.until(3.9)
    assert world.alive
    world.until(4.1)
    assert run in world.killed and world.instance.done and world.instance.state == "stopped"


def test_a_replacement_takes_over_once_it_is_up() -> None:
    world = World(Rules(wait_ready=True))
    old = world.alive[0]
    world.do(world.instance.ready(old, 0.5))
    world.do(world.instance.replace())
    new = world.alive[1]
    assert world.instance.replacing and old not in world.stopped
    world.do(world.instance.ready(new, 1.0))
    assert old in world.stopped and world.instance.current is new
    world.end(old, -15)
    assert not world.instance.replacing and world.alive == [new] and len(world.starts) == 2


def test_a_replacement_that_does_not_come_up_leaves_the_old_run_alone() -> None:
    world = World(Rules(wait_ready=True))
    old = world.alive[0]
    world.do(world.instance.ready(old, 0.5))
    world.do(world.instance.replace())
    world.end(world.alive[1], 1)
    assert world.alive == [old] and old not in world.stopped and not world.instance.replacing
    assert [kind for kind, _ in world.events].count("reload-failed") == 1


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens, in whatever order: nothing is doubled, lost, hot or stuck."""

    @initialize(
        restart=st.sampled_from(["always", "on-failure", "never"]),
        wait_ready=st.booleans(),
        watchdog=st.sampled_from([None, 0.5, 5.0]),
        max_restarts=st.sampled_from([None, 0, 2]),
    )
    def begin(self, *, restart: str, wait_ready: bool, watchdog: float | None, max_restarts: int | None) -> None:
        self.world = World(
            Rules(
                restart=restart,
                wait_ready=wait_ready,
                watchdog=watchdog,
                max_restarts=max_restarts,
                stop_timeout=2.0,
                start_timeout=3.0,
                backoff=Backoff(0.1, 2.0, 5.0),
            )
        )

    @rule(seconds=st.floats(0.0, 20.0))
    def time_passes(self, seconds: float) -> None:
        self.world.until(self.world.now + seconds)

    @precondition(lambda self: self.world.alive)
    @rule(which=st.integers(0, 2), code=st.sampled_from([0, 1, -9]))
    def a_run_ends(self, which: int, code: int) -> None:
        self.world.end(self.world.alive[which % len(self.world.alive)], code)

    @precondition(lambda self: self.world.alive)
    @rule(which=st.integers(0, 2))
    def a_run_is_ready(self, which: int) -> None:
        world = self.world
        world.do(world.instance.ready(world.alive[which % len(world.alive)], world.now))

    @rule()
    def a_reload(self) -> None:
        instance, starts = self.world.instance, len(self.world.starts)
        idle = instance.stopping or instance.replacing or instance.state in {"exited", "stopped"}
        self.world.do(instance.replace())
        assert len(self.world.starts) == starts + (not idle)

    @rule()
    def a_stop(self) -> None:
        self.world.do(self.world.instance.stop(self.world.now))

    @invariant()
    def what_it_knows_is_what_there_is(self) -> None:
        if hasattr(self, "world"):
            instance = self.world.instance
            assert set(instance.runs()) == set(self.world.alive)
            assert len([run for run in self.world.alive if not run.ending]) <= 2
            assert (instance.state == "backoff") == (instance.due is not None)
            assert not (instance.state in FINAL and instance.current)
            assert instance.starts == len(self.world.starts)

    def teardown(self) -> None:
        """Whatever was, a stop ends it."""
        if hasattr(self, "world"):
            world = self.world
            world.do(world.instance.stop(world.now))
            world.until(world.now + 10.0)
            assert world.instance.done and not world.alive


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_a_late_ready_counts_for_the_watchdog() -> None:
    instance = Instance(0, Rules(watchdog=2.0))
    run = Run(instance, 0, 1, 0.0)
    instance.started(run)
    assert Emit("ready", run) in instance.tick(1.0)
    assert instance.ready(run, 1.5) == [] and instance.next_time() == 3.5


def test_a_program_that_dies_soon_after_it_was_up_backs_off_and_is_given_up() -> None:
    world = World(Rules(max_restarts=3))
    while world.alive:
        world.until(world.now + 1.3)
        world.end(world.alive[0], 1)
        world.until(world.instance.next_time()) if world.instance.due is not None else None
    assert len(world.starts) == 4 and world.instance.state == "gave-up"


def test_with_the_signal_to_the_main_process_alone_the_rest_is_killed_once_that_has_ended() -> None:
    world = World(Rules(kill_mode="main"))
    run = world.alive[0]
    world.do(world.instance.stop(1.0))
    assert run in world.stopped and run not in world.killed
    world.do(world.instance.exited(run, 0))
    assert run in world.killed


def test_a_run_that_must_go_is_stopped_first_if_its_successor_can_not_come_up_beside_it() -> None:
    world = World(Rules(wait_ready=True))
    old = world.alive[0]
    world.do(world.instance.ready(old, 0.5))
    world.do(world.instance.replace(must_go=True))
    world.end(world.alive[1], 1)
    assert old in world.stopped and world.instance.replacing and len(world.starts) == 2
    world.end(old, -15)
    assert len(world.starts) == 3 and not world.instance.replacing
    assert "reload-failed" not in [kind for kind, _ in world.events]
