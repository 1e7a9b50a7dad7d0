"""What the command reads and shows without `json`, `re` and `shlex` is what they would read and show."""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemonkit.cli import _app, _json, _table

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=30)
@given(VALUES, st.sampled_from([None, 1]))
def test_what_is_written_is_read_as_json_reads_it(value: object, indent: int | None) -> None:
    text = json.dumps(value, indent=indent) + "\n"
    assert _json.read(text) == json.loads(text) == value


BAD = [
    "",
    " ",
    "{",
    "[1,",
    "[1]x",
    "[1] 2",
    "{'a': 1}",
    '{"a"}',
    '{"a": 1,}',
    '"\n"',
    "\0",
    "nul",
    "01",
    "+1",
    "\ufeff1",
    '"\\x"',
]


@pytest.mark.parametrize("text", BAD)
def test_what_is_not_json_is_refused_as_json_refuses_it(text: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - each has a text of its own
        json.loads(text.strip())
    code = f"""if True:
        import sys
        sys.path[:] = {sys.path!r}
        from daemonkit.cli import _json
        assert "json" not in sys.modules  # which the scanner takes its exceptions from
        try:
            _json.read({text!r})
        except ValueError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.rstrip() == str(refused.value), done.stderr


def test_numbers_without_digits_and_depth_are_as_in_json() -> None:
    assert _json.read("[Infinity, -Infinity]") == [math.inf, -math.inf]
    assert math.isnan(_json.read("NaN"))  # type: ignore[arg-type]
    with pytest.raises(RecursionError):
        _json.read("[" * 100_000)


@given(st.text() | st.text("aZ9._-\u00e9\u0661\0\n"))
def test_a_name_is_what_the_documentation_says(text: str) -> None:
    assert _app.is_name(text) == bool(re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]*", text))


@given(st.lists(st.text() | st.text("a/._@%+=:,- '\"$")))
def test_a_command_is_shown_as_a_shell_takes_it(command: list[str]) -> None:
    assert _table._typed(command) == shlex.join(command)
