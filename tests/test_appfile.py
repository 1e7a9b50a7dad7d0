"""An app file is read whole or refused whole, in one line that names the place."""

from __future__ import annotations

import json
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from daemonkit.cli import _appfile, _kinds, _schema
from daemonkit.cli._appfile import Wish
from daemonkit.cli._options import OPTIONS
from daemonkit.cli._toml import Toml

SCHEMA = Path(_schema.__file__).with_name("daemonkit.schema.json")


def read(directory: Path, text: str, name: str = "daemonkit.toml") -> dict[str, Wish]:
    path = directory / name
    path.write_text(text)
    return _appfile.read(str(path)).apps


# Each bad file, and what is said after its path; True where an editor sees it too, by the schema.
BAD = [
    ("", "there is no app in it; begin one with [apps.NAME]", True),
    ("[apps]\n", "there is no app in it; begin one with [apps.NAME]", True),
    ("[apps.web\n", "Expected ']' at the end of a table declaration (at line 1, column 10)", False),
    ("[apps.web]\ncommand = 'a'\ncommand = 'b'\n", "Cannot overwrite a value (at line 3, column 14)", False),
    ("apps = 3\n", "[apps] must be a table, not 3", True),
    ("defaults = []\n[apps.a]\ncommand='a'\n", "[defaults] must be a table, not []", True),
    ("[app.web]\ncommand = 'a'\n", "app: unknown key; did you mean apps?", True),
    ("[web]\ncommand = 'a'\n", "web: unknown key; did you mean [apps.web]?", True),
    ("[apps]\nweb = 'python a.py'\n", '[apps.web] must be a table, not "python a.py"', True),
    ("[apps.web]\n", '[apps.web]: there is no command; give one, as command = "python worker.py"', True),
    ("[apps.web]\ncommand = ''\n", "[apps.web] command: it is empty; give the program and its arguments", True),
    ("[apps.web]\ncommand = '  '\n", "[apps.web] command: it is empty; give the program and its arguments", False),
    ("[apps.web]\ncommand = []\n", "[apps.web] command: it is empty; give the program and its arguments", True),
    ("[apps.web]\ncommand = ['', 'a']\n", "[apps.web] command: it is empty; give the program and its arguments", False),
    (
        "[apps.web]\ncommand = ['sleep', 9]\n",
        '[apps.web] command must be a list of strings, or one string that is split as a shell would, not ["sleep", 9]',
        True,
    ),
    ("[apps.web]\ncommand = \"echo 'a\"\n", "[apps.web] command: no closing quotation in \"echo 'a\"", False),
    (
        '[apps.web]\ncommand = "a\\u0000b"\n',
        '[apps.web] command must be a list of strings, or one string that is split as a shell would, not "a\0b"',
        False,
    ),
    ("[apps.web]\ncommand = 'a'\ninstnces = 2\n", "[apps.web] instnces: unknown key; did you mean instances?", True),
    ("[apps.web]\ncommand = 'a'\nmax-memory = 2\n", "[apps.web] max-memory: unknown key; did you mean max_memory?", True),
    ("[apps.web]\ncommand = 'a'\ncolour = 2\n", "[apps.web] colour: unknown key", True),
    ("[defaults]\nrestrat = 'always'\n[apps.a]\ncommand='a'\n", "[defaults] restrat: unknown key; did you mean restart?", True),
    ("[defaults]\nafter = []\n[apps.a]\ncommand='a'\n", "[defaults] after: it belongs to one app: put it under [apps.NAME]", True),
    ("[defaults]\ncommand = 'b'\n[apps.a]\ncommand='a'\n", "[defaults] command: it belongs to one app: put it under [apps.NAME]", True),
    ("[defaults]\ninstances = 0\n[apps.a]\ncommand='a'\n", '[defaults] instances must be a number from 1 on, or "auto", not 0', True),
    ("[apps.a]\ncommand = 'a'\ninstances = true\n", '[apps.a] instances must be a number from 1 on, or "auto", not true', True),
    ("[apps.a]\ncommand = 'a'\ninstances = 1.5\n", '[apps.a] instances must be a number from 1 on, or "auto", not 1.5', True),
    ("[apps.a]\ncommand = 'a'\ninstances = 'many'\n", '[apps.a] instances must be a number from 1 on, or "auto", not "many"', True),
    ("[apps.a]\ncommand = 'a'\nrestart = 'sometimes'\n", '[apps.a] restart must be "always" or "on-failure" or "never", not "sometimes"', True),
    ("[apps.a]\ncommand = 'a'\nrestart = true\n", '[apps.a] restart must be "always" or "on-failure" or "never", not true', True),
    ("[apps.a]\ncommand = 'a'\nwait_ready = 'yes'\n", '[apps.a] wait_ready must be true or false, not "yes"', True),
    ("[apps.a]\ncommand = 'a'\nstop_timeout = -1\n", "[apps.a] stop_timeout must be seconds, at least 0, not -1", True),
    ("[apps.a]\ncommand = 'a'\nwatchdog = nan\n", "[apps.a] watchdog must be seconds, more than 0, not nan", False),
    ("[apps.a]\ncommand = 'a'\nmax_memory = 'lots'\n", '[apps.a] max_memory must be bytes, or a size such as "200M", not "lots"', False),
    ("[apps.a]\ncommand = 'a'\nstop_signal = 'SIGNAL'\n", '[apps.a] stop_signal must be a signal, such as "INT", not "SIGNAL"', False),
    ("[apps.a]\ncommand = 'a'\numask = 22\n", '[apps.a] umask must be octal digits in quotes, such as "022", not 22', True),
    ("[apps.a]\ncommand = 'a'\numask = '9'\n", '[apps.a] umask must be octal digits in quotes, such as "022", not "9"', True),
    ("[apps.a]\ncommand = 'a'\ncwd = ''\n", '[apps.a] cwd must be a path, not ""', True),
    ("[apps.a]\ncommand = 'a'\nlog = 1979-05-27\n", "[apps.a] log must be a path, not 1979-05-27", False),
    ("[apps.a]\ncommand = 'a'\nenv = ['A=1']\n", '[apps.a] env must be a table of strings and numbers, such as { STAGE = "live", PORT = 8000 }, not ["A=1"]', True),
    ("[apps.a]\ncommand = 'a'\nenv = { A = true }\n", '[apps.a] env must be a table of strings and numbers, such as { STAGE = "live", PORT = 8000 }, not a table', True),
    ("[apps.a]\ncommand = 'a'\nenv = { 'A=B' = '1' }\n", "[apps.a] env: invalid name of a variable: 'A=B'", True),
    ("[apps.a]\ncommand = 'a'\nenv_file = 'no.env'\n", "[apps.a] env_file: no.env: No such file or directory", False),
    ("[apps.a]\ncommand = 'a'\nenv_file = 3\n", "[apps.a] env_file must be a path, or a list of paths, not 3", True),
    ("[apps.a]\ncommand = 'a'\nafter = 'b'\n", '[apps.a] after must be a list of names of apps, not "b"', True),
    ("[apps.a]\ncommand = 'a'\nafter = ['wbe']\n[apps.web]\ncommand='b'\n", "[apps.a] after: unknown app 'wbe'; did you mean web?", False),
    ("[apps.a]\ncommand = 'a'\nafter = ['a']\n", "[apps.a] after: a circle: a after a; leave one of them out", False),
    (
        "[apps.a]\ncommand = 'a'\nafter = ['b']\n[apps.b]\ncommand = 'b'\nafter = ['a']\n",
        "[apps.a] after: a circle: a after b after a; leave one of them out",
        False,
    ),
    ("[apps.'a b']\ncommand = 'a'\n", "[apps.a b]: ", True),
    ("[apps.'../x']\ncommand = 'a'\n", "[apps.../x]: ", True),
    ("a = " + "[" * 5000, "", False),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said", "seen"), BAD, ids=[str(n) for n in range(len(BAD))])
def test_a_bad_file_is_refused_in_one_line_that_names_the_place(
    tmp_path: Path,
    text: str,
    said: str,
    seen: bool,  # noqa: FBT001 - a case's
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"daemonkit.toml: {said}")) as refused:
        read(tmp_path, text)
    assert str(refused.value).startswith(f"{tmp_path}/daemonkit.toml: {said}")
    assert "\n" not in str(refused.value)
    assert said[-2:] in {"", ": "} or str(refused.value) == f"{tmp_path}/daemonkit.toml: {said}"
    if seen:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(tomllib.loads(text), _schema.schema())


