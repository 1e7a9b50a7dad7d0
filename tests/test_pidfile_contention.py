"""Many starters at once, with holders and starters killed or interrupted at any moment."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import harness
import pytest
from harness import eventually, pid_in, run

from daemonkit import AlreadyRunningError, PidFile

if TYPE_CHECKING:
    from pathlib import Path

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user or the root directory")

CONTENDED = int(os.environ.get("DAEMONKIT_CONTENDED", "60"))

CONTENDER = """
    import random
    os.read(0, 1)
    try:
        lock = daemonkit.PidFile("pid")
        lock.acquire()
    except daemonkit.AlreadyRunningError as error:
        os.write(1, f"lost {os.getpid()} {error.pid}\\n".encode())
    else:
        os.write(1, f"won {os.getpid()}\\n".encode())
        wait()
"""


@pytest.mark.long
def test_of_any_number_of_starters_one_wins_and_no_reader_sees_a_wrong_file(tmp_path: Path) -> None:
    """Rounds of four starters over the stale file of the last winner, which was killed; a reader hammers the file."""
    program = harness.write(tmp_path, CONTENDER)
    readings: set[bytes] = set()
    done = threading.Event()

    def hammer() -> None:
        while not done.is_set():
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(tmp_path / "pid", os.O_RDONLY)
                readings.add(os.read(fd, 100))
                os.close(fd)

    reader = threading.Thread(target=hammer)
    reader.start()
    winners: list[int] = []
    try:
        winners.extend(_one_round(tmp_path, program) for _ in range(CONTENDED // 4))
    finally:
        done.set()
        reader.join()
    assert readings <= {b"%d\n" % pid for pid in winners}
    assert len(winners) == CONTENDED // 4
    assert sorted(os.listdir(tmp_path)) == ["pid", "program.py"]


def _one_round(directory: Path, program: Path) -> int:
    starters = [
        subprocess.Popen(
            [sys.executable, program], cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for starter in starters:
        assert starter.stdin
        starter.stdin.write("x")
        starter.stdin.flush()
    said = [starter.stdout.readline().split() for starter in starters if starter.stdout]
    (winner,) = [int(words[1]) for words in said if words[0] == "won"]
    assert [int(words[2]) for words in said if words[0] == "lost"] == [winner] * 3
    assert pid_in(directory / "pid") == winner
    os.kill(winner, signal.SIGKILL)
    for starter in starters:
        starter.communicate()
    return winner


@pytest.mark.long
def test_holders_that_die_while_others_start(tmp_path: Path) -> None:
    """Churn: starters come and are killed at random; nobody ever holds beside another, and the last start works."""
    program = harness.write(
        tmp_path,
        """
        import fcntl
        lock = daemonkit.PidFile("pid", timeout=5)
        lock.acquire()
        alone = os.open("alone", os.O_RDWR | os.O_CREAT)
        fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if there are two
        os.write(1, b"held\\n")
        time.sleep(0.01)
        fcntl.flock(alone, fcntl.LOCK_UN)
        lock.release()
    """,
    )
    chance = random.Random(4)
    for _ in range(CONTENDED // 6):
        churn = [
            subprocess.Popen(
                [sys.executable, program], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            for _ in range(4)
        ]
        with contextlib.suppress(TimeoutError, subprocess.TimeoutExpired):
            churn[0].wait(chance.uniform(0.05, 0.2))
        churn[1].kill()
        for process in churn:
            _, err = process.communicate(timeout=harness.PATIENCE)
            assert process.returncode in {0, -9}, err
    with PidFile(tmp_path / "pid"):
        assert sorted(os.listdir(tmp_path)) == ["alone", "pid", "program.py"]


STORM = """
    import random
    rounds, chance = int(sys.argv[1]), random.Random(11)
    daemonkit.PidFile, daemonkit.AlreadyRunningError  # loaded once: a start is one fork then
    told, tell = os.pipe()
    living = set()

    def fork(work):
        pid = os.fork()
        if pid == 0:
            try:
                work()
            except BaseException as error:
                os.write(tell, f"error {os.getpid()} {error!r}\\n".encode())
            os._exit(0)
        living.add(pid)
        return pid

    def kill(pid):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        living.remove(pid)

    def start(gate):
        os.close(gate[1])
        os.read(gate[0], 1)  # the end of file: all are there
        lock = daemonkit.PidFile("pid")
        try:
            lock.acquire()
        except daemonkit.AlreadyRunningError as error:
            os.write(tell, f"lost {os.getpid()} {error.pid}\\n".encode())
        else:
            os.write(tell, f"won {os.getpid()} 0\\n".encode())
            wait()

    def hammer(number, stop):
        os.close(stop[1])
        os.set_blocking(stop[0], False)
        texts, pids, lock = set(), set(), daemonkit.PidFile("pid")
        while True:
            try:
                if not os.read(stop[0], 1):
                    break
            except BlockingIOError:
                pass
            for _ in range(20):
                with contextlib.suppress(FileNotFoundError):
                    fd = os.open("pid", os.O_RDONLY)
                    texts.add(os.read(fd, 100).decode())
                    os.close(fd)
                pids.add(lock.read_pid())
        with open(f"reader{number}", "w") as file:
            json.dump([sorted(texts), sorted(pids - {None})], file)

    unread = ""
    def said():
        global unread
        while "\\n" not in unread:
            unread += os.read(told, 4096).decode()
        line, _, unread = unread.partition("\\n")
        word, pid, named = line.split(maxsplit=2)
        assert word != "error", line
        return word, int(pid), int(named)

    def play(holder):
        # One round of four starters; return who holds then, and whoever may have held meanwhile.
        gate = os.pipe()
        if holder and chance.random() < 0.7:
            kill(holder)
            holder = None
        starters = [fork(lambda: start(gate)) for _ in range(4)]
        victims = {starters[0]} if chance.random() < 0.3 else set()
        os.close(gate[0])
        os.close(gate[1])
        for pid in (victims | {holder}) - {None}:
            for _ in range(chance.randrange(20000)):
                pass
            kill(pid)
        heard = {}
        while set(starters) - victims - set(heard):
            word, pid, named = said()
            if pid in starters:  # not the last word of a victim of the round before
                heard[pid] = word, named
        won = {pid for pid, (word, _) in heard.items() if word == "won"}
        lost = {pid: named for pid, (word, named) in heard.items() if word == "lost"}
        for pid in set(lost) - victims:
            os.waitpid(pid, 0)
            living.remove(pid)
        winners = won - victims
        assert len(winners) <= 1, heard
        assert winners or victims or holder, ("nobody won over a stale file", heard)
        may = won | victims | ({holder} - {None})
        assert set(lost.values()) <= may, (may, heard)
        winner = min(winners, default=None)
        if winner:
            assert read("pid") == f"{winner}\\n" and daemonkit.PidFile("pid").read_pid() == winner, (winner, read("pid"))
        return winner, won | victims

    try:
        with open("pid", "w") as file:
            file.write("4194303\\n")
        stop = os.pipe()
        readers = [fork(lambda: hammer(number, stop)) for number in range(3)]
        holder, held, wins = None, {4194303}, 0
        for _ in range(rounds):
            holder, more = play(holder)
            held |= more
            wins += holder is not None
        if holder:
            kill(holder)
        os.close(stop[0])
        os.close(stop[1])
        for reader in readers:
            os.waitpid(reader, 0)
            living.remove(reader)
        for number in range(3):
            texts, pids = json.loads(read(f"reader{number}"))
            assert set(texts) <= {f"{pid}\\n" for pid in held}, set(texts) - {f"{pid}\\n" for pid in held}
            assert set(pids) <= held - {4194303}, set(pids) - held
        with daemonkit.PidFile("pid"):
            print(json.dumps({"wins": wins, "left": sorted(os.listdir("."))}))
    finally:
        for pid in list(living):
            kill(pid)
