"""spawn_detached(): an error comes in the caller, names what is at fault, and leaves nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from harness import let_everybody_in, pid_in
from launches import (
    MODES,
    call,
    judged,
    kill,
    script,
    spawned,
)

ARGUMENTS = {
    "None": "TypeError", "5": "TypeError", "object()": "TypeError", "'sleep 1000'": "TypeError|ValueError", "b'true'": "TypeError|ValueError",
    "[]": "ValueError", "()": "ValueError", "[5]": "TypeError", "['true', None]": "TypeError", "['true', 1.5]": "TypeError",
    "['true', True]": "TypeError", "[None]": "TypeError", "['nul\\0byte']": "ValueError", "['true', 'nul\\0byte']": "ValueError",
    "['true', b'nul\\0byte']": "ValueError", "5, shell=True": "TypeError", "['true'], 'cat'": "TypeError", "['true'], nonsense=1": "TypeError",
    "['true'], stdin=5.5": "TypeError", "['true'], stdout=True": "TypeError", "['true'], stderr=object()": "TypeError", "['true'], stdout=[]": "TypeError",
    "['true'], stdin=STDOUT": "ValueError", "['true'], stdout=STDOUT": "ValueError", "['true'], stdout=999": "ValueError|OSError",
    "['true'], stdin=-17": "ValueError", "['true'], stdout=__import__('io').StringIO()": "ValueError|UnsupportedOperation",
    "['true'], stdout=''": "ValueError|FileNotFoundError", "['true'], stderr='nul\\0byte'": "ValueError", "['true'], stdin='nul\\0byte'": "ValueError",
    "['true'], input='text'": "TypeError", "['true'], input=5": "TypeError", "['true'], input=['x']": "TypeError", "['true'], input=b'x', stdin=PIPE": "ValueError",
    "['true'], input=b'', stdin=DEVNULL": "ValueError", "['true'], input=b'x', stdin='program.py'": "ValueError",
    "['true'], cwd=5.5": "TypeError", "['true'], cwd=[]": "TypeError", "['true'], cwd='nul\\0byte'": "ValueError",
    "['true'], env=5": "TypeError|AttributeError", "['true'], env=['A=b']": "TypeError|AttributeError", "['true'], env={'A': 1}": "TypeError",
    "['true'], env={1: 'a'}": "TypeError", "['true'], env={'A': None}": "TypeError", "['true'], env={'A=B': 'c'}": "ValueError", "['true'], env={b'A=B': b'c'}": "ValueError",
    "['true'], env={'A': 'nul\\0byte'}": "ValueError", "['true'], env={'nul\\0byte': 'a'}": "ValueError", "['true'], env={b'A': b'nul\\0byte'}": "ValueError",
    "['true'], executable=5": "TypeError", "['true'], executable='nul\\0byte'": "ValueError", "['true'], executable=[]": "TypeError",
    "['true'], umask='0o22'": "TypeError", "['true'], umask=1.5": "TypeError", "['true'], umask=True": "TypeError",
    "['true'], umask=0o1000": "ValueError", "['true'], umask=-2": "ValueError", "['true'], umask=2**40": "ValueError|OverflowError",
    "['true'], pass_fds=5": "TypeError", "['true'], pass_fds=[1.5]": "TypeError|ValueError", "['true'], pass_fds=['x']": "TypeError|ValueError",
    "['true'], pass_fds=[-1]": "ValueError", "['true'], pass_fds=[999]": "ValueError|OSError", "['true'], pass_fds=[2**40]": "ValueError|OverflowError|OSError",
    "['true'], pass_fds=[None]": "TypeError", "['true'], pass_fds=None": "TypeError",
    "['true'], user=1.5": "TypeError", "['true'], user=True": "TypeError", "['true'], user=-1": "ValueError", "['true'], user=2**33": "ValueError",
    "['true'], user='nobody-such'": "LookupError|KeyError", "['true'], group=1.5": "TypeError", "['true'], group=-1": "ValueError",
    "['true'], group='nobody-such'": "LookupError|KeyError", "['true'], group=[]": "TypeError", "['true'], extra_groups=5": "TypeError",
    "['true'], extra_groups='games'": "TypeError|ValueError", "['true'], extra_groups=[1.5]": "TypeError", "['true'], extra_groups=[-1]": "ValueError",
    "['true'], extra_groups=['nobody-such']": "LookupError|KeyError", "['true'], extra_groups=[None]": "TypeError",
    "['true'], pidfile=3": "TypeError", "['true'], pidfile=object()": "TypeError", "['true'], pidfile=True": "TypeError",
    "['true'], pidfile='nul\\0byte'": "ValueError", "['true'], pidfile=''": "ValueError",
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_bad_arguments_are_refused_before_anything_happens(tmp_path: Path, mode: str) -> None:
    results = judged(tmp_path, ARGUMENTS, mode)
    wrong = {text: results[text][:4] for text, kinds in ARGUMENTS.items() if results[text][0] not in kinds.split("|")}
    assert wrong == {}
    messages = {
        text: results[text][3]
        for text in ARGUMENTS
        if "=" in text and "nul" not in text and "env=" not in text and "pass_fds=[999]" not in text
    }
    assert {
        text: said for text, said in messages.items() if text.partition("], ")[2].partition("=")[0] not in said
    } == {}


PATHS = {
    "['missing-program']": "FileNotFoundError|missing-program",
    "['./missing']": "FileNotFoundError|missing",
    "['/nowhere/missing']": "FileNotFoundError|missing",
    "[b'./missing \\xff']": "FileNotFoundError|missing \udcff",
    "['./plain']": "PermissionError|plain",
    "['./directory']": "PermissionError|directory",
    "['/']": "PermissionError|None",
    "['plain/x']": "NotADirectoryError|x",
    "['./loop']": "OSError|loop",
    "['./dangling']": "FileNotFoundError|dangling",
    "['x' * 300]": "OSError|" + "x" * 300,
    "['./' + 'x' * 300]": "OSError|" + "x" * 300,
    "['./no-interpreter']": "FileNotFoundError|interpreter",
    "['./no-interpreter-blank']": "FileNotFoundError|interpreter",
    "['./closed-interpreter']": "PermissionError|plain",
    "['./directory-interpreter']": "PermissionError|directory",
    "['./file-interpreter']": "NotADirectoryError|x",
    "['./crlf']": "FileNotFoundError|sh\r",
    "['./nested']": "FileNotFoundError|interpreter",
    "['no-interpreter'], env={'PATH': os.getcwd()}": "FileNotFoundError|interpreter",
    "['./no-interpreter'], env={'PATH': ''}": "FileNotFoundError|interpreter",
    "['no-interpreter'], cwd='directory', env={'PATH': '..'}": "FileNotFoundError|interpreter",
    "['x'], executable='./crlf'": "FileNotFoundError|sh\r",
    "'true', shell=True, executable='./no-interpreter'": "FileNotFoundError|interpreter",
    "['../no-interpreter'], cwd='directory'": "FileNotFoundError|interpreter",
    "['./text']": "OSError|text",
    "['./empty']": "OSError|empty",
    "['./elf']": "OSError|elf",
    "['true'], cwd='missing'": "FileNotFoundError|missing",
    "['true'], cwd=b'missing'": "FileNotFoundError|missing",
    "['missing-program'], cwd='missing'": "FileNotFoundError|missing",
    "['true'], cwd='plain'": "NotADirectoryError|plain",
    "['true'], cwd='plain/x'": "NotADirectoryError|x",
    "['true'], cwd='loop'": "OSError|loop",
    "['true'], cwd=''": "FileNotFoundError|",
    "['./plain'], cwd='directory'": "FileNotFoundError|plain",
    "['true'], executable='./missing'": "FileNotFoundError|missing",
    "['true'], executable='./plain'": "PermissionError|plain",
    "'true', shell=True, executable='./missing'": "FileNotFoundError|missing",
    "['true'], env={'PATH': '/nowhere'}": "FileNotFoundError|true",
    "['true'], env={'PATH': ''}": "FileNotFoundError|true",
    "['sleep'], env={'PATH': os.getcwd()}": "PermissionError|sleep",
    "['true', 'x' * (1 << 18)]": "OSError|7",
    "['true', *['x' * 100_000] * 100]": "OSError|7",
    "['true'], env={'A': 'x' * (1 << 18)}": "OSError|7",
    "'x' * (1 << 18), shell=True": "OSError|7",
    "['true'], stdout='missing/log'": "FileNotFoundError|log",
    "['true'], stdout='directory'": "IsADirectoryError|directory",
    "['true'], stdin='missing'": "FileNotFoundError|missing",
    "['true'], stdin='directory'": "IsADirectoryError|directory",
    "['true'], stderr='link'": "OSError|link",
    "['true'], stdout='dangling'": "OSError|dangling",
    "['true'], stdout='plain/log'": "NotADirectoryError|log",
    "['true'], stdout='new', stderr='missing/log'": "FileNotFoundError|log",
    "['true'], stdout='kept', stderr='missing/log'": "FileNotFoundError|log",
    "['true'], pidfile='missing/pid'": "FileNotFoundError|pid",
    "['true'], pidfile='directory'": "IsADirectoryError|directory",
    "['true'], pidfile='link'": "OSError|link",
    "['true'], pidfile='fifo'": "OSError|fifo",
    "['true'], stdout='new', pidfile='fifo'": "OSError|fifo",
    "['missing-program'], stdout=b'new', stderr='newer', pidfile='new.pid'": "FileNotFoundError|missing-program",
    "['missing-program'], stdout='new', stderr=STDOUT": "FileNotFoundError|missing-program",
    "['missing-program'], stdout='new', stderr='new'": "FileNotFoundError|missing-program",
    "['missing-program'], stdout='kept', stderr='empty'": "FileNotFoundError|missing-program",
    "['missing-program'], input=bytes(1_000_000)": "FileNotFoundError|missing-program",
    "['missing-program'], stdin=PIPE, stdout=PIPE, stderr=PIPE": "FileNotFoundError|missing-program",
    "['./text'], stdout=PIPE, pidfile='new.pid'": "OSError|text",
    "['./crlf'], pidfile='new.pid', input=b'x'": "FileNotFoundError|sh\r",
}


NUMBERS = {"loop": 40, "text": 8, "empty": 8, "elf": 8, "link": 40, "dangling": 40, "x" * 300: 36}


def lay_out(directory: Path) -> None:
    (directory / "directory").mkdir()
    script(directory / "plain", "plain\n", 0o644)
    script(directory / "text", "no first line\n")
    script(directory / "empty", "")
    script(directory / "elf", b"\x7fELF and then rubbish")
    (directory / "loop").symlink_to("loop")
    (directory / "link").symlink_to("plain")
    (directory / "dangling").symlink_to("nowhere")
    (directory / "sleep").mkdir()
    os.mkfifo(directory / "fifo")
    for name, text in {
        "no-interpreter": "#!/nowhere/interpreter\n", "no-interpreter-blank": "#! \t/nowhere/interpreter  an argument\n",
        "closed-interpreter": f"#!{directory}/plain\n", "directory-interpreter": f"#!{directory}/directory\n",
        "file-interpreter": f"#!{directory}/plain/x\n", "crlf": "#!/bin/sh\r\nexit 0\r\n", "nested": f"#!{directory}/no-interpreter\n",
    }.items():  # fmt: skip
        script(directory / name, text)


@pytest.mark.parametrize("mode", MODES)
def test_the_error_names_what_is_at_fault_and_nothing_is_left(tmp_path: Path, mode: str) -> None:
    lay_out(tmp_path)
    if mode == "user":
        let_everybody_in(tmp_path)
    results = judged(tmp_path, PATHS, mode)
    wrong = {}
    for text, expected in PATHS.items():
        kind, _, what = expected.partition("|")
        name, number, file, message, _ = results[text]
        good = name == kind
        if what == "7":
            good &= number == 7
        elif what != "None":
            good &= file == what and what.rstrip("\r").partition(" ")[0] in message
            good &= kind != "OSError" or what == "fifo" or number == NUMBERS[what]
        if not good:
            wrong[text] = results[text][:4]
    assert wrong == {}


def test_the_loader_of_a_binary_that_is_missing_is_an_error_too(tmp_path: Path) -> None:
    binary = Path(shutil.which("true") or "/bin/true").read_bytes()
    loader = next(
        (name for name in (b"/lib64/ld-linux-x86-64.so.2", b"/lib/ld-linux-aarch64.so.1") if name in binary), None
    )
    if loader is None:
        pytest.skip("true(1) has no loader that this test knows")
    script(tmp_path / "binary", binary.replace(loader, loader.replace(b"/ld-", b"/no-")))
    for mode in ("plain", "all"):
        kind, number, name, *_ = judged(tmp_path, {"['./binary']": ""}, mode)["['./binary']"]
        assert (kind, number) == ("FileNotFoundError", 2)
        assert name in {"binary", os.path.basename(loader.replace(b"/ld-", b"/no-").decode())}


def test_a_stale_pidfile_is_free_after_a_start_that_failed(tmp_path: Path) -> None:
    dead = 4194300
    for text in (f"{dead}\n", "", "rubbish\n"):
        (tmp_path / "pid").write_text(text)
        call(
            tmp_path,
            """
            for args in (["missing"], ["./program.py"]):
                try:
                    spawn(args, pidfile="pid")
                except OSError:
                    assert daemonkit.PidFile("pid").read_pid() is None
                else:
                    assert False
        """,
        )
        assert not (tmp_path / "pid").exists() or (tmp_path / "pid").read_text() == text
        pid = spawned(tmp_path, "SLEEP, pidfile='pid'")
        assert pid_in(tmp_path / "pid") == pid
        kill(pid)


def test_an_error_is_right_while_another_thread_sits_in_os_wait(tmp_path: Path) -> None:
    """It may well be that thread which reaps what a failed start leaves for a moment."""
    call(
        tmp_path,
        """
        keeper = subprocess.Popen(SLEEP)
        taken, stopping = [], False
        def reap():
            while not stopping:
                try:
                    taken.append(os.wait())
                except ChildProcessError:
                    return
        thread = threading.Thread(target=reap); thread.start()
        open("text", "w").close(); os.chmod("text", 0o755)
        for n in range(40):
            for args in (["missing"], ["./text"], ["true", "x" * (1 << 18)]):
                for options in ({}, dict(cwd=".", umask=0o22), dict(pidfile="pid", stdout="log")):
                    try:
                        spawn(args, **options)
                    except OSError as error:
                        assert error.errno in (2, 8, 7), error
                    else:
                        assert False, "started"
        assert sorted(os.listdir(".")) == ["program.py", "text"]
        stopping = True
        keeper.kill()
        thread.join()
        keeper.returncode = -9  # that thread took its status
    """,
        timeout=60,
    )
