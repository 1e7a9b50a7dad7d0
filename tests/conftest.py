"""Fixtures for every test: daemons become this process's children, and none of them outlives its test."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import harness
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_configure(config: pytest.Config) -> None:
    """Give this session a temporary directory of its own.

    Pytest's common one is closed to other users whenever a session starts, and tests become other users.
    """
    if "PYTEST_DEBUG_TEMPROOT" not in os.environ:
        os.environ["PYTEST_DEBUG_TEMPROOT"] = root = tempfile.mkdtemp(prefix="daemonkit-tests-")
        os.chmod(root, 0o755)
        config.add_cleanup(lambda: shutil.rmtree(root, ignore_errors=True))


@pytest.fixture(scope="session", autouse=True)
def _subreaper() -> None:
    harness.become_subreaper()
    # Under nohup, or as a shell's background job, these come ignored, and every program under test would inherit it.
    default_int = (signal.SIGINT, signal.default_int_handler)
    for number, default in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGQUIT, signal.SIG_DFL), default_int):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, default)


@pytest.fixture(scope="session")
def everybody() -> Iterator[dict[str, str]]:
    """Return an environment in which any user's Python finds daemonkit: the checkout may be closed to others."""
    with tempfile.TemporaryDirectory(prefix="daemonkit-open-") as directory:
        harness.open_copy(Path(directory), "daemonkit", "daemon", "lockfile")
        yield {**os.environ, "PYTHONPATH": directory}


@pytest.fixture(autouse=True)
def _no_strays() -> Iterator[None]:
    """Fail a test that leaves a process, and end just that process."""
    before = set(harness.children())
    yield
    with contextlib.suppress(AssertionError):  # a process that was told to end may take a moment
        harness.eventually(lambda: not [pid for pid, _ in harness.own_children() if pid not in before], patience=5)
    strays = [(pid, what) for pid, what in harness.own_children() if pid not in before]
    for pid in set(harness.children()) - before:  # children, unreaped: their numbers are theirs
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
    assert not strays, f"left running: {strays}"