"""


@pytest.mark.long
@pytest.mark.timeout(120 + CONTENDED)
def test_a_storm_of_forked_starters_with_holders_and_starters_killed_at_any_moment(tmp_path: Path) -> None:
    """Rounds of four starts that begin in one instant; three readers look at the raw file and at read_pid() all along."""
    rounds = max(100, CONTENDED)
    done = run(tmp_path, STORM, rounds, timeout=60 + rounds)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["wins"] > rounds / 2
    assert result["left"] == ["pid", "program.py", "reader0", "reader1", "reader2"]


INTERRUPTED = """
    class Hit(Exception):
        pass

    def hit(*_):
        if armed:  # a late one must not hit what is done afterwards
            raise Hit

    def open_now():
        return len(os.listdir("/proc/self/fd"))

    armed = False
    signal.signal(signal.SIGALRM, hit)
    with daemonkit.PidFile("warm.pid"):
        pass
    daemonkit.spawn_detached(["true"], pidfile="warm.pid").wait()
    chance, before, hits, lock, p = random.Random(7), open_now(), 0, None, None
    for _ in range(TRIES):
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, LONGEST))
            START
            armed = False
        except Hit:
            hits += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        AFTER
    print(hits > 20, open_now() - before < hits / 5, hits, open_now() - before)