BAD_PROCFILES = [
    ("", "there is no NAME: COMMAND in it"),
    ("# only a comment\n", "there is no NAME: COMMAND in it"),
    ("web: a\nweb: b\n", "line 2: there is a web above already"),
    ("web a\n", 'line 1 is not NAME: COMMAND: "web a"'),
    ("web:\n", 'line 1 is not NAME: COMMAND: "web:"'),
    ("\n\n-x: a\n", 'line 3 is not NAME: COMMAND: "-x: a"'),
]


@pytest.mark.parametrize(("text", "said"), BAD_PROCFILES, ids=[str(n) for n in range(len(BAD_PROCFILES))])
def test_a_bad_procfile_too(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        read(tmp_path, text, "Procfile")
    assert str(refused.value) == f"{tmp_path}/Procfile: {said}"


def test_a_file_of_another_tool_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"convert it: daemonkit import supervisord\.conf >daemonkit\.toml"):
        read(tmp_path, "[program:web]\ncommand=a\n", "supervisord.conf")


def test_what_is_no_utf_8_is_refused_and_a_byte_order_mark_is_not(tmp_path: Path) -> None:
    path = tmp_path / "daemonkit.toml"
    path.write_bytes(b"[apps.a]\ncommand = 'caf\xe9'\n")
    with pytest.raises(ValueError, match="not UTF-8, from byte 23 on"):
        _appfile.read(str(path))
    path.write_bytes(b"\xef\xbb\xbf[apps.a]\r\ncommand = 'a'\r\n")
    assert [*_appfile.read(str(path)).apps] == ["a"]


