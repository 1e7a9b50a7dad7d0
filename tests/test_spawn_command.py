"""spawn_detached(): the program is found, and has its arguments and its environment, byte by byte."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from harness import let_everybody_in
from launches import (
    ORDINARY,
    ROOT,
    SLOW,
    call,
    kill,
    script,
    seen,
    spawned,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_arguments_of_every_kind_arrive_byte_by_byte(tmp_path: Path) -> None:
    odd = script(tmp_path / os.fsdecode(b"odd \xff\n name"), "#!/bin/sh\nexec sleep 1000 #")
    told = call(
        tmp_path,
        """
        from pathlib import Path
        args = [b"sh", "-c", b"exec sleep 1000", Path("a path"), b"raw \\xff\\xfe", os.fsdecode(b"escaped \\xff"), "gr\\u00fc\\u00df", "", "a b\\nc", "x=y"]
        copy = list(args)
        p = spawn(args)
        assert p.args == copy and args == copy
        q = spawn((Path.cwd() / os.fsdecode(b"odd \\xff\\n name"),), cwd=".", umask=0)
        r = spawn([b"./odd \\xff\\n name"])
        s = spawn(["called", "1000"], executable=b"/bin/sleep")
        tell(p=p.pid, q=q.pid, r=r.pid, s=s.pid, args=seen(p.pid)["args"], name=seen(s.pid)["args"])
    """,
    )
    assert odd.exists() and told["name"] == ["called", "1000"]
    if told["args"][0] == "sh":  # not yet replaced by sleep
        assert told["args"][3:] == [
            "a path",
            "raw \xff\xfe",
            "escaped \xff",
            "grüß".encode().decode("latin-1"),
            "",
            "a b\nc",
            "x=y",
        ]
    kill(*(told[name] for name in "pqrs"))


def test_every_argument_arrives_at_a_program_that_shows_them(tmp_path: Path) -> None:
    call(
        tmp_path,
        r"""
        args = [b"raw \xff\xfe", os.fsdecode(b"escaped \xff"), "grüß", "", "a b\nc", "-n", "*", "$HOME"]
        for options in ({}, dict(cwd="/", umask=0)):
            p = spawn(["printf", "<%s>", *args], stdout=PIPE, **options)
            with p.stdout:
                assert p.stdout.read() == b"".join(b"<%s>" % os.fsencode(a) for a in args)
            assert p.wait() == 0
    """,
    )


def test_the_shell_and_another_one(tmp_path: Path) -> None:
    script(tmp_path / "shell", '#!/bin/sh\necho "$0" "$1" "$2" "$3" > said\n')
    call(
        tmp_path,
        """
        def out(*args, **options):
            p = spawn(*args, stdout=PIPE, **options)
            with p.stdout: text = p.stdout.read()
            assert p.wait() == 0
            return text
        assert out("echo $((1 + 1)) | cat", shell=True) == b"2\\n"
        assert out(b"echo bytes", shell=True, cwd="/", umask=0) == b"bytes\\n"
        assert out(["echo $0 $1", "zero", "one"], shell=True) == b"zero one\\n"
        assert out("echo $KEY", shell=True, env={"KEY": "value"}) == b"value\\n"
        out("the command", shell=True, executable="./shell")
        p = spawn("exit 3", shell=True)
        assert (p.wait(), p.args) == (3, "exit 3")
    """,
    )
    assert (tmp_path / "said").read_text().split() == ["./shell", "-c", "the", "command"]


def test_the_environment_of_every_kind(tmp_path: Path) -> None:
    told = call(
        tmp_path,
        """
        import types
        os.environ["ADDED"] = "later"
        os.environb[b"RAW"] = b"\\xff"
        del os.environ["REMOVED"]
        found = {}
        for name, env in {
            "none": None, "its own": os.environ, "bytes": os.environb, "empty": {}, "proxy": types.MappingProxyType({"A": "b"}),
            "mixed": {b"B\\xff": b"\\xfe", "U": "\\u00fc", "EMPTY": "", "EQUALS": "a=b=c", "S": os.fsdecode(b"\\xfd"), "P": "."},
        }.items():
            for way, options in {"": {}, " slowly": dict(cwd=".", umask=0o22)}.items():
                p = spawn(["/bin/sleep", "1000"], env=env, **options)
                found[name + way] = dict(pid=p.pid, env=seen(p.pid)["env"])
        tell(found=found, mine=sorted((k + b"=" + v).decode("latin-1") for k, v in os.environb.items()))
    """,
        env={**os.environ, "REMOVED": "x"},
    )
    found = told["found"]
    for way in ("", " slowly"):
        for name in ("none", "its own", "bytes"):
            assert found[name + way]["env"] == told["mine"], name
        assert {"ADDED=later", "RAW=\xff"} <= set(found["none" + way]["env"])
        assert found["empty" + way]["env"] == [] and found["proxy" + way]["env"] == ["A=b"]
        u = "ü".encode().decode("latin-1")
        assert found["mixed" + way]["env"] == sorted(
            [f"U={u}", "B\xff=\xfe", "EMPTY=", "EQUALS=a=b=c", "S=\xfd", "P=."]
        )
    kill(*(entry["pid"] for entry in found.values()))


def test_a_relative_program_is_looked_for_in_cwd_and_on_the_path_of_env(tmp_path: Path) -> None:
    """As `subprocess` does; `Popen` is asked beside it."""
    for name, code in {
        "here": 1,
        "sub/there": 2,
        "sub/here": 3,
        "bin/found": 4,
        "sub/bin/found": 5,
        "callers/found": 6,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        script(tmp_path / name, f"#!/bin/sh\nexit {code}\n")
    call(
        tmp_path,
        """
        home = os.getcwd()
        os.environ["PATH"] = home + "/callers:" + os.environ["PATH"]
        env = lambda path: dict(os.environ, PATH=path)
        cases = {
            1: (["./here"], {}), 2: (["./there"], dict(cwd="sub")), 3: (["./here"], dict(cwd="sub")),
            4: (["found"], dict(env=env(home + "/bin"))), 5: (["found"], dict(env=env("bin:" + home + "/bin"), cwd="sub")),
            6: (["found"], {}), 7: (["found"], dict(cwd="sub")), 8: (["here"], dict(env=env(""), cwd="sub")),
            9: (["here"], dict(env=env(":/usr/bin"), cwd="sub")), 10: (["here"], dict(env=env("/usr/bin::"))),
            11: (["bin/found"], dict(cwd="sub")), 12: (["bin/found"], {}), 13: (["found"], dict(env={b"PATH": os.fsencode(home) + b"/bin"})),
            14: (["x"], dict(executable="here", env=env("."), cwd="sub")), 15: (["true"], dict(env={})), 16: (["found"], dict(env={"A": "b"})),
            17: (["here"], dict(env=env(".:bin"))), 18: (["../here"], dict(cwd="sub")), 19: (["here"], dict(env=env(" : "))),
            20: (["x"], dict(executable="./here", cwd=b"sub")), 21: (["found"], dict(env=env("sub/../bin:callers"))),
        }
        wrong = {}
        def outcome(start, args, options):
            try:
                return start(args, **options).wait()
            except OSError as error:
                return type(error).__name__, error.errno
        for number, (args, options) in cases.items():
            for more in ({}, dict(umask=0o22)):
                ours, theirs = outcome(spawn, args, options | more), outcome(subprocess.Popen, args, options)
                if ours != theirs: wrong[number, bool(more)] = ours, theirs
        assert not wrong, wrong
        assert [outcome(spawn, *cases[n]) for n in range(1, 7)] == [1, 2, 3, 4, 5, 6]
    """,
    )


@pytest.mark.parametrize("slow", ["", SLOW], ids=["", "cwd, umask"])
def test_every_kind_of_entry_on_the_path_is_passed_over_as_popen_does(tmp_path: Path, slow: str) -> None:
    bins = tmp_path / "bins"
    contents = {
        "first": ("#!/bin/sh\nexit 11\n", 0o755), "second": ("#!/bin/sh\nexit 12\n", 0o755), "closed file": ("#!/bin/sh\nexit 13\n", 0o644),
        "broken": ("#!/nowhere/interpreter\n", 0o755), "text": ("no first line\n", 0o755), "private": ("#!/bin/sh\nexit 14\n", 0o755),
    }  # fmt: skip
    for name, (text, mode) in contents.items():
        (bins / name).mkdir(parents=True)
        script(bins / name / "prog", text, mode)
    (bins / "directory" / "prog").mkdir(parents=True)
    (bins / "lacking").mkdir()
    (bins / "file").touch()
    (bins / "loop").mkdir()
    (bins / "loop" / "prog").symlink_to("prog")
    (bins / "dangling").mkdir()
    (bins / "dangling" / "prog").symlink_to("nowhere")
    script(tmp_path / "prog", "#!/bin/sh\nexit 15\n")
    (bins / "private").chmod(0)
    if ROOT:
        let_everybody_in(tmp_path)
    try:
        call(
            tmp_path,
            f"""
            {ORDINARY.replace(chr(10), chr(10) + " " * 12) if ROOT else ""}
            home = os.getcwd() + "/bins/"
            entries = ["", "bins/first", home + "missing"] + [home + name for name in {sorted(p.name for p in bins.iterdir())}]
            def outcome(start, path, **options):
                try:
                    return start(["prog"], env={{"PATH": path}}, **options).wait()
                except OSError as error:
                    return type(error).__name__, error.errno
            more = dict(cwd=".", umask=0o22) if {bool(slow)} else {{}}
            wrong = {{}}
            for one in entries:
                for two in entries:
                    path = one + ":" + two
                    ours, theirs = outcome(spawn, path, **more), outcome(subprocess.Popen, path)
                    if one in (home + "broken", home + "text"):
                        # The first that can be executed is the program; if it is broken that is said, and no other taken.
                        assert isinstance(ours, tuple), (path, ours)
                    elif ours != theirs and (isinstance(ours, int) or isinstance(theirs, int)):
                        wrong[path.replace(home, "")] = ours, theirs
            assert not wrong, wrong
            assert any_child() is None
        """,
        )
    finally:
        (bins / "private").chmod(0o755)


@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
def test_beside_node_the_program_finds_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.js").write_text(
        "const p = require('child_process').spawn('sleep', ['1000'], {detached: true, stdio: 'ignore'});"
        "p.unref(); console.log(p.pid); process.exit(0)"
    )
    node = int(subprocess.run(["node", "a.js"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    ours = spawned(tmp_path)
    facts = {}
    for pid in (node, ours):
        facts[pid] = {key: value for key, value in seen(pid).items() if key not in {"env", "flags"}}
        assert facts[pid].pop("pgid") == facts[pid].pop("sid") == pid
    assert facts[node] == facts[ours]
    kill(node, ours)
