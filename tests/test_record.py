"""The classes that are little more than their fields: as `dataclasses` makes them, without its cost."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle

import pytest

import daemonkit

EVENT = daemonkit.Event(1, "exit", 42, -9, 1.5)


def test_a_record_is_compared_shown_and_hashed_by_its_fields() -> None:
    same = daemonkit.Event(instance=1, kind="exit", pid=42, exitcode=-9, time=1.5)
    assert same == EVENT
    assert len({same, EVENT}) == 1
    assert EVENT not in (daemonkit.Event(1, "exit", 42, -9, 2.5), (1, "exit", 42, -9, 1.5))
    assert repr(EVENT) == "Event(instance=1, kind='exit', pid=42, exitcode=-9, time=1.5)"


def test_a_record_can_be_pickled_copied_and_matched() -> None:
    assert pickle.loads(pickle.dumps(EVENT)) == copy.deepcopy(EVENT) == copy.copy(EVENT) == EVENT
    match EVENT:
        case daemonkit.Event(1, "exit", exitcode=code):
            assert code == -9


def test_a_record_answers_to_dataclasses() -> None:
    assert dataclasses.is_dataclass(EVENT)
    assert dataclasses.asdict(EVENT) == {"instance": 1, "kind": "exit", "pid": 42, "exitcode": -9, "time": 1.5}
    assert dataclasses.replace(EVENT, pid=43) == daemonkit.Event(1, "exit", 43, -9, 1.5)
    delays = dataclasses.replace(daemonkit.Backoff(initial=1.0), maximum=5.0)
    assert [delays.delay(n) for n in (1, 2, 9)] == [1.0, 2.0, 5.0]
    summary = daemonkit.Summary(0, (daemonkit.InstanceRecord(0, 1, 0, "exited"),))
    assert dataclasses.asdict(summary)["instances"] == ({"index": 0, "starts": 1, "exitcode": 0, "state": "exited"},)


def test_a_record_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EVENT.pid = 1  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del EVENT.pid
    assert EVENT.pid == 42


@pytest.mark.parametrize(
    ("values", "named"),
    [((), {}), ((0, "exit", 1, 0), {}), ((0, "exit", 1, 0, 1.0, 2), {}), ((0,), {"instance": 0}), ((), {"pids": 1})],
)
def test_a_record_takes_its_fields_and_nothing_else(values: tuple[object, ...], named: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        daemonkit.Event(*values, **named)  # type: ignore[arg-type]


def test_a_records_signature_names_its_fields() -> None:
    assert str(inspect.signature(daemonkit.Backoff)).startswith("(initial")