WHOLE = """
[defaults]
env_file = ".env"
env = { STAGE = "test", LEVEL = 3 }
stop_timeout = 2
wait_ready = true

[apps.db]
command = "redis-server --port 6400 --name 'a b'"
log = "logs/db.log"
wait_ready = false

[apps.web]
command = ["gunicorn", "site:app"]
instances = "auto"
listen = ["0.0.0.0:8000", "unix:run/web.sock"]
after = ["db"]
env = { STAGE = "live" }
cwd = "web"
backoff = [0.5, 3]
success_codes = [0, 2]
stop_signal = "INT"
umask = "027"
max_memory = "200M"
user = 33
"""


def test_each_option_is_read_as_the_command_line_reads_it(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("# words\nSTAGE=dev\nexport SECRET='a b'\nURL=\"${SECRET}/x\"\nALONE\n")
    apps = read(tmp_path, WHOLE)
    assert apps["db"] == Wish(
        {
            "command": ["redis-server", "--port", "6400", "--name", "a b"],
            "cwd": str(tmp_path),
            "stop_timeout": 2.0,
            "log": f"{tmp_path}/logs/db.log",
            "env": {"STAGE": "test", "SECRET": "a b", "URL": "a b/x", "LEVEL": "3"},
        },
        (),
    )
    assert apps["web"] == Wish(
        {
            "command": ["gunicorn", "site:app"],
            "instances": "auto",
            "listen": ["0.0.0.0:8000", f"unix:{tmp_path}/run/web.sock"],
            "cwd": f"{tmp_path}/web",
            "stop_timeout": 2.0,
            "wait_ready": True,
            "backoff": [0.5, 3.0],
            "success_codes": [0, 2],
            "stop_signal": "SIGINT",
            "umask": 0o027,
            "max_memory": 200 << 20,
            "user": 33,
            "env": {"STAGE": "live", "SECRET": "a b", "URL": "a b/x", "LEVEL": "3"},
        },
        ("db",),
    )


def test_an_apps_own_env_file_takes_the_place_of_the_default_one(tmp_path: Path) -> None:
    (tmp_path / "a.env").write_text("A=1\nB=1\n")
    (tmp_path / "b.env").write_text("B=2\n")
    text = "[defaults]\nenv_file='a.env'\n[apps.a]\ncommand='a'\n[apps.b]\ncommand='b'\nenv_file=['b.env']\n"
    apps = read(tmp_path, text + "[apps.c]\ncommand='c'\nenv_file=['a.env', 'b.env']\n")
    assert [wish.settings["env"] for wish in apps.values()] == [{"A": "1", "B": "1"}, {"B": "2"}, {"A": "1", "B": "2"}]


def test_a_line_of_an_env_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("A=1\n=what\n")
    with pytest.raises(ValueError, match=r"\[apps.a\] env_file: .*/\.env: line 2 is not NAME=VALUE$"):
        read(tmp_path, "[apps.a]\ncommand='a'\nenv_file='.env'\n")


def test_a_procfile_has_a_shell_the_env_beside_it_and_a_port_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PORT", raising=False)
    text = "# a comment\nweb: gunicorn -b :$PORT site:app | cat\n\nworker.2:  python worker.py \n"
    apps = read(tmp_path, text, "Procfile")
    assert apps["web"].settings == {
        "command": ["/bin/sh", "-c", "gunicorn -b :$PORT site:app | cat"],
        "cwd": str(tmp_path),
        "env": {"PORT": "5000"},
    }
    assert apps["worker.2"].settings["command"][2] == "python worker.py"
    (tmp_path / ".env").write_text("PORT=7000\nSTAGE=live\n")
    assert read(tmp_path, text, "Procfile.dev")["worker.2"].settings["env"] == {"PORT": "7100", "STAGE": "live"}


def test_the_file_of_this_directory_is_found_by_the_name_it_was_reached_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "releases").mkdir()
    (tmp_path / "current").symlink_to("releases")
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.setenv("PWD", f"{tmp_path}/current")
    with pytest.raises(LookupError, match=r"no daemonkit\.toml and no Procfile here; give one with -f FILE"):
        _appfile.find(None)
    Path("Procfile").touch()
    assert _appfile.find(None) == f"{tmp_path}/current/Procfile"
    Path("daemonkit.toml").touch()
    assert _appfile.find(None) == f"{tmp_path}/current/daemonkit.toml"
    assert _appfile.find("../x.toml") == f"{tmp_path}/x.toml"
    monkeypatch.setenv("PWD", "/")
    assert _appfile.find(None) == f"{tmp_path}/releases/daemonkit.toml"


