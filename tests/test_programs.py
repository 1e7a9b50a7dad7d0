"""Real programs, started by the lines of the page "Programs": killed, and stopped at work."""

from __future__ import annotations

import os
import select
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from catalogue import JOBS, OTHER, RELEASE, Scene
from harness import alive, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Those that a machine for tests may have; `make programs` puts all on trial.
NAMES = ("hypercorn", "granian", "rq", "dramatiq", "redis", "nginx", "haproxy")


@pytest.fixture
def scene(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    scene = Scene(tmp_path, request.param)
    if scene.missing:
        pytest.skip(f"no {scene.missing} here")
    yield scene
    scene.end()


@pytest.mark.parametrize("scene", NAMES, indirect=True)
def test_a_real_program_is_back_after_a_kill_and_ends_its_work_at_a_stop(scene: Scene) -> None:
    scene.start()
    family, mains = scene.family, scene.mains
    os.kill(mains[0], signal.SIGKILL)

    def is_back() -> bool:
        return scene.mains != mains and bool(scene.mains) and scene.ask() in {RELEASE, "PONG"}

    eventually(is_back)
    assert not [pid for pid in family if alive(pid)]
    assert stop_at_work(scene) in {"", "finished"}


def stop_at_work(scene: Scene) -> str:
    """Stop it while it does something that ends only afterwards; return what became of that."""
    if scene.name in OTHER:
        scene.type("stop", scene.name)
        return ""
    answers: list[str] = []
    asker = threading.Thread(target=lambda: answers.append(outcome(scene)))
    asker.start()
    eventually((scene.folder / "begun").exists)
    stopper = threading.Thread(target=scene.type, args=("stop", scene.name))
    stopper.start()
    eventually((scene.shell.home / f"{scene.name}.stopped").exists)
    select.select([], [], [], 0.2)  # the signal follows that file; one that came later would only find no work
    (scene.folder / "go").touch()
    stopper.join()
    asker.join()
    return answers[0]


def outcome(scene: Scene) -> str:
    """Ask for what takes its time, or hand it in; return whether it was finished."""
    if scene.name in JOBS:
        scene.hand_in(1, "slow")
        with suppress(AssertionError):
            eventually((scene.folder / "finished").exists)
        return "finished" if (scene.folder / "finished").exists() else "lost"
    with suppress(OSError):
        return "finished" if scene.ask("/slow") == RELEASE else "wrong"
    return "cut"