"""


@pytest.mark.parametrize(
    ("start", "after", "longest", "tries"),
    [
        (
            'lock = daemonkit.PidFile("app.pid"); lock.acquire()',
            'lock and lock.i_am_locking() and lock.release(); assert not os.path.exists("app.pid")',
            4e-4,
            2000,
        ),
        (
            'p = daemonkit.spawn_detached(["sleep", "9"], pidfile="app.pid")',
            'p and (p.kill(), p.wait()); p = None; assert not daemonkit.status("app.pid")',
            4e-3,
            150,
        ),
    ],
    ids=["acquire", "spawn"],
)
def test_a_signal_handler_that_raises_leaves_no_lock_behind(
    tmp_path: Path, start: str, after: str, longest: float, tries: int
) -> None:
    """At whatever step: Ctrl-C, a deadline."""
    program = INTERRUPTED.replace("START", start).replace("AFTER", after)
    program = program.replace("LONGEST", str(longest)).replace("TRIES", str(tries))
    done = run(tmp_path, "    import random\n" + program)
    assert done.stdout.startswith("True True "), (done.stdout, done.stderr)


@pytest.mark.parametrize("calls", range(7))
def test_a_launcher_that_is_killed_as_it_hands_the_lock_over_leaves_it_with_the_program_alone(
    tmp_path: Path, calls: int
) -> None:
    """Not with nobody, and not with what the program starts."""
    program = """
        from daemonkit._pidfile import hold as _pidfile
        hand_over, lock = _pidfile.Hold.name_holder, _pidfile._lock

        def counted(*args):
            global left
            lock(*args)
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def killed(self, *args):
            global left
            left = CALLS
            _pidfile._lock = counted
            hand_over(self, *args)
            os.kill(os.getpid(), signal.SIGKILL)

        _pidfile.Hold.name_holder = killed
        daemonkit.spawn_detached(["sh", "-c", "sleep 1000 & echo $$ $! > pids; exec sleep 999"], pidfile="app.pid")
    """
    assert run(tmp_path, program.replace("CALLS", str(calls))).returncode == -signal.SIGKILL
    main, child = map(int, eventually(lambda: (text := (tmp_path / "pids")).exists() and text.read_text().split()))
    lock = PidFile(tmp_path / "app.pid")
    assert lock.read_pid() == main
    with pytest.raises(AlreadyRunningError):
        lock.acquire()
    os.kill(main, signal.SIGKILL)
    eventually(lambda: lock.read_pid() != main)
    assert lock.read_pid() is None
    os.kill(child, signal.SIGKILL)
