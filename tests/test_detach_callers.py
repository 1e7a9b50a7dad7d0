"""detached(): callers that are refused or warned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness import ended, reported, run, stop

if TYPE_CHECKING:
    from pathlib import Path


def test_other_threads_are_named_in_a_warning(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        threading.Thread(target=time.sleep, args=(60,), name="poller", daemon=True).start()
        with daemonkit.detached(working_directory=".", stderr="err"):
            report()
            wait()
    """,
    )
    assert done.returncode == 0
    assert "program.py" in done.stderr and "RuntimeWarning" in done.stderr and "poller" in done.stderr
    assert "DeprecationWarning" not in done.stderr
    facts = reported(tmp_path)
    assert facts["threads"] == 1 and (tmp_path / "err").read_text() == ""
    stop(facts["pid"])


def test_with_warnings_as_errors_a_thread_is_an_error_and_nothing_starts(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        threading.Thread(target=time.sleep, args=(60,), name="poller", daemon=True).start()
        try:
            with daemonkit.detached(pidfile="pid"):
                pass
        except RuntimeWarning:
            print("refused", os.listdir("."))
    """,
        flags=("-W", "error"),
    )
    assert done.stdout == "refused ['program.py']\n", done


def test_a_running_event_loop_is_refused_and_a_loaded_asyncio_is_not(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        import asyncio
        async def main():
            with daemonkit.detached(pidfile="pid"):
                pass
        try:
            asyncio.run(main())
        except RuntimeError as error:
            print(error)
        with daemonkit.detached(working_directory="."):
            async def inside(): report()
            asyncio.run(inside())
    """,
    )
    assert done.stdout.startswith("an event loop runs in this thread") and done.returncode == 0
    assert ended(reported(tmp_path)["pid"]) == 0


def test_another_thread_than_the_main_one_is_refused(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        def start():
            try:
                with daemonkit.detached(pidfile="pid"):
                    pass
            except RuntimeError as error:
                print(error)
        thread = threading.Thread(target=start); thread.start(); thread.join()
        print(os.listdir("."))
    """,
    )
    assert "main thread" in done.stdout and done.stdout.endswith("['program.py']\n")
