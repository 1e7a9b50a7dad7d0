"""What `up` decides: twice is once, only what differs is touched, and `after` is the only thing that waits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as rules
from hypothesis import strategies as st

from daemonkit.cli._appfile import AppFile, Wish
from daemonkit.cli._plan import Found, Schedule, Step, in_order, plan

NAMES = [f"app{number}" for number in range(8)]
STATES = ["running", "starting", "degraded", "stopped", "done", "failed"]
PATH = "/srv/daemonkit.toml"
settings = st.fixed_dictionaries(
    {"command": st.sampled_from([["a"], ["b"]])},
    optional={"instances": st.integers(1, 3), "env": st.dictionaries(st.sampled_from("AB"), st.sampled_from("12"))},
)


@st.composite
def files(draw: st.DrawFn) -> AppFile:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1))
    apps = {}
    for index, name in enumerate(names):
        after = draw(st.lists(st.sampled_from(names[:index]), unique=True)) if index else []
        apps[name] = Wish(draw(settings), tuple(after))
    return AppFile(PATH, dict(draw(st.permutations(list(apps.items())))))


@st.composite
def worlds(draw: st.DrawFn) -> dict[str, Found]:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True))
    return {name: Found(draw(settings) | {"file": PATH}, draw(st.sampled_from(STATES))) for name in names}


def carried_out(steps: dict[str, Step], file: AppFile, world: dict[str, Found]) -> dict[str, Found]:
    """Return the world after all steps went well."""
    new = dict(world)
    for name, step in steps.items():
        if step.do in {"start", "change"}:
            new[name] = Found(file.apps[name].settings | {"file": PATH}, "running")
        if step.do == "forget":
            del new[name]
    return new


@rules(deadline=None)
@given(file=files(), world=worlds(), prune=st.booleans())
def test_a_second_up_finds_nothing_to_do(file: AppFile, world: dict[str, Found], prune: bool) -> None:  # noqa: FBT001 - drawn
    after = carried_out(plan(file, world, prune=prune), file, world)
    again = plan(file, after, prune=prune)
    assert {step.do for step in again.values()} <= {"keep", "gone"}
    assert set(file.apps) <= set(after) and (not prune or set(after) == set(file.apps))


@rules(deadline=None)
@given(first=files(), second=files())
def test_only_what_differs_is_touched(first: AppFile, second: AppFile) -> None:
    world = carried_out(plan(first, {}), first, {})
    steps = plan(second, world, prune=True)
    for name, step in steps.items():
        old, new = first.apps.get(name), second.apps.get(name)
        if old and new:
            assert step.do == ("keep" if old.settings == new.settings else "change")
        else:
            assert step.do == ("start" if new else "forget")
    assert set(steps) == set(first.apps) | set(second.apps)


@rules(deadline=None)
@given(file=files(), world=worlds(), data=st.data())
def test_with_names_only_these_and_what_they_come_after_are_looked_at(
    file: AppFile, world: dict[str, Found], data: st.DataObject
) -> None:
    names = data.draw(st.lists(st.sampled_from(list(file.apps)), min_size=1, unique=True))
    steps = plan(file, world, names=names, prune=True)
    needed, queue = set(), [*names]
    while queue:
        name = queue.pop()
        needed.add(name)
        queue += file.apps[name].after
    assert set(steps) == needed


@pytest.mark.parametrize(
    ("state", "same", "do"),
    [
        ("running", True, "keep"), ("starting", True, "keep"), ("degraded", True, "keep"), ("done", True, "keep"),
        ("stopped", True, "start"), ("failed", True, "start"),
        ("running", False, "change"), ("starting", False, "change"), ("degraded", False, "change"),
        ("done", False, "start"), ("stopped", False, "start"), ("failed", False, "start"),
    ],
)  # fmt: skip
def test_what_each_state_asks_for(state: str, same: bool, do: str) -> None:  # noqa: FBT001 - a case's
    file = AppFile(PATH, {"a": Wish({"command": ["a"]}, ())})
    kept = {"command": ["a"] if same else ["b"], "file": PATH, "after": ["x"], "environment": {"HOME": "/"}}
    assert plan(file, {"a": Found(kept, state)})["a"] == Step(do, () if same else ("command",))


def test_another_environment_is_a_change_only_where_it_is_asked_for() -> None:
    file = AppFile(PATH, {"a": Wish({"command": ["a"]}, ())})
    world = {"a": Found({"command": ["a"], "file": PATH, "environment": {"A": "1"}}, "running")}
    assert plan(file, world)["a"].do == plan(file, world, environment={"A": "1"})["a"].do == "keep"
    assert plan(file, world, environment={"A": "2"})["a"] == Step("change", ("environment",))


@pytest.mark.parametrize(
    ("owner", "said"),
    [
        (None, "web was made by daemonkit start, not by /srv/daemonkit.toml; rename it there, or first: daemonkit delete web"),
        ("/a/Procfile", "web belongs to /a/Procfile, not to /srv/daemonkit.toml; rename one, or first: daemonkit delete web"),
    ],
)  # fmt: skip
def test_a_name_of_somebody_else_is_refused_with_the_way_out(owner: str | None, said: str) -> None:
    file = AppFile(PATH, {"web": Wish({"command": ["a"]}, ()), "db": Wish({"command": ["a"]}, ())})
    foreign: dict[str, Any] = {"command": ["a"]} | ({"file": owner} if owner else {})
    with pytest.raises(LookupError) as refused:
        plan(file, {"web": Found(foreign, "stopped")})
    assert refused.value.args[0] == said
    assert plan(file, {"web": Found(foreign, "stopped")}, names=["db"])["db"].do == "start", "it is not in the way"
    assert "web" not in plan(AppFile(PATH, {"db": file.apps["db"]}), {"web": Found(foreign, "running")}, prune=True)


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    file = AppFile(PATH, {"web": Wish({"command": ["a"]}, ()), "db": Wish({"command": ["a"]}, ())})
    with pytest.raises(LookupError, match=r"/srv/daemonkit.toml: there is no app wbe in it; it has web, db$"):
        plan(file, {}, names=["web", "wbe"])


def test_what_is_forgotten_goes_first_as_it_may_hold_a_port_of_the_others() -> None:
    file = AppFile(PATH, {"www": Wish({"command": ["a"]}, ())})
    world = {"web": Found({"command": ["a"], "file": PATH}, "running")}
    assert plan(file, world)["web"].do == "gone"
    assert plan(file, world, prune=True) == {"web": Step("forget"), "www": Step("start", (), ("web",))}


graphs = files().map(lambda file: {name: wish.after for name, wish in file.apps.items()})


@rules(deadline=None)
@given(graph=graphs, data=st.data())
def test_each_step_begins_as_soon_as_what_it_comes_after_is_done_and_never_before(
    graph: dict[str, tuple[str, ...]], data: st.DataObject
) -> None:
    schedule = Schedule(graph)
    running: set[str] = set()
    well: set[str] = set()
    badly: set[str] = set()
    while schedule.left:
        ready, never = schedule.begin()
        running.update(ready)
        badly.update(never)
        assert all(graph[name] and set(graph[name]) & badly for name in never)
        begun = running | well | badly
        assert begun == {name for name in graph if set(graph[name]) <= well or name in begun}, (
            "as many at once as can be"
        )
        assert all(set(graph[name]) <= well for name in ready)
        if not running:
            break
        name = data.draw(st.sampled_from(sorted(running)))
        running.remove(name)
        good = data.draw(st.booleans())
        (well if good else badly).add(name)
        schedule.done(name, well=good)
    assert not schedule.left and well | badly == set(graph)


@rules(deadline=None)
@given(graph=graphs)
def test_the_order_puts_each_after_what_it_comes_after(graph: dict[str, tuple[str, ...]]) -> None:
    order = in_order(graph)
    assert sorted(order) == sorted(graph)
    assert all(order.index(other) < order.index(name) for name, others in graph.items() for other in others)