# --- the schema -------------------------------------------------------------------------------------------------------


def test_the_schema_that_editors_read_is_that_of_the_options() -> None:
    assert json.loads(SCHEMA.read_text()) == _schema.schema(), "python -m daemonkit.cli._schema prints the new one"
    jsonschema.Draft7Validator.check_schema(_schema.schema())


def test_each_way_to_read_an_option_has_a_kind_of_value_in_a_file() -> None:
    assert {option.parse.__name__ for option in OPTIONS if option.parse and not option.choices} <= set(_kinds._KINDS)


def test_the_schema_accepts_what_the_reader_accepts(tmp_path: Path) -> None:
    (tmp_path / ".env").touch()
    read(tmp_path, WHOLE)
    jsonschema.validate(tomllib.loads(WHOLE), _schema.schema())


VALUES = st.one_of(
    st.integers(-2, 600), st.floats(-2, 9), st.just(math.inf), st.booleans(), st.sampled_from(["", "auto", "4", "INT", "200M", "spread", "a:1"]),
    st.lists(st.one_of(st.integers(-1, 3), st.floats(0, 3), st.just("a:1")), max_size=4), st.dictionaries(st.sampled_from(["A", "B"]), st.integers(), max_size=2),
)  # fmt: skip


@settings(deadline=None)
@given(key=st.sampled_from([*_kinds.BY_NAME, "command", "after"]), value=VALUES)
@example("log_format", "")
@example("user", -1)
def test_what_the_schema_refuses_the_reader_refuses_too(key: str, value: Any) -> None:
    apps: dict[str, dict[str, Any]] = {"a": {"command": "a"}}
    apps["a"][key] = value
    reader = Toml("/x/daemonkit.toml", {})
    try:
        wish = reader._app("a", apps["a"], {})
    except ValueError:
        return
    jsonschema.validate({"apps": apps}, _schema.schema())
    assert json.loads(json.dumps(wish.settings)) == wish.settings, "or a second `up` would find a change"
